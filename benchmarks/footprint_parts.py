"""Say of what a server's memory and its start consist, as the kernel's tables show it from outside.

python -m benchmarks.footprint --parts [MODEL]   prints both tables, writes nothing
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

SMALL_MB = 1.0
EVERY_S = 0.005
HEADER = re.compile(r"[0-9a-f]+-[0-9a-f]+ ")
HEAP = "C's heap: torch's operators, tensors, large Python objects"
OBJECTS = "other memory without a file: Python's objects, pages"

Sizes = dict[str, float]


def mapped(pid: int, small_mb: float = SMALL_MB) -> dict[str, Sizes]:
    """Return the MB of each mapped file and kind of memory; files below `small_mb` as one."""
    found: dict[str, Sizes] = {}
    sizes: Sizes = {}
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split(maxsplit=5)
        if HEADER.match(line):
            name = words[5] if len(words) > 5 else ""
            part = (
                Path(name).name if name.startswith("/") else HEAP if name == "[heap]" else OBJECTS
            )
            sizes = found.setdefault(part, {"rss": 0.0, "pss": 0.0, "anonymous": 0.0})
        elif (key := words[0].rstrip(":").lower()) in sizes:
            sizes[key] += int(words[1]) / 1024
    small = [name for name, one in found.items() if one["rss"] < small_mb]
    rest = [found.pop(name) for name in small]
    if rest:
        keys = ("rss", "pss", "anonymous")
        found[f"{len(rest)} more files"] = {key: sum(one[key] for one in rest) for key in keys}
    return dict(sorted(found.items(), key=lambda item: -item[1]["pss"]))


class Marks:
    """Note when each mark of a start is first seen, in seconds since it began."""

    def __init__(self, pid: int, started: float) -> None:
        """Watch a server's process and its first child from now on; started: `time.monotonic`."""
        self._pid, self._started = pid, started
        self.seen: dict[str, float] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def note(self, mark: str) -> None:
        self.seen.setdefault(mark, time.monotonic() - self._started)

    def end(self) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        marks: dict[str, Callable[[], bool]] = {
            "server: Python runs its program": lambda: "_ssl." in self._maps(self._pid),
            "engine: its process runs": lambda: self._child() is not None,
            "engine: imports torch": lambda: "libtorch_cpu" in self._maps(self._child()),
            "server: imports pydantic and FastAPI": lambda: (
                "_pydantic_core" in self._maps(self._pid)
            ),
            "engine: torch's libraries are loaded, now its modules": lambda: (
                "_multiarray_umath" in self._maps(self._child())
            ),
            "engine: all is imported; has its kernels, loads the model": lambda: (
                re.search(r"/cpu-[a-z0-9_]+-[0-9a-f]+\.so", self._maps(self._child())) is not None
            ),
        }
        while marks and not self._done.wait(EVERY_S):
            for mark in [mark for mark, is_there in marks.items() if is_there()]:
                self.note(mark)
                del marks[mark]

    def _child(self) -> int | None:
        try:
            children = Path(f"/proc/{self._pid}/task/{self._pid}/children").read_text().split()
        except OSError:
            return None
        return int(children[0]) if children else None

    @staticmethod
    def _maps(pid: int | None) -> str:
        try:
            return "" if pid is None else Path(f"/proc/{pid}/maps").read_text()
        except OSError:
            return ""


def parts_table(processes: dict[int, str], marks: Marks) -> str:
    """Write both tables of a server that is ready."""
    lines = ["| after s | |", "|---|---|"]
    for mark, passed_s in sorted(marks.seen.items(), key=lambda item: item[1]):
        lines.append(f"| {passed_s:.2f} | {mark} |")
    lines += ["", "| MB | resident | share (PSS) | anonymous |", "|---|---|---|---|"]
    for pid, role in processes.items():
        for part, one in mapped(pid).items():
            figures = " | ".join(f"{one[key]:.1f}" for key in ("rss", "pss", "anonymous"))
            lines.append(f"| {role}: {part} | {figures} |")
    return "\n".join(lines) + "\n"
