"""Steps that are captured once and replayed: CUDA graphs, and tapes on a CPU."""
