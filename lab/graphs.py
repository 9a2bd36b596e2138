"""Measure kernel fusion, and steps that are replayed: tapes on a CPU, CUDA graphs (a chapter)."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

import torch

from engine.kernels import TORCH, kernels_for
from engine.trace.events import GraphCaptured
from engine.worker.graphs.step_graphs import StepGraphs
from lab.chapter import CannotShow, Chapter, Expectation, Outcome, quantity
from lab.drawings import Bar, Bars, Lines, Series
from lab.limits import best_seconds
from lab.operations import operations_of
from lab.spread import compared
from lab.workbench import Job, Run, Workbench

REPEAT = 200  # calls that are timed together: one alone is shorter than the clock can measure
STEPS = 24  # decode steps of a run
CHAIN = 100  # kernels in a row, for the graph
EPS = 1e-5


def _rows(bench: Workbench) -> list[int]:
    return [1, 16, 256, 4096]


def _width(bench: Workbench) -> int:
    return bench.description.hidden_size


def _numbers(bench: Workbench, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Make x: [rows, width], weight: [width]."""
    x = torch.randn(rows, _width(bench)).to(bench.device, bench.dtype)
    return x, torch.ones_like(x[0])


def _call_seconds(bench: Workbench) -> float:
    """Measure what calling one torch operation costs: a sum of two numbers.

    The call costs the same whatever is computed.
    """
    x = torch.ones(1, dtype=bench.dtype, device=bench.device)
    return best_seconds(lambda: [x + x for _ in range(REPEAT)], bench.device) / REPEAT


def _fused(bench: Workbench) -> bool:
    return kernels_for(bench.device) is not TORCH


def predict(bench: Workbench) -> list[Expectation]:
    replays = bench.runner.graphs is not None
    if not _fused(bench) and not replays and bench.device.type != "cuda":
        raise CannotShow("no fused kernels could be built here, and there is no GPU")
    call = _call_seconds(bench)
    rows, width = _rows(bench)[-1], _width(bench)
    expectations = []
    if _fused(bench):
        x, weight = _numbers(bench, rows)
        separate = operations_of(lambda: TORCH.add_rms_norm(x, x.clone(), weight, EPS))
        fused_bytes = 4 * x.nbytes
        expectations += [
            Expectation(
                "separate", "x + residual, then its norm: one token", separate.number * call, "s",
                f"torch makes {separate.number} operations of it, and calling one takes"
                f" {quantity(call, 's')}",
            ),
            Expectation("fused", "both in one kernel: one token", call, "s", "one call"),
            Expectation(
                "gain", f"gain of fusing at {rows:,} tokens",
                separate.touched_bytes / fused_bytes, "×",
                f"{quantity(separate.touched_bytes, 'B')} read and written in all operations;"
                f" fused: two tensors of {width} numbers a token read, two written,"
                f" {quantity(fused_bytes, 'B')}",
            ),
        ]  # fmt: skip
    if replays:
        num_bytes = bench.loaded.num_bytes
        expectations.append(
            Expectation(
                "replayed", "a decode step, replayed: time, at least",
                bench.limits.least_s(num_bytes, 2 * bench.loaded.num_parameters), "s",
                f"all weights are read once, {quantity(num_bytes, 'B')} at"
                f" {quantity(bench.limits.read_gb_s, 'GB/s')}; from caches it may take less",
            )
        )  # fmt: skip
    if bench.device.type == "cuda":
        expectations.append(
            Expectation(
                "launches", f"{CHAIN} small kernels, launched one by one", CHAIN * call, "s",
                f"launching takes {quantity(call, 's')} each, computing next to nothing",
            )
        )  # fmt: skip
    return expectations


@torch.inference_mode()
def run(bench: Workbench) -> Outcome:
    outcome = Outcome()
    if _fused(bench):
        _run_fusion(bench, outcome)
    else:
        outcome.not_shown.append("fusion: this device computes with torch's own operations")
    if bench.runner.graphs is not None:
        _run_replay(bench, outcome)
    else:
        outcome.not_shown.append("steps that are replayed: this model's can't be captured here")
    if bench.device.type == "cuda":
        _run_graph(bench, outcome)
    return outcome


def _run_replay(bench: Workbench, outcome: Outcome) -> None:
    """Decode with each kernel launched from Python, and with the step replayed, in turns."""
    runner, graphs = bench.runner, bench.runner.graphs
    job = Job("replay", bench.prompt(16), STEPS)

    def way(used: StepGraphs | None) -> Run:
        runner.graphs = used
        try:
            return bench.run([[job]])
        finally:
            runner.graphs = graphs

    way(graphs)  # captures what later runs replay
    tries = bench.tries({"launched": partial(way, None), "replayed": partial(way, graphs)})
    seconds = {name: [_step_seconds(run) for run in runs] for name, runs in tries.items()}
    launched, replayed = seconds.values()
    outcome.measured["replayed"] = statistics.median(replayed)
    outcome.tries["replayed"] = replayed
    name = "as a CUDA graph" if bench.device.type == "cuda" else "from a tape"
    outcome.findings.append(
        "a decode step of this model: "
        + compared("each kernel launched from Python", launched, name, replayed)
    )
    outcome.drawings.append(
        Bars(
            "A decode step of one request, with the lowest and the highest try", "s",
            [
                Bar(label, [(statistics.median(values), i)], spread=(min(values), max(values)))
                for i, (label, values) in enumerate((("launched", launched), (name, replayed)))
            ],
        )
    )  # fmt: skip


def _step_seconds(run: Run) -> float:
    return statistics.median(step.finished.total_us for step in run.steps[1:]) / 1e6


def _run_fusion(bench: Workbench, outcome: Outcome) -> None:
    kernels = kernels_for(bench.device)
    points: dict[str, list[tuple[float, float]]] = {"separate": [], "fused": []}
    for rows in _rows(bench):
        x, weight = _numbers(bench, rows)
        residual = x.clone()
        repeat = max(1, REPEAT // rows)
        for name, table in (("separate", TORCH), ("fused", kernels)):
            call = partial(table.add_rms_norm, x, residual, weight, EPS)
            seconds = best_seconds(partial(_repeated, call, repeat), bench.device)
            points[name].append((rows, seconds / repeat))
    separate, fused = points["separate"], points["fused"]
    outcome.measured.update(
        separate=separate[0][1], fused=fused[0][1], gain=separate[-1][1] / fused[-1][1]
    )
    outcome.findings.append(
        f"{kernels.name} against torch: {quantity(separate[0][1] / fused[0][1], '×')} as fast for"
        f" one token, {quantity(separate[-1][1] / fused[-1][1], '×')} for"
        f" {separate[-1][0]:,}; a layer of the model does this twice"
    )
    outcome.drawings.append(
        Lines(
            "Residual sum and norm, separate and fused", "tokens", "seconds",
            [Series(name, line) for name, line in points.items()], log_x=True, log_y=True,
        )
    )  # fmt: skip


def _repeated(call: Callable[[], object], times: int) -> None:
    for _ in range(times):
        call()


def _run_graph(bench: Workbench, outcome: Outcome) -> None:
    """Compare a chain of small kernels launched by Python with the same chain as one graph."""
    x = torch.ones(1, dtype=bench.dtype, device=bench.device)

    def chain() -> None:
        for _ in range(CHAIN):
            x.add_(1)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        chain()  # a capture must be preceded by a warm run on another stream
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        chain()
    eager = best_seconds(chain, bench.device)
    replayed = best_seconds(graph.replay, bench.device)
    outcome.measured["launches"] = eager
    captured = [e for e in bench.start_events if isinstance(e, GraphCaptured)]
    own = (
        f"the engine itself captured {len(captured)} graphs when it started"
        if captured
        else "the engine itself captured no graphs when it started"
    )
    outcome.findings.append(
        f"replayed as one graph the {CHAIN} kernels take {quantity(replayed, 's')},"
        f" {quantity(eager / replayed, '×')} as fast; {own}"
    )
    bars = [Bar("one by one", [(eager, 0)]), Bar("as a graph", [(replayed, 1)])]
    outcome.drawings.append(Bars(f"{CHAIN} small kernels", "s", bars))


CHAPTER = Chapter(
    "graphs",
    "Fusion and replayed steps: fewer, larger calls",
    "A small model spends much of a step not on computing but on telling the device what to do."
    " A fused kernel does in one call, and in fewer passes over memory, what took several. A step's"
    " calls are also the same each time, so they are captured once and replayed as one: a tape on a"
    " CPU, a CUDA graph on a GPU.",
    predict,
    run,
    "engine/kernels/__init__.py",
    "which implementation computes on which device",
)
