"""Everything that needs a GPU, in one command: kernels against float64, the engine against
transformers, speed against the card's measured limits.

    python -m benchmarks.gpu               writes benchmarks/results/gpu-<name>.json
    python -m benchmarks.gpu --dry-run     the same path with tiny shapes on a CPU: kernels in
                                           Triton's interpreter, the engine on the CPU's kernels

Exit status 1 if a kernel is off by more than is allowed, or a token differs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "results"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, no GPU")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(argv)
    if options.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    import torch
    import triton

    if not options.dry_run and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --dry-run needs none")
    from benchmarks.gpu import kernel_checks, limits, parity, speed
    from engine.kernels import on_cuda

    dry = options.dry_run
    device = torch.device("cpu" if dry else "cuda")
    name = "dry run" if dry else torch.cuda.get_device_name()
    record: dict = {
        "device": name,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }

    def say(part: str, result: object) -> None:
        record.setdefault(part, []).append(result)
        print(part, json.dumps(result), flush=True)

    limit = limits.measure(device, 8 << 20 if dry else 4 << 30, 256 if dry else 8192)
    record["limits"] = asdict(limit)
    # the interpreter's bf16 is wrong, so a dry run leaves it out
    dtypes = [torch.float32] if dry else list(kernel_checks.ALLOWED)
    for check in kernel_checks.checks(on_cuda(), device, dtypes, [64] if dry else [64, 128, 256]):
        say("kernels", check)
    with tempfile.TemporaryDirectory() as folder:
        for result in parity.parity(device, Path(folder), 2 if dry else 20, 3 if dry else 64):
            say("parity", result)
        for case in speed.TINY_CASES if dry else speed.CASES:
            say("speed", speed.run_case(case, device, limit, Path(folder)))
    rows, context = (2, 40) if dry else (256, 1024)
    say("decode_attention", speed.decode_attention(on_cuda(), device, limit, rows, context))

    options.out.mkdir(parents=True, exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    path = options.out / f"gpu-{slug}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    wrong = [check for check in record["kernels"] if not check["error"] <= check["allowed"]]
    wrong += [result for result in record["parity"] if result["equal"] != result["prompts"]]
    for fault in wrong:
        print("WRONG", json.dumps(fault), file=sys.stderr)
    print(path)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
