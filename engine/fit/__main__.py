"""Run `python -m engine.fit MODEL`: see the package."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from engine.config import POCKET_MODEL
from engine.fit.estimate import make_plan
from engine.fit.report import report
from engine.fit.shape import PlanError
from engine.trace.command import run_command


def main(argv: Sequence[str] | None = None, name: str = "python -m engine.fit") -> int:
    """Print a plan; exit code 0 if a GPU fits, 1 if none does that the engine can use,
    2 if no plan can be made."""
    parser = argparse.ArgumentParser(prog=name, description="Which GPU fits a model, and why.")
    parser.add_argument(
        "model",
        nargs="?",
        default=POCKET_MODEL,
        help="pocket, smollm2, a folder or a hub id; default: pocket",
    )
    parser.add_argument("--max-model-len", type=int, help="tokens; default: the model's own")
    parser.add_argument(
        "--concurrency", type=int, default=1, help="sequences of that length at once [1]"
    )
    parser.add_argument(
        "--kv-cache-dtype",
        default="auto",
        help="as the engine's option: fp8 (which is fp8_e4m3), fp8_e5m2; default: the model's own",
    )
    parser.add_argument(
        "--draft-model",
        help="the model of --speculative-config that proposes tokens; default: none",
    )
    parser.add_argument(
        "--tensor-parallel-size",
        type=int,
        default=1,
        help="GPUs that share each layer: what each of them would hold [1]",
    )
    arguments = parser.parse_args(argv)
    try:
        plan = make_plan(
            arguments.model,
            arguments.max_model_len,
            arguments.concurrency,
            arguments.kv_cache_dtype,
            arguments.draft_model,
            arguments.tensor_parallel_size,
        )
    except PlanError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    print(report(plan))
    return 0 if plan.choice() and not plan.refusal else 1


if __name__ == "__main__":
    run_command(main)
