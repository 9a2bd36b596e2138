"""Hold "what if" against reality: `python -m benchmarks.what_if [--repeats N] [-o FILE]`.

Five loads on the pocket model. Each runs with some settings and with others, in turns; the record
of the first is asked what the second will do, and the answer stands beside what it did. All run in
this process, over one loaded model, on one thread. Arrivals come by the clock, whatever the engine
does. The clock is the thread's processor time, which other programs stop but don't lengthen much;
while there is nothing to compute it jumps to the next arrival. `--wall` takes the wall clock.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from benchmarks.machine import cpu_name
from engine.config import EngineConfig
from engine.core.engine_core import EngineCore
from engine.core.messages import CoreRequest, KVShape, StepOutput, StepPlan
from engine.sampling_params import SamplingParams
from engine.trace import events as ev
from engine.trace.command import run_command
from engine.trace.events import Event
from engine.trace.files import read_all, to_jsonl
from engine.trace.recorder import Recorder
from engine.whatif.measures import COUNTS, measure
from engine.whatif.rerun import what_if
from engine.whatif.step_times import Shape, observed
from engine.worker.model_runner import ModelRunner

BLOCKS, SEATS, LONGEST = 600, 64, 1024
WITHIN = {"counts": 0.10, "times": 0.25}
"""How far a prediction may be from what happened, to be counted as right."""
NAMES = ("first", "other")
FEWEST = 5  # steps of one shape in each record, to compare the machine's speed


@dataclass(frozen=True)
class Asked:
    """State one request: when it comes, and its lengths; requests of one family begin alike."""

    at_s: float
    prompt: int
    output: int
    shared: int = 0  # tokens that it has in common with its family
    family: int = 0


@dataclass(frozen=True)
class Load:
    """State a load, the settings of its record, and those that are asked for."""

    name: str
    asked: list[Asked]
    first: dict[str, Any]
    other: dict[str, Any]


def loads(seed: int = 7) -> list[Load]:
    """Return the five loads; arrivals are a Poisson process but for the burst."""
    draw = random.Random(seed)

    def arriving(count: int, rate: float) -> list[float]:
        now, times = 0.0, []
        for _ in range(count):
            now += draw.expovariate(rate)
            times.append(now)
        return times

    def chat(at: float) -> Asked:
        return Asked(at, draw.randrange(20, 120), draw.randrange(16, 64))

    shared = [
        Asked(at, 120 + draw.randrange(8, 40), draw.randrange(8, 24), 112, draw.randrange(6))
        for at in arriving(120, 200.0)
    ]
    mixed = [
        Asked(at, draw.choice([16, 16, 16, 600]), draw.randrange(24, 48))
        for at in arriving(60, 50.0)
    ]
    return [
        Load("fewer seats", [chat(at) for at in arriving(100, 120.0)],
             {"max_num_seqs": 16}, {"max_num_seqs": 4}),
        Load("smaller pool", [chat(at) for at in arriving(100, 120.0)],
             {"num_gpu_blocks": 300}, {"num_gpu_blocks": 36}),
        Load("shared beginnings, smaller pool", shared,
             {"num_gpu_blocks": 300}, {"num_gpu_blocks": 48}),
        Load("smaller budget", mixed,
             {"max_num_batched_tokens": 1024}, {"max_num_batched_tokens": 128}),
        Load("burst, more seats", [chat(0.0) for _ in range(64)],
             {"max_num_seqs": 8}, {"max_num_seqs": 32}),
    ]  # fmt: skip


class ProcessorClock:
    """Give this thread's processor time in nanoseconds, plus the time that was skipped."""

    def __init__(self) -> None:
        self.skipped_ns = 0

    def __call__(self) -> int:
        return time.thread_time_ns() + self.skipped_ns

    def skip(self, ns: int) -> None:
        self.skipped_ns += ns


class WallClock:
    """Give CLOCK_MONOTONIC in nanoseconds; what is to be skipped is slept."""

    def __call__(self) -> int:
        return time.monotonic_ns()

    def skip(self, ns: int) -> None:
        time.sleep(ns / 1e9)


class _Pool:
    """Present the worker to a core that uses only some of its blocks."""

    def __init__(self, runner: ModelRunner, num_blocks: int):
        self.kv: KVShape = _smaller(runner.kv, num_blocks)
        self._runner = runner

    def execute(self, plan: StepPlan) -> StepOutput:
        output = self._runner.execute(plan)
        output.done_ns = 0  # by another clock
        return output


def _smaller(kv: KVShape, num_blocks: int) -> KVShape:
    fields = {name: getattr(kv, name) for name in kv.__struct_fields__}
    return KVShape(**{**fields, "num_blocks": num_blocks})


class Bench:
    """Hold one loaded model."""

    def __init__(self, clock: ProcessorClock | WallClock) -> None:
        self.clock = clock
        self.config = EngineConfig(
            num_gpu_blocks_override=BLOCKS, max_num_seqs=SEATS, max_model_len=LONGEST,
            max_num_batched_tokens=1024, swap_space=0.05, cpu_threads=1,
        )  # fmt: skip
        torch.set_num_threads(1)  # two threads wait for each other where others run
        self.recorder = Recorder("steps", clock=clock, thread=False)
        self.runner = ModelRunner(self.config, self.recorder)
        self.runner.load()
        self.number = 0

    def record(self, load: Load, settings: dict[str, Any]) -> list[Event]:
        """Run a load, and return its record."""
        settings = dict(settings)
        pool = _Pool(self.runner, settings.pop("num_gpu_blocks", BLOCKS))
        config = dataclasses.replace(self.config, **settings, async_scheduling=False)
        events: list[Event] = []
        self.recorder.flush()
        self.recorder.subscribe(events.extend)
        self.recorder.record(ev.EngineStarted(config=config.public()))
        kv = pool.kv
        self.recorder.record(
            ev.EngineKvSized(
                num_blocks=kv.num_blocks, num_host_blocks=kv.num_host_blocks,
                block_size=kv.block_size, bytes_per_block=kv.bytes_per_block,
                max_model_len=kv.max_model_len, swap_us_per_block=kv.swap_us_per_block,
            )
        )  # fmt: skip
        core = EngineCore(config, pool, self.recorder)
        self.number += 1
        self._drive(core, load)
        core.close()
        self.recorder.flush()
        self.recorder.unsubscribe(events.extend)
        names = list(core.scheduler.worker_rows.dropped)
        self.runner.execute(StepPlan(step=0, rows=[], dropped=names))
        return events

    def _drive(self, core: EngineCore, load: Load) -> None:
        requests = [self._request(i, asked) for i, asked in enumerate(load.asked)]
        started, coming = self.clock(), 0
        while coming < len(requests) or core.has_work:
            now_s = (self.clock() - started) / 1e9
            while coming < len(requests) and load.asked[coming].at_s <= now_s:
                core.add_request(requests[coming])
                coming += 1
            if core.has_work:
                core.step()
            elif coming < len(requests):
                self.clock.skip(max(0, round((load.asked[coming].at_s - now_s) * 1e9)))

    def _request(self, index: int, asked: Asked) -> CoreRequest:
        common = [3 + (asked.family * 37 + i * 11) % 900 for i in range(asked.shared)]
        own = [3 + (index * 131 + i * 17) % 900 for i in range(asked.prompt - asked.shared)]
        return CoreRequest(
            request_id=f"{self.number}-{index}",
            prompt_token_ids=common + own,
            params=SamplingParams(
                max_tokens=asked.output, ignore_eos=True, temperature=0.0, seed=0
            ),
        )


Pair = tuple[list[Event], list[Event]]
"""The records of one turn: with the first settings, and with the others."""


class Compared(NamedTuple):
    """Hold one measure: medians over the repeats, and how far the repeats are from each other."""

    name: str
    recorded: float  # with the first settings
    predicted: float  # for the others
    happened: float  # with those, really
    error: float  # of a prediction against the run that followed its record
    apart: float  # the same real run, again: median relative distance from its median
    changed: float  # by how much the machine's speed changed within a pair

    @property
    def kind(self) -> str:
        return "counts" if self.name in COUNTS else "times"

    @property
    def within(self) -> bool:
        return abs(self.error) <= WITHIN[self.kind]

    @property
    def unknowable(self) -> bool:
        """Return whether the machine changed by as much as a prediction may be off."""
        return max(self.apart, self.changed) > WITHIN[self.kind]


def relative(value: float, to: float) -> float:
    """Return by how much a value exceeds another one; what should be nothing, but isn't: 100 %."""
    return value / to - 1 if to else float(value > 0)


def run_pairs(bench: Bench, load: Load, repeats: int) -> list[Pair]:
    """Run a load with both settings in turns; return the records of each turn."""
    for settings in (load.first, load.other):
        bench.record(load, settings)  # captures what it will replay
    return [
        (bench.record(load, load.first), bench.record(load, load.other)) for _ in range(repeats)
    ]


def compare(load: Load, pairs: Sequence[Pair]) -> list[Compared]:
    """Ask each record of the first settings what the others will do, beside what they did."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for first, other in pairs:
        answer = what_if(first, load.other)
        predicted, recorded = answer.other.rows(), answer.recorded.rows()
        happened = measure(other).rows()
        for name, value in predicted.items():
            found.setdefault(name, []).append((recorded[name], value, happened[name]))
    changed = median(abs(speed(*pair) - 1) for pair in pairs)
    compared = []
    for name, rows in found.items():
        recorded_, predicted_, happened_ = (median(column) for column in zip(*rows))
        # A machine that gets slower does so for both of a pair, which ran right after each other.
        error = median(relative(predicted, happened) for _, predicted, happened in rows)
        apart = median(abs(relative(happened, happened_)) for *_, happened in rows)
        compared.append(Compared(name, recorded_, predicted_, happened_, error, apart, changed))
    return compared


def speed(first: Sequence[Event], other: Sequence[Event]) -> float:
    """Return how long steps of the same shape took in the other record, relative to the first one.

    1 if no shape occurs often enough in both.
    """
    times: list[dict[Shape, list[float]]] = []
    for events in (first, other):
        by_shape: dict[Shape, list[float]] = {}
        for shape, us in observed(events):
            by_shape.setdefault(shape, []).append(us)
        times.append({shape: found for shape, found in by_shape.items() if len(found) >= FEWEST})
    ratios = [
        median(times[1][shape]) / median(times[0][shape]) for shape in {*times[0]} & {*times[1]}
    ]
    return median(ratios) if ratios else 1.0


class Kept(NamedTuple):
    """Hold the records of every load, and of what machine and by which clock they are."""

    about: dict[str, str]
    pairs: list[list[Pair]]

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "about.json").write_text(json.dumps(self.about) + "\n")
        for number, pairs in enumerate(self.pairs):
            for turn, pair in enumerate(pairs):
                for name, events in zip(NAMES, pair, strict=True):
                    (folder / f"{number}-{name}-{turn}.jsonl").write_bytes(to_jsonl(events))

    @classmethod
    def read(cls, folder: Path) -> Kept:
        """Read what `write` wrote. Raises OSError, RecordError."""
        about = json.loads((folder / "about.json").read_text())
        pairs = [
            [
                tuple(read_all(first.with_name(f"{number}-{name}-{turn}.jsonl")) for name in NAMES)
                for turn, first in enumerate(sorted(folder.glob(f"{number}-{NAMES[0]}-*.jsonl")))
            ]
            for number in range(len(loads()))
        ]
        return cls(about, pairs)  # type: ignore[arg-type]


def page(
    results: Sequence[tuple[Load, list[Compared]]], repeats: int, about: dict[str, str]
) -> str:
    """Write the results as a page: the verdict, then a table a load."""
    rows = [row for _load, compared in results for row in compared]
    lines = [
        "# What if, held against reality\n",
        f"`python -m benchmarks.what_if`, {repeats} repeats, pocket model, one thread of an"
        f" {about['cpu']}, by the {about['clock']}. A record of the first settings is asked what"
        " the others will do; what they did when they ran right after it stands beside the answer."
        " *error* is the median over these pairs, *the same run again* how far its repeats lie from"
        " their median.\n",
        f"{_verdict(rows)}\n",
        "What can't be known: how fast the machine will be a moment later (steps of the same shape,"
        " in two runs one after the other, say how much that was), and steps of a kind that the"
        " record doesn't have (with a full cache it has only short prompts, so the cost of long"
        " ones is extrapolated). Near the load that a machine can just serve, a queue makes much"
        " of little: 10 % in a step's time may double the time to first token.",
    ]
    for load, compared in results:
        lines += [
            f"\n**{load.name}**: {load.first} → {load.other}, {len(load.asked)} requests; steps of"
            f" the same shape took {compared[0].changed:.0%} more or less in the next run\n",
            "| | recorded | predicted | happened | error | the same run again |",
            "|---|---|---|---|---|---|",
            *map(_row, compared),
        ]
    return "\n".join(lines) + "\n"


def _verdict(rows: Sequence[Compared]) -> str:
    parts = []
    for kind, limit in WITHIN.items():
        of_kind = [row for row in rows if row.kind == kind]
        missed = [row for row in of_kind if not row.within]
        said = f"{kind} within {limit:.0%}: {len(of_kind) - len(missed)} of {len(of_kind)}"
        if missed:
            unknowable = sum(row.unknowable for row in missed)
            said += f" ({unknowable} of {len(missed)} beyond, where the machine changed as much)"
        parts.append(said)
    return "; ".join(parts).capitalize() + "."


def _row(row: Compared) -> str:
    digits = 0 if row.kind == "counts" else 2
    numbers = (row.recorded, row.predicted, row.happened)
    shown = " | ".join(f"{number:,.{digits}f}" for number in numbers)
    error = f"{row.error:+.0%}" if row.within else f"**{row.error:+.0%}**"
    return f"| {row.name} | {shown} | {error} | ± {row.apart:.0%} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Print one table a load: the error of each prediction, and that of the same run again."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.what_if", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--wall", action="store_true", help="by the wall clock")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="write the records here")
    parser.add_argument(
        "--again", type=Path, metavar="FOLDER", help="judge the records that --keep wrote"
    )
    parser.add_argument("-o", "--output", type=Path, help="write the page here, too")
    arguments = parser.parse_args(argv)
    if arguments.again is not None:
        kept = Kept.read(arguments.again)
    else:
        bench = Bench(WallClock() if arguments.wall else ProcessorClock())
        clock = "wall clock" if arguments.wall else "thread's processor time"
        pairs = [run_pairs(bench, load, arguments.repeats) for load in loads()]
        bench.recorder.close()
        kept = Kept({"cpu": cpu_name(), "clock": clock}, pairs)
    if arguments.keep is not None:
        kept.write(arguments.keep)
    results = [(load, compare(load, pairs)) for load, pairs in zip(loads(), kept.pairs)]
    text = page(results, len(kept.pairs[0]), kept.about)
    print(text, end="")
    if arguments.output is not None:
        arguments.output.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    run_command(main)
