"""Answer "what if" for a record: `python -m engine.whatif RECORD [other settings]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from engine.config import ConfigError
from engine.core.named_scheduler import named_scheduler
from engine.trace.command import run_command
from engine.trace.files import RecordError, read_all, to_jsonl
from engine.trace.printable import printable
from engine.whatif.measures import COUNTS
from engine.whatif.rerun import WhatIf, what_if


def main(argv: Sequence[str] | None = None, name: str = "python -m engine.whatif") -> int:
    """Print the answer, and return the exit status: 2 for an error, described on stderr."""
    arguments = _parser(name).parse_args(argv)
    changes = {
        key: value
        for key, value in vars(arguments).items()
        if value is not None and key not in ("file", "policy", "output", "json", "seed")
    }
    try:
        scheduler = named_scheduler(arguments.policy)
        answer = what_if(read_all(arguments.file), changes, scheduler, arguments.seed)
        if arguments.output is not None:
            arguments.output.write_bytes(to_jsonl(answer.events))
    except (RecordError, ConfigError, ValueError) as problem:
        print(printable(f"error: {problem}"), file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename or 'output'}: {error.strerror}", file=sys.stderr)
        return 2
    if arguments.json:
        print(msgspec.json.format(msgspec.json.encode(as_dict(answer)), indent=1).decode())
    else:
        print("\n".join(told(answer)))
    return 0


def told(answer: WhatIf) -> list[str]:
    """Word the answer as a table: counts first, then times."""
    recorded, again, other = (m.rows() for m in (answer.recorded, answer.again, answer.other))
    lines = [f"{len(answer.load.arrivals):,} requests, as they arrived", ""]
    head = ("", "recorded", "model", "its error", "what if", "change")
    lines.append(f"{head[0]:34}{head[1]:>12}{head[2]:>12}{head[3]:>11}{head[4]:>12}{head[5]:>10}")
    for name in recorded:
        digits = 0 if name in COUNTS else 2
        numbers = [f"{row[name]:,.{digits}f}" for row in (recorded, again, other)]
        error, change = _relative(again[name], recorded[name]), _relative(other[name], again[name])
        lines.append(
            f"{name:34}{numbers[0]:>12}{numbers[1]:>12}{error:>11}{numbers[2]:>12}{change:>10}"
        )
    step, token, row, block, prompt, any_prompt = answer.cost_us
    lines += [
        "",
        "model: the same core with the recorded settings; its error is what it gets wrong there.",
        f"a step takes {step:,.0f} µs + {any_prompt:,.0f} if it has a prompt + {prompt:,.0f} a"
        f" prompt + {token:,.1f} a prompt token + {row:,.1f} a decoding row + {block:,.1f} a copied"
        f" block; one step is {answer.step_error:.0%} off (median).",
        f"refused: {answer.other.refused}" if answer.other.refused else "",
        *(f"- {note}" for note in answer.notes),
    ]
    return [line for number, line in enumerate(lines) if line or number < 6]


def as_dict(answer: WhatIf) -> dict[str, Any]:
    """Return the answer as a dict that JSON can carry."""
    return {
        "requests": len(answer.load.arrivals),
        "recorded": answer.recorded.rows(),
        "model": answer.again.rows(),
        "what_if": answer.other.rows(),
        "refused": answer.other.refused,
        "step_error": answer.step_error,
        "cost_us": answer.cost_us,
        "notes": answer.notes,
    }


def _relative(value: float, base: float) -> str:
    if not base:
        return "" if not value else "new"
    return f"{value / base - 1:+.0%}"


def _parser(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=name,
        description="Run the requests of a record again, under other settings, through the real"
        " core on simulated time. The record comes from --trace-file or GET /trace. What is left"
        " out stays as it was recorded.",
    )
    add = parser.add_argument
    add("file", type=Path, help="a record, one JSON object a line")
    for flag, text in (
        ("--num-gpu-blocks", "KV blocks of the pool"),
        ("--num-host-blocks", "blocks to swap into"),
        ("--max-num-seqs", "seats"),
        ("--max-num-batched-tokens", "tokens of a step"),
        ("--block-size", "tokens of a block"),
    ):
        add(flag, type=_positive, metavar="N", help=text)
    add(
        "--preemption-mode",
        choices=("recompute", "swap", "auto"),
        help="how a preempted request gets its keys and values back",
    )
    add("--scheduling-policy", choices=("fcfs", "priority"), help="who goes first")
    add(
        "--enable-prefix-caching",
        action=argparse.BooleanOptionalAction,
        help="find the blocks of equal beginnings again",
    )
    add(
        "--async-scheduling",
        action=argparse.BooleanOptionalAction,
        help="plan a step while the one before it computes",
    )
    add("--policy", metavar="MODULE:CLASS", help="a scheduler of your own, a subclass of Scheduler")
    add("--seed", type=int, default=0, help="of the draw which steps are slow")
    add("--json", action="store_true", help="the numbers as JSON")
    add("-o", "--output", type=Path, help="write the new record to this file")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number of at least 1")
    return int(text)


if __name__ == "__main__":
    run_command(main)
