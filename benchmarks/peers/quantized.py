"""Compare the engine with vLLM on the same GPTQ and AWQ checkpoints, in one run on the same cores.

    python -m benchmarks.peers.install vLLM auto-round
    python -m benchmarks.peers.quantized [--kinds gptq …] [--workloads W1 …] [--out FOLDER]

The checkpoints of SmolLM2-135M-Instruct are auto-round's, as `benchmarks.formats` makes them.
`quantized.json`, `quantized.md` and `quantized.svg` are written after each of them.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.formats.made import checkpoint
from benchmarks.peers.__main__ import System
from benchmarks.peers.in_process import InProcess
from benchmarks.peers.results import ENGINE
from benchmarks.peers.same_file import DTYPE, MODEL, VOCABULARY, SameFile, main
from engine.trace.command import run_command


class SameCheckpoint(SameFile):
    """Measure two systems in processes of their own on one checkpoint."""

    results, peer, kinds = "quantized", "vLLM", ("gptq", "awq")

    def systems(self, kind: str) -> dict[str, Callable[[], System]]:
        folder, given = str(checkpoint(self.peers, kind, MODEL)), self.given
        return {
            name: lambda name=name: InProcess(  # type: ignore[misc]
                name, folder, DTYPE, given.threads, VOCABULARY, self.peers
            )
            for name in (ENGINE, self.peer)
        }


if __name__ == "__main__":
    run_command(lambda: main(SameCheckpoint, "benchmarks.peers.quantized", __doc__ or ""))
