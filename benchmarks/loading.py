"""Measure what loading a model takes: seconds, beside those of reading its files, and memory.

    python -m benchmarks.loading [MODEL …] [--formats gptq …] [--out FOLDER]

MODEL: a name or a folder, by default smollm2; formats: of Qwen3-0.6B's shape, as
`benchmarks.formats.shapes` makes them. Files are read from the disk, dropped from the system's
cache before: into one small buffer, and into memory that is kept, which the system must find and
clear first. Then each model is loaded as the engine's process does it, in a process of its own,
while the system still keeps the files: what takes time then is to lay the weights out anew, in
memory of its own. Memory is what no file backs, beyond what the process had before, over the bytes
of the weights as they are kept: 1 is one copy. `loading.json` and `.md` are written; a later call
replaces the rows that it measured again. Linux only.
"""

from __future__ import annotations

import argparse
import json
import mmap
import multiprocessing
import os
import re
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.beside_transformers import machine
from benchmarks.formats.checks import WEIGHTS
from benchmarks.formats.shapes import FORMATS, GGUF, checkpoint
from benchmarks.machine_folder import keep_results, machine_folder
from benchmarks.shapes import weights_for
from engine.config import EngineConfig
from engine.models.hub import find_model
from engine.models.loader import load_model
from engine.trace.command import run_command
from engine.trace.events import EngineModelLoaded, Event
from engine.trace.recorder import Recorder
from engine.worker.platforms import platform_for

TURNS = 3
BUFFER = 8 << 20
"""Bytes that are read at once."""
EVERY_S = 0.005  # the memory is looked at so often
SHAPE = "qwen3-0.6b"


class Kept(Recorder):
    """Keep what is recorded."""

    def __init__(self) -> None:
        super().__init__("steps")
        self.events: list[Event] = []

    def record(self, event: Event) -> None:
        self.events.append(event)


class Load(NamedTuple):
    """Hold what one load took; bytes are those that no file backs."""

    seconds: float
    peak: int  # above what was there before
    after: int
    weights: int  # as they are kept


def load(connection: Connection, model: str) -> None:
    """Load a model when told, in a process of its own, and send (seconds, bytes of weights)."""
    config, recorder = EngineConfig(model=model, dtype="bfloat16", device="cpu"), Kept()
    device = torch.device("cpu")
    platform = platform_for(device)
    platform.prepare(config, recorder)
    connection.send(None)
    connection.recv()
    started = time.perf_counter()
    with torch.inference_mode():
        kept = load_model(config, device, recorder=recorder)
    platform.loaded()
    took_s = time.perf_counter() - started
    [loaded] = (event for event in recorder.events if isinstance(event, EngineModelLoaded))
    connection.send((took_s, loaded.num_bytes))
    connection.recv()
    del kept


def measure_load(model: str) -> Load:
    """Load a model once, and watch the memory of its process meanwhile."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=load, args=(theirs, model))
    process.start()
    theirs.close()
    assert process.pid is not None
    ours.recv()
    before = peak = anonymous(process.pid)
    ours.send(None)
    while not ours.poll(EVERY_S):
        peak = max(peak, anonymous(process.pid))
    seconds, weights = ours.recv()
    after = anonymous(process.pid)
    ours.send(None)
    process.join()
    return Load(seconds, max(peak, after) - before, after - before, weights)


def anonymous(pid: int) -> int:
    """Return the bytes of a process that no file backs."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def read_seconds(files: list[Path], keep: bool) -> float:
    """Read files from the disk, and return the seconds. keep: into memory of their own."""
    kept = []
    for file in files:
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    started = time.perf_counter()
    for file in files:
        size = file.stat().st_size
        buffer = memoryview(mmap.mmap(-1, size if keep else min(size, BUFFER)))
        with file.open("rb", buffering=0) as opened:
            place = 0
            while count := opened.readinto(buffer[place : place + BUFFER]):
                place += count if keep else 0
        kept.append(buffer)
    return time.perf_counter() - started


def measure(says: str, model: str) -> dict[str, Any]:
    """Measure one model; returns its row."""
    folder = Path(find_model(model, None, None))
    files = sorted(file for kind in WEIGHTS for file in folder.glob(kind))
    read, kept, loads = [], [], []
    for _ in range(TURNS):
        kept.append(read_seconds(files, keep=True))
        read.append(read_seconds(files, keep=False))
        loads.append(measure_load(model))
    return {
        "model": says,
        "file_bytes": sum(file.stat().st_size for file in files),
        "read_s": read,
        "read_and_kept_s": kept,
        "loads": [load._asdict() for load in loads],
    }


def markdown(rows: list[dict[str, Any]], where: dict[str, Any]) -> str:
    """Make the table of the page."""
    out = [
        f"Measured on {where['cpu']}, {where['threads']} threads, torch {where['torch']},"
        f" {where['date']}, by `python -m benchmarks.loading`; medians. Read: the files from the"
        " disk, through a buffer. Read and kept: into memory of their own, which the system clears"
        " first. Load: the files being in the system's cache, into bf16 or the engine's order of"
        " codes. Memory: what no file backs, over the weights as they are kept; 1 is one copy.\n",
        "| model | MB of files | read, s | read and kept, s | load, s | load over read and kept"
        " | MB of weights | most memory | memory afterwards |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        loads = [Load(**load) for load in row["loads"]]
        seconds = row["read_s"], row["read_and_kept_s"], [load.seconds for load in loads]
        read, kept, took = map(statistics.median, seconds)
        weights = loads[0].weights
        peak, after = (
            statistics.median(getattr(load, name) for load in loads) / weights
            for name in ("peak", "after")
        )
        cells = [row["model"], f"{row['file_bytes'] / 1e6:,.0f}"]
        cells += [f"{of:.2f}" for of in (read, kept, took)]
        cells += [f"{took / kept:.1f}×", f"{weights / 1e6:,.0f}", f"{peak:.2f}", f"{after:.2f}"]
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Measure what is asked for, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loading")
    parser.add_argument("models", nargs="*", metavar="MODEL")
    made = [form for form in FORMATS if form not in GGUF]
    parser.add_argument("--formats", nargs="+", choices=["plain", *made], default=[])
    parser.add_argument("--out", type=Path, default=machine_folder(), help="folder for the results")
    given = parser.parse_args(argv)
    path = given.out / "loading.json"
    known = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = {row["model"]: row for row in known}
    models = given.models or ([] if given.formats else ["smollm2"])
    with tempfile.TemporaryDirectory() as work:
        named = {Path(model).name: model for model in models}
        if given.formats:
            plain = weights_for(SHAPE, Path(work), torch.bfloat16)
            named |= {
                f"{SHAPE}, {form}": plain
                if form == "plain"
                else str(checkpoint(SHAPE, plain, form))
                for form in given.formats
            }
        for says, model in named.items():
            rows[says] = measure(says, model)
            results = {"machine": machine(), "rows": list(rows.values())}
            keep_results(given.out, "loading", results, markdown(results["rows"], machine()))
    return 0


if __name__ == "__main__":
    run_command(main)
