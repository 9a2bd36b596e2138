"""Serve checkpoints that other tools made, and hold what they stand for against the tools' own.

    python -m benchmarks.peers.install llama.cpp auto-round llm-compressor
    python -m benchmarks.formats

`forms.py` lists the formats and who makes each; `made.py` keeps what was made. `maker.py` runs in
the environment of a tool: it makes a checkpoint, and writes the numbers that the format's own
library reads from it. `checks.py` and `speed.py` do the engine's side.
"""
