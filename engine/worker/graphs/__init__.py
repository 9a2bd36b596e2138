"""Capture steps once and replay them: CUDA graphs, and tapes on a CPU."""
