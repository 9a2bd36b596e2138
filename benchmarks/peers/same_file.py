"""Compare the engine with one peer on the very same quantized checkpoint."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from typing import ClassVar

from benchmarks.peers.__main__ import Session, System, add_options
from benchmarks.peers.install import Peers
from benchmarks.workloads import workloads

MODEL, SHAPE = "smollm2", "smollm2-135m"
VOCABULARY = 49152
DTYPE = "bfloat16"


class SameFile(Session):
    """Measure the engine and a peer on each of some files."""

    peer: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]]

    def systems(self, kind: str) -> dict[str, Callable[[], System]]:
        """Return how each system is started on a kind of file."""
        raise NotImplementedError

    def measure_file(self, kind: str) -> None:
        """Measure one kind of file."""
        print(kind, flush=True)
        labels = {"shape": SHAPE, "dtype": kind}
        self.take_turns(self.systems(kind), workloads(VOCABULARY), labels)


def main(session_class: type[SameFile], module: str, about: str) -> int:
    """Measure what is asked for; returns 1 where nothing was."""
    kinds = session_class.kinds
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=about.split("\n")[0])
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=kinds)
    add_options(parser)
    given = parser.parse_args()
    given.workloads = given.workloads or ["W1", "W2", "W4"]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the systems end too
    peers, peer = Peers(), session_class.peer
    if not peers.has(peer):
        print(f"{peer} is not installed: python -m benchmarks.peers.install {peer}")
        return 1
    session = session_class(given, peers)
    for kind in given.kinds:
        session.measure_file(kind)
    if not session.rows:
        print("nothing was measured")
        return 1
    print((given.out / f"{session.results}.md").read_text())
    return 0
