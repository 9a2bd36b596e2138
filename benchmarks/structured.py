"""Measure what a grammar costs: the same requests with a schema and without one.

    python -m benchmarks.structured [--shapes pocket smollm2-135m] [--requests 1 16] [--threads 1]

Both decode as many tokens, in turn, and each turn gives ratios. Tokens that the schema forces come
several a step. The form is a long list of small records with texts, numbers and choices, which
never ends before the requests' last token. A step that gives several tokens of a sequence may take
longer, so what a reader of a stream feels is measured too: how long its tokens wait for the one
before them, which is no time where both came together.

A p99 is that of each turn by itself, and of these the median. With some hundred steps a turn, one
step that is slow in every request counts, as it must. A moment in which the machine took a core
away, for several times a small model's step, counts in its turn only.

On a busy machine only the CPU time with one thread means anything: waiting threads spin, and count.
Writes `structured.json` and `structured.md` into the machine's folder of `results/`.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.machine import busy_cores, cpu_name
from benchmarks.machine_folder import machine_folder
from benchmarks.run_engine import Engine, compiled
from benchmarks.shapes import shape, weights_for
from benchmarks.workloads import SCHEMA
from engine.core.messages import CoreRequest
from engine.sampling_params import SamplingParams
from engine.trace.command import run_command
from engine.trace.events import SampleDrawn, StepFinished

PROMPT = 32
WARM_UP = 20  # steps of a run, from its first, that aren't counted
SHAPES = ("pocket", "smollm2-135m")
TEMPERATURE = 0.8
WITHOUT, WITH = "without", "with"
PARTS = ("schedule_us", "prepare_us", "forward_us", "sample_us", "update_us")


class Measured(NamedTuple):
    """Hold one run: its steps from the first warm one on, and its CPU seconds a token."""

    steps: list[StepFinished]
    cpu_s: float
    waits_us: list[float]  # of each token, for the one before it in its sequence

    @property
    def tokens(self) -> int:
        return sum(step.num_sampled for step in self.steps)

    @property
    def us_a_token(self) -> float:
        return sum(step.total_us for step in self.steps) / self.tokens


class Case:
    """Hold one engine, and the schema compiled for its model."""

    def __init__(self, name: str, path: str, output: int, **options: Any):
        self.engine = Engine(path, "bfloat16", **options)
        self.output, self.requests = output, 1
        self.compiled = compiled(self.engine, path, SCHEMA)
        self.vocab_size = shape(name).vocab_size
        self._runs = 0

    def _compute(self, held: bool, full: bool = False) -> tuple[float, list[tuple[int, list[int]]]]:
        """Compute all requests once, with the schema or without.

        Return the CPU seconds, and of each step when it ended and the tokens of each sequence.
        """
        core, draw = self.engine.core, random.Random(0)
        self._runs += 1
        for i in range(self.requests):
            params = SamplingParams(
                temperature=TEMPERATURE, max_tokens=self.output, ignore_eos=True, seed=i
            )
            request = CoreRequest(
                request_id=f"{self._runs}-{i}",
                prompt_token_ids=[draw.randrange(10, self.vocab_size) for _ in range(PROMPT)],
                params=params,
                trace_full=full,
            )
            core.add_request(request, self.compiled if held else None)
        with self.engine.looping():
            ends: list[tuple[int, list[int]]] = []
            began = time.process_time()
            while core.has_work:
                news = core.step()
                ends.append((time.perf_counter_ns(), [len(one.token_ids) for one in news]))
            return time.process_time() - began, ends

    def run(self, held: bool) -> Measured:
        self.engine.events()
        cpu_s, ends = self._compute(held)
        steps = [e for e in self.engine.events() if isinstance(e, StepFinished)]
        cpu_s /= sum(step.num_sampled for step in steps)
        return Measured(steps[WARM_UP:], cpu_s, waits(ends[WARM_UP - 1 :]))

    def forbidden(self) -> dict[str, float]:
        """Return what the grammar allows and takes, per draw."""
        self.engine.events()
        self._compute(True, full=True)
        draws = [e for e in self.engine.events() if isinstance(e, SampleDrawn)]
        return {
            "allowed": statistics.median(draw.num_allowed for draw in draws),
            "only_one": sum(draw.num_allowed == 1 for draw in draws) / len(draws),
            "removed": statistics.mean(draw.removed for draw in draws),
        }


def p99(values: list[float]) -> float:
    """Return what one value in a hundred exceeds."""
    return sorted(values)[int(len(values) * 0.99)]


def slowest(run: Measured) -> dict[str, float]:
    """Return the p99 of a run's steps and of its tokens' waits, in µs."""
    return {"p99": p99([step.total_us for step in run.steps]), "p99_wait": p99(run.waits_us)}


def waits(ends: list[tuple[int, list[int]]]) -> list[float]:
    """Return the µs that each token waited for the one before it in its sequence.

    ends: of each step when it ended, in nanoseconds, and how many tokens each sequence got, which
    is at least one from the first step to the sequence's end.
    """
    found: list[float] = []
    for (before, _), (now, counts) in pairwise(ends):
        for count in counts:
            found += [(now - before) / 1e3, *[0.0] * (count - 1)]
    return found


def described(runs: list[Measured]) -> dict[str, float]:
    """Describe runs of one way by medians."""
    steps = [step for run in runs for step in run.steps]
    parts = {part: statistics.median(getattr(step, part) for step in steps) for part in PARTS}
    return {
        **parts,
        "total_us": statistics.median(step.total_us for step in steps),
        "p99_us": statistics.median(slowest(run)["p99"] for run in runs),
        "p99_wait_us": statistics.median(slowest(run)["p99_wait"] for run in runs),
        "tokens_s": statistics.median(1e6 / run.us_a_token for run in runs),
        "cpu_us_a_token": statistics.median(run.cpu_s for run in runs) * 1e6,
        "tokens_a_step": sum(run.tokens for run in runs) / len(steps),
    }


def compare(case: Case, pairs: int) -> dict[str, Any]:
    """Run without the schema and with it, `pairs` times after one that warms up."""
    runs: dict[str, list[Measured]] = {WITHOUT: [], WITH: []}
    for pair in range(pairs + 1):
        for way in list(runs)[:: 1 if pair % 2 else -1]:
            measured = case.run(way == WITH)
            if pair:
                runs[way].append(measured)
    found: dict[str, Any] = {way: described(of) for way, of in runs.items()}
    both = list(zip(*runs.values()))
    found["ratio"] = statistics.median(a.us_a_token / b.us_a_token for a, b in both)
    found["cpu_ratio"] = statistics.median(a.cpu_s / b.cpu_s for a, b in both)
    for name in ("p99", "p99_wait"):
        found[f"{name}_ratio"] = statistics.median(
            slowest(b)[name] / slowest(a)[name] for a, b in both
        )
    return found


def measure(
    names: list[str], requests: list[int], pairs: int, output: int, threads: int
) -> list[dict[str, Any]]:
    """Return one line for each shape and number of requests."""
    lines = []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            path = weights_for(name, Path(folder), torch.bfloat16)
            case = Case(name, path, output, cpu_threads=threads)
            for case.requests in requests:
                given = {"shape": name, "requests": case.requests, "threads": threads}
                found = {**case.forbidden(), **compare(case, pairs)}
                lines.append({**given, "output": output, "busy": busy_cores(), **found})
                print(json.dumps(lines[-1]), flush=True)
            case.engine.close()
    return lines


def markdown(lines: list[dict[str, Any]]) -> str:
    """Write the tables of docs/performance/."""
    out = [
        f"Measured on {cpu_name()}, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}"
        f" by `python -m benchmarks.structured`: requests at temperature {TEMPERATURE}"
        " in bf16, in turn without a schema and with one, whose forced tokens come several a step."
        " Ratios are tokens for the same time, against without, on the clock and in CPU time; of"
        " p99, with over without. Ratios and p99 are medians over turns. Where other programs kept"
        " cores busy, only CPU time with one thread says something.",
        "",
        "| shape | requests | threads | cores busy afterwards | schema | tokens/s | on the clock"
        " | CPU time | µs of CPU a token | tokens a step | p99 of a step, ms"
        " | p99 between a stream's tokens, ms |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        for way in (WITHOUT, WITH):
            one, clock, cpu = line[way], "", ""
            p99, wait = f"{one['p99_us'] / 1e3:.1f}", f"{one['p99_wait_us'] / 1e3:.1f}"
            if way == WITH:
                clock, cpu = f"{line['ratio']:.2f}", f"{line['cpu_ratio']:.2f}"
                p99 += f" ({line['p99_ratio']:.2f}×)"
                wait += f" ({line['p99_wait_ratio']:.2f}×)"
            out.append(
                f"| {line['shape']} | {line['requests']} | {line['threads'] or 'all'}"
                f" | {line['busy']:.1f} | {way}"
                f" | {one['tokens_s']:,.0f} | {clock} | {cpu} | {one['cpu_us_a_token']:,.0f}"
                f" | {one['tokens_a_step']:.1f} | {p99} | {wait} |"
            )
    out += ["", "What the grammar does, and where the time of a step goes (median µs):", ""]
    out += [
        "| shape | requests | allowed tokens, median | only one | probability removed | schema"
        " | schedule | prepare | forward | sample | book | whole step |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        for way in (WITHOUT, WITH):
            cells = " | ".join(f"{line[way][part]:,.0f}" for part in (*PARTS, "total_us"))
            does = (
                " |  | " if way == WITHOUT else f"{line['allowed']:,.0f} | {line['only_one']:.0%}"
            )
            does += "" if way == WITHOUT else f" | {line['removed']:.0%}"
            out.append(f"| {line['shape']} | {line['requests']} | {does} | {way} | {cells} |")
    return "\n".join(out) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--requests", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--output", type=int, default=160, help="tokens of each request")
    parser.add_argument("--threads", type=int, default=0, help="of the kernels; 0: one for a core")
    options = parser.parse_args()
    lines = measure(
        options.shapes, options.requests, options.pairs, options.output, options.threads
    )
    folder = machine_folder()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "structured.json").write_text(json.dumps(lines, indent=1) + "\n")
    (folder / "structured.md").write_text(markdown(lines))
    print(markdown(lines))


if __name__ == "__main__":
    run_command(main)
