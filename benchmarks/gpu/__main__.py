"""Everything that needs a GPU, in one command: kernels against float64, the engine against
transformers, speed against the card's measured limits.

    python -m benchmarks.gpu               writes benchmarks/results/gpu-<name>.json and .md
    python -m benchmarks.gpu --only kernels parity
    python -m benchmarks.gpu --dry-run     the same path with tiny shapes on a CPU: kernels in
                                           Triton's interpreter, the engine on the CPU's kernels;
                                           written to the folder for temporary files

Exit status 1 if a kernel is off by more than is allowed, memcheck finds an error, a token differs,
or logits are too far; not if something is slower than wanted. Results are written after each part.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "results"
PARTS = (
    "kernels",
    "memcheck",
    "parity",  # with bf16_logits
    "decode_attention",
    "prompt_attention",
    "speed",
    "profile",
    "record_cost",
    "peers",
)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, no GPU")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="these parts")
    parser.add_argument("--out", type=Path, help="folder of the results")
    options = parser.parse_args(argv)
    dry = options.dry_run
    if options.out is None:  # what a dry run measures is no result
        options.out = Path(tempfile.gettempdir(), "glasshouse-gpu-dry-run") if dry else RESULTS
    if dry:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    import torch
    import triton

    if not dry and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --dry-run needs none")
    from benchmarks.gpu import limits, report

    device = torch.device("cpu" if dry else "cuda")
    name = "dry run" if dry else torch.cuda.get_device_name()
    limit = limits.measure(device, 8 << 20 if dry else 4 << 30, 256 if dry else 8192)
    record: dict = {
        "device": name,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        "limits": asdict(limit),
    }
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    options.out.mkdir(parents=True, exist_ok=True)
    if options.only != PARTS:  # a whole run's results stay
        slug += "-" + "-".join(part.replace("_", "-") for part in options.only)
    path = options.out / f"gpu-{slug}.json"
    with tempfile.TemporaryDirectory() as folder:
        parts = _parts(device, dry, limit, Path(folder))
        for part in (part for part in PARTS if part in options.only):
            for where, result in parts[part]():
                record.setdefault(where, []).append(result)
                print(where, json.dumps(result), flush=True)
            path.write_text(json.dumps(record, indent=1) + "\n")
            path.with_suffix(".md").write_text(report.markdown(record, dry))
    wrong = report.faults(record)
    for fault in wrong:
        print("WRONG", json.dumps(fault), file=sys.stderr)
    print(path)
    return 1 if wrong else 0


Results = Iterator[tuple[str, dict]]  # the part that each belongs to, and itself


def _parts(device, dry: bool, limit, folder: Path) -> dict[str, Callable[[], Results]]:
    """Each part of the run; sizes are of a GPU, or tiny."""
    import torch

    from benchmarks.gpu import attention_speed, kernel_checks, memcheck, parity, peers, speed
    from engine.kernels import on_cuda

    kernels = on_cuda()
    stored = [dtype for dtype in kernel_checks.LARGEST if kernel_checks.can_convert(dtype, device)]

    def check_kernels() -> Results:
        # the interpreter's bf16 is wrong, so a dry run leaves it out
        dtypes = [torch.float32] if dry else list(kernel_checks.ALLOWED)
        dims = [64] if dry else [64, 128, 256]
        for check in kernel_checks.checks(kernels, device, dtypes, dims):
            yield "kernels", check

    def check_memory() -> Results:
        yield "memcheck", memcheck.memcheck(memcheck.find_tool(), not dry)

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
        for case in cases:
            yield "speed", speed.run_case(case, device, limit, folder)

    def profile() -> Results:
        for case in cases[:1] if dry else cases[:3]:
            for row in speed.profile(case, device, folder):
                yield "profile", row

    def record_cost() -> Results:
        yield "record_cost", speed.record_cost(cases[-1], device, folder)

    def beside_transformers() -> Results:
        sizes = (3, (3, 9)) if dry else (peers.REQUESTS, peers.LENGTHS)
        for shape in ("tiny",) if dry else ("opt-125m", "llama-3.2-1b"):
            for result in peers.beside_transformers(shape, device, folder, *sizes):
                yield "peers", result

    runs = (
        check_kernels,
        check_memory,
        check_engine,
        decode_attention,
        prompt_attention,
        measure_speed,
        profile,
        record_cost,
        beside_transformers,
    )
    return dict(zip(PARTS, runs, strict=True))


if __name__ == "__main__":
    sys.exit(main())
