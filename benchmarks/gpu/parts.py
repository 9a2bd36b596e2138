"""Run the parts of `make gpu`, each in its own process, so that a broken part affects no other.

    python -m benchmarks.gpu.parts kernels [--dry-run] [--limits JSON]

prints a line `{"where": …, "result": …}` for each result, as soon as it is there; other lines are
for people. `benchmarks.gpu` starts them, with time limits, and gathers the results.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from itertools import groupby, product
from pathlib import Path
from typing import NamedTuple

from engine.trace.command import run_command


class Part(NamedTuple):
    """State how long a part may take on a GPU, in seconds, and what it is for."""

    limit_s: int
    what: str


PARTS = {
    "kernels": Part(300, "each kernel against float64"),
    "parity": Part(240, "the engine against transformers: greedy tokens in fp32, logits in bf16"),
    "speed": Part(480, "the engine's workloads against the card's limits"),
    "decode_attention": Part(90, "paged decode attention alone, against the bandwidth"),
    "peers": Part(480, "transformers on the same card"),
    "profile": Part(240, "where the time of three workloads goes, by kernel"),
    "prompt_attention": Part(120, "attention of prompts by Triton and by torch's SDPA"),
    "record_cost": Part(120, "what the record takes of throughput"),
    "tensor_parallel": Part(480, "one model on 2, 4, 8 GPUs, where the machine has them"),
    "memcheck": Part(540, "the kernels under compute-sanitizer"),
}
"""The parts in the order in which they run: the most telling first."""

MEASURE_S = 120  # for the card's limits, which every run measures before all parts

Results = Iterator[tuple[str, dict]]  # the list of the record that each belongs to, and itself


def measure(device, dry: bool) -> Results:
    """Describe the card, and measure what it can do at best."""
    import torch
    import triton

    from benchmarks.gpu import limits

    found = limits.measure(device, 8 << 20 if dry else 4 << 30, 256 if dry else 8192)
    yield (
        "limits",
        {
            "device": "dry run" if dry else torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "triton": triton.__version__,
            "cuda": torch.version.cuda,
            "python": platform.python_version(),
            "date": time.strftime("%Y-%m-%d"),
            **asdict(found),
        },
    )


def _checks_of(dtype, head_dim: int) -> list[dict]:
    """Run the checks of kernels for one dtype and size of heads, in a process of the pool."""
    import torch

    from benchmarks.gpu import kernel_checks
    from engine.kernels import on_cuda

    return list(kernel_checks.checks(on_cuda(), torch.device("cuda"), [dtype], [head_dim]))


def _runs(device, dry: bool, limit, folder: Path, few: bool) -> dict[str, Callable[[], Results]]:
    """Return each part; sizes are of a GPU, or tiny. few: not all checks of kernels."""
    import torch

    from benchmarks.gpu import (
        attention_speed,
        kernel_checks,
        memcheck,
        parity,
        peers,
        several_gpus,
        speed,
    )
    from engine.kernels import on_cuda

    kernels = on_cuda()
    stored = [dtype for dtype in kernel_checks.LARGEST if kernel_checks.can_convert(dtype, device)]

    def check_kernels() -> Results:
        # the interpreter's bf16 is wrong, so a dry run leaves it out
        dtypes = [torch.float32] if dry else list(kernel_checks.ALLOWED)
        dims = [64] if dry else [64, 128, 256]
        if few:
            dtypes, dims = dtypes[-1:], dims[:2]
        if dry or few:
            for check in kernel_checks.checks(kernels, device, dtypes, dims):
                yield "kernels", check
            return
        # most of the time is compiling: a process for each combination
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(max_workers=len(dtypes) * len(dims), mp_context=spawn) as pool:
            for found in pool.map(_checks_of, *zip(*product(dtypes, dims))):
                for check in found:
                    yield "kernels", check

    def check_memory() -> Results:
        limit_s = PARTS["memcheck"].limit_s - 20
        yield "memcheck", memcheck.memcheck(memcheck.find_tool(), not dry, limit_s=limit_s)

    def check_engine() -> Results:
        for result in parity.parity(device, folder, 2 if dry else 20, 3 if dry else 64):
            yield "parity", result
        for result in parity.bf16_logits(device, folder, 2 if dry else 20):
            yield "bf16_logits", result

    def decode_attention() -> Results:
        rows, context = (2, 40) if dry else (256, 1024)
        for cache in (None, *stored):
            run = attention_speed.decode_attention(kernels, device, limit, rows, context, cache)
            yield "decode_attention", run

    def prompt_attention() -> Results:
        lengths = [5, 9] if dry else [128, 512, 2048, 8192]
        yield "prompt_attention", attention_speed.prompt_attention(kernels, device, lengths)

    cases = speed.TINY_CASES if dry else speed.CASES

    def measure_speed() -> Results:
        for _, same in groupby(cases, lambda case: case.shape):  # one engine for each shape
            for result in speed.run_cases(list(same), device, limit, folder):
                yield "speed", result

    def profile() -> Results:
        for case in cases[:1] if dry else cases[:3]:
            for row in speed.profile(case, device, folder):
                yield "profile", row

    def record_cost() -> Results:
        for case in (cases[0], cases[-1]):  # one request, and many of a small model
            yield "record_cost", speed.record_cost(case, device, folder)

    def beside_transformers() -> Results:
        sizes = (3, (3, 9)) if dry else (peers.REQUESTS, peers.LENGTHS)
        for shape in ("tiny",) if dry else ("llama-3.2-1b", "opt-125m"):
            for result in peers.beside_transformers(shape, device, folder, *sizes):
                yield "peers", result

    def several() -> Results:
        sizes = [2] if dry else several_gpus.sizes(torch.cuda.device_count())
        for result in several_gpus.tensor_parallel(device, folder, sizes, dry):
            yield "tensor_parallel", result

    return {
        "kernels": check_kernels,
        "parity": check_engine,
        "speed": measure_speed,
        "decode_attention": decode_attention,
        "peers": beside_transformers,
        "profile": profile,
        "prompt_attention": prompt_attention,
        "record_cost": record_cost,
        "tensor_parallel": several,
        "memcheck": check_memory,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("part", choices=("limits", *PARTS))
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, no GPU")
    parser.add_argument("--few", action="store_true", help="not all checks of kernels")
    parser.add_argument("--limits", type=json.loads, default={}, help="what `limits` printed")
    options = parser.parse_args(argv)
    if options.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    import torch

    from benchmarks.gpu.limits import Limits

    if not options.dry_run and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --dry-run needs none")
    device = torch.device("cpu" if options.dry_run else "cuda")
    named = Limits(*(options.limits.get(name, 0.0) for name in Limits.__dataclass_fields__))
    with tempfile.TemporaryDirectory() as folder:
        if options.part == "limits":
            results = measure(device, options.dry_run)
        else:
            runs = _runs(device, options.dry_run, named, Path(folder), options.few)
            results = runs[options.part]()
        for where, result in results:
            print(json.dumps({"where": where, "result": result}), flush=True)
    return 0


if __name__ == "__main__":
    run_command(main)
