"""Measure speed on the device beside what bandwidth allows: random weights in real shapes."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, PretrainedConfig

from benchmarks.gpu.limits import Limits
from benchmarks.run_engine import Engine
from benchmarks.shapes import shape as known_shape
from benchmarks.workloads import Job, Workload
from engine.kernels.launch import recording
from engine.trace.events import Event, KernelLaunched, StepFinished
from engine.trace.recorder import Recorder

SHAPES: dict[str, PretrainedConfig] = {
    "llama-2-7b": LlamaConfig(dtype="bfloat16"),  # transformers' defaults are this model
    "llama-3.2-1b": LlamaConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    ),
    "qwen3-0.6b": known_shape("qwen3-0.6b"),
    "opt-125m": known_shape("opt-125m"),
    "tiny": LlamaConfig(
        vocab_size=199,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
    ),
}


@dataclass(frozen=True)
class Case:
    """Describe a line of the table.

    `jobs` requests, lengths drawn uniformly from the two ranges.
    """

    shape: str
    jobs: int
    lengths_in: tuple[int, int]
    lengths_out: tuple[int, int]
    wanted: float | None = None  # share of the limit


CASES = [
    Case("llama-3.2-1b", 1, (32, 32), (256, 256), wanted=0.70),
    Case("qwen3-0.6b", 256, (100, 1024), (100, 1024), wanted=0.60),
    Case("llama-2-7b", 1, (32, 32), (256, 256), wanted=0.85),
    *(Case("opt-125m", jobs, (32, 256), (32, 256)) for jobs in (1, 5, 32, 256)),
]
TINY_CASES = [Case("tiny", 1, (5, 5), (4, 4), wanted=0.5), Case("tiny", 3, (3, 9), (2, 5))]
OFF_AND_STEPS = 7  # runs at each level, one after the other


def make_jobs(
    vocab_size: int, count: int, lengths_in: tuple[int, int], lengths_out: tuple[int, int]
) -> list[Job]:
    """Draw all prompts first, then all lengths of answers, from seed 0.

    Token ids go up to 10,000. So 256 requests of 100 to 1024 are the workload known by its 133,966
    output tokens.
    """
    draw = random.Random(0)
    last = min(10_000, vocab_size - 1)
    prompts = [
        [draw.randint(0, last) for _ in range(draw.randint(*lengths_in))] for _ in range(count)
    ]
    return [Job(prompt, draw.randint(*lengths_out)) for prompt in prompts]


def start(case: Case, device: torch.device, folder: Path, **options: object) -> Engine:
    """Start an engine with random weights of the case's shape."""
    shape = SHAPES[case.shape]
    where = folder / case.shape
    shape.save_pretrained(where)
    if not shape.architectures:  # a configuration that no model saved names none
        shape.architectures = [f"{type(shape).__name__.removesuffix('Config')}ForCausalLM"]
        shape.save_pretrained(where)
    tiny = {"num_gpu_blocks_override": 64, "swap_space": 0.0} if case.shape == "tiny" else {}
    return Engine(
        str(where), "bfloat16", device=device.type, load_format="dummy", **{**tiny, **options}
    )


def workload(case: Case) -> Workload:
    vocab_size = SHAPES[case.shape].vocab_size
    return Workload("run", "", make_jobs(vocab_size, case.jobs, case.lengths_in, case.lengths_out))


def stop(engine: Engine) -> None:
    """Free its memory: call with the last reference but the caller's own."""
    engine.close()
    engine.core = None
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def run_cases(
    cases: list[Case], device: torch.device, limits: Limits, folder: Path
) -> Iterator[dict]:
    """Return a result for each case; all have the same shape, and share an engine."""
    engine = start(cases[0], device, folder)
    for case in cases:
        yield _run_case(case, engine, limits)
    stop(engine)


def _run_case(case: Case, engine: Engine, limits: Limits) -> dict:
    """Measure tokens per second, and the time that reading weights and keys alone would take.

    By the device's own clock: computing_share, of the time, that it computed steps; decode_step_us,
    the median of steps without prompts; prompts_share, of the time, steps with prompts.
    """
    shape, dtype, work = SHAPES[case.shape], torch.bfloat16, workload(case)
    jobs = work.jobs
    engine.run(Workload("warm", "", [Job(jobs[0].prompt, min(8, jobs[0].num_output))]))
    engine.events()
    result = engine.run(work)
    decodes: list[float] = []
    prompts: list[float] = []
    for e in engine.events():
        if isinstance(e, StepFinished):
            kind = decodes if e.num_decode_tokens == e.num_tokens else prompts
            kind.append(e.forward_us + e.sample_us)
    runner = engine.core.executor
    weights = sum(p.nbytes for p in runner.model.parameters())
    if not shape.tie_word_embeddings:  # a step reads only single lines of the input's table
        weights -= shape.vocab_size * shape.hidden_size * dtype.itemsize
    per_token = sum(2 * kv.num_kv_heads * kv.head_dim for kv in runner.model.kv_spec)
    contexts = sum(sum(range(len(job.prompt), len(job.prompt) + job.num_output)) for job in jobs)
    longest = max(job.num_output for job in jobs)
    least = (longest * weights + contexts * per_token * dtype.itemsize) / limits.copy_gb_s / 1e9
    ends = sorted(result.ends_s)
    output = sum(job.num_output for job in jobs)
    return {
        "shape": case.shape,
        "requests": case.jobs,
        "output_tokens": output,
        "tokens_per_s": output / result.total_s,
        "seconds": result.total_s,
        "seconds_by_bandwidth": least,
        "share_of_limit": least / result.total_s,
        "computing_share": (sum(decodes) + sum(prompts)) / 1e6 / result.total_s,
        "prompts_share": sum(prompts) / 1e6 / result.total_s,
        "decode_step_us": statistics.median(decodes) if decodes else 0.0,
        "wanted": case.wanted,
        "first_token_s": result.first_token_s,
        "p50_s": ends[len(ends) // 2],
        "p95_s": ends[int(len(ends) * 0.95)],
        "p99_s": ends[int(len(ends) * 0.99)],
    }


def record_cost(case: Case, device: torch.device, folder: Path) -> dict:
    """Measure what the record takes of throughput.

    At `steps`: runs at both levels in turn, the medians. At `off` nothing is recorded, but the
    engine still asks: the cost of such a call, times the events that the same work has at `steps`,
    over the time that it takes.
    """
    engine, work = start(case, device, folder), workload(case)
    engine.run(work)
    events = len(engine.events())
    taken: dict[str, list[float]] = {"off": [], "steps": []}
    for _ in range(OFF_AND_STEPS):
        for level, times in taken.items():
            engine.recorder.enabled = level != "off"
            times.append(engine.run(work).total_s)
    engine.recorder.enabled = True
    stop(engine)
    off, steps = (statistics.median(times) for times in taken.values())
    quiet, calls = Recorder("off"), 100_000
    begun = time.perf_counter()
    for _ in range(calls):
        quiet.record(Event())
    each = (time.perf_counter() - begun) / calls
    return {
        "shape": case.shape,
        "requests": case.jobs,
        "events": events,
        "seconds": taken,
        "cost_of_steps": steps / off - 1,
        "cost_of_off": events * each / off,
    }


def profile(case: Case, device: torch.device, folder: Path) -> list[dict]:
    """Return where the time of a case goes, by kernel.

    Run without graphs, each launch timed alone.
    """
    engine, work = start(case, device, folder, enforce_eager=True, trace="full"), workload(case)
    few = Workload("few", "", [Job(job.prompt, min(4, job.num_output)) for job in work.jobs])
    engine.run(few)  # compiles
    engine.events()
    with recording(engine.recorder, profile=True, device=device.type):
        engine.run(few)
    stop(engine)
    by_name: dict[tuple[str, str], list[KernelLaunched]] = {}
    for event in engine.events():
        if isinstance(event, KernelLaunched):
            by_name.setdefault((event.name, event.backend), []).append(event)
    rows = [
        {
            "shape": case.shape,
            "kernel": name,
            "backend": backend,
            "launches": len(events),
            "us": sum(event.duration_us for event in events),
            "share_of_limit": sum(e.share_of_limit * e.duration_us for e in events)
            / sum(event.duration_us for event in events),
        }
        for (name, backend), events in by_name.items()
    ]
    return sorted(rows, key=lambda row: -row["us"])
