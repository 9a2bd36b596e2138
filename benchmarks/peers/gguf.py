"""Compare the engine with llama.cpp on the same GGUF file, in one run on the same cores.

    python -m benchmarks.peers.gguf [--types q4_0 …] [--workloads W1 …] [--out FOLDER]

Both serve SmolLM2-135M-Instruct from the very same bytes: q4_1 as its maker wrote it, q4_0 and q8_0
written by `engine.quantize`, with tables of 8 bits. Servers, client and workloads are those of
`benchmarks.peers`. llama.cpp rounds activations to 8 bits; the engine doesn't. `gguf.json`,
`gguf.md` and `gguf.svg` are written after each type.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from pathlib import Path

from benchmarks.peers import servers
from benchmarks.peers.__main__ import Session, add_options
from benchmarks.peers.install import PEERS_DIR, Peers
from benchmarks.peers.results import ENGINE
from benchmarks.workloads import workloads
from engine.models.checkpoint import Checkpoint
from engine.models.hub import find_model
from engine.models.named import fetch_file
from engine.quantize.gguf_file import BLOCK, TYPES, GGUFFile
from engine.quantize.weight_rounding import Grid, round_to_nearest
from engine.trace.command import run_command

MODEL = "smollm2"
AS_MADE = "q4_1"
DTYPE = "bfloat16"
KINDS = ("q4_0", AS_MADE, "q8_0")


class SameFile(Session):
    """Measure two servers on one file."""

    results = "gguf"

    def measure_file(self, kind: str) -> None:
        """Measure one type of blocks."""
        path, given = str(gguf_file(kind)), self.given
        config = json.loads((find_model(MODEL, None, None) / "config.json").read_text())
        works = workloads(config["vocab_size"])
        print(kind, flush=True)
        self.take_turns(
            {
                ENGINE: lambda: servers.glasshouse(path, DTYPE, given.threads, self.peers),
                "llama.cpp": lambda: servers.llama_cpp(path, DTYPE, given.threads, self.peers),
            },
            works,
            {"shape": "smollm2-135m", "dtype": kind.upper()},
        )


def gguf_file(kind: str) -> Path:
    """Return the model in a type of blocks, made or fetched once."""
    target = PEERS_DIR / "models" / "gguf" / f"{MODEL}-{kind}.gguf"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    if kind == AS_MADE:
        with tempfile.TemporaryDirectory(dir=target.parent) as work:
            fetch_file(MODEL, Path(work)).rename(target)
        return target
    folder = find_model(MODEL, None, None)
    file = GGUFFile(folder, json.loads((folder / "config.json").read_text()))
    grid = Grid(TYPES[kind].bits, BLOCK, symmetric=True)
    for name, tensor in Checkpoint.open(folder).tensors():
        if ".layers." in name and tensor.dim() == 2:
            file.add(name, round_to_nearest(tensor, grid), TYPES[kind])
        else:
            file.add_plain(name, tensor)
    half_done = target.with_suffix(".part")
    file.write(half_done)
    half_done.rename(target)
    return target


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--types", nargs="+", choices=KINDS, default=KINDS)
    add_options(parser)
    given = parser.parse_args()
    given.workloads = given.workloads or ["W1", "W2", "W4"]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the systems end too
    peers = Peers()
    if not peers.has_llama:
        print("llama.cpp is not installed: python -m benchmarks.peers.install llama.cpp")
        return 1
    session = SameFile(given, peers)
    for kind in given.types:
        session.measure_file(kind)
    if not session.rows:
        print("nothing was measured")
        return 1
    print((given.out / "gguf.md").read_text())
    return 0


if __name__ == "__main__":
    run_command(main)
