"""Serve checkpoints that other tools made, and hold what they stand for against the tools' own.

    python -m benchmarks.peers.install auto-round llm-compressor
    python -m benchmarks.formats

`maker.py` runs in the environment of a tool: it makes a checkpoint, and writes the numbers that the
format's own library reads from it. `checks.py` does the engine's side, `__main__.py` writes the
table.
"""
