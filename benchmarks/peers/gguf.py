"""Compare the engine with llama.cpp on the same GGUF file, in one run on the same cores.

    python -m benchmarks.peers.gguf [--kinds q4_0 …] [--workloads W1 …] [--out FOLDER]

Both serve SmolLM2-135M-Instruct from the very same bytes: q4_1 as its maker wrote it, q4_0 and q8_0
written by `engine.quantize`, with tables of 8 bits. Servers, client and workloads are those of
`benchmarks.peers`. llama.cpp rounds activations to 8 bits; the engine does so only in the kinds
that end in -int8, by --quantized-activations. `gguf.json`, `gguf.md` and `gguf.svg` are written
after each kind.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.peers import servers
from benchmarks.peers.__main__ import System
from benchmarks.peers.install import PEERS_DIR
from benchmarks.peers.results import ENGINE
from benchmarks.peers.same_file import DTYPE, MODEL, SameFile, main
from engine.models.checkpoint import Checkpoint
from engine.models.hub import find_model
from engine.models.named import fetch_file
from engine.quantize.gguf_file import BLOCK, TYPES, GGUFFile
from engine.quantize.weight_rounding import Grid, round_to_nearest
from engine.trace.command import run_command

AS_MADE = "q4_1"
ROUNDED = "-int8"
TYPES_OF_BLOCKS = ("q4_0", AS_MADE, "q8_0")
KINDS = (*TYPES_OF_BLOCKS, *(f"{kind}{ROUNDED}" for kind in TYPES_OF_BLOCKS))


class SameGGUF(SameFile):
    """Measure two servers on one file."""

    results, peer, kinds = "gguf", "llama.cpp", KINDS

    def systems(self, kind: str) -> dict[str, Callable[[], System]]:
        path, threads, peers = (
            str(gguf_file(kind.removesuffix(ROUNDED))),
            self.given.threads,
            self.peers,
        )
        flags = ("--quantized-activations",) if kind.endswith(ROUNDED) else ()
        return {
            ENGINE: lambda: servers.glasshouse(path, DTYPE, threads, peers, *flags),
            self.peer: lambda: servers.llama_cpp(path, DTYPE, threads, peers),
        }


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


if __name__ == "__main__":
    run_command(lambda: main(SameGGUF, "benchmarks.peers.gguf", __doc__ or ""))
