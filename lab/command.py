"""Read the lab's options, refuse what can't be shown, and show the rest (`show.py`).

Torch and the chapters are imported only then, so help and refusals come at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.config import POCKET_MODEL, ConfigError
from engine.core.named_scheduler import named_scheduler
from engine.models.errors import ModelError
from engine.models.hub import find_model
from engine.text.errors import TextError
from lab.chapter_names import NAMES, UnknownChapter, chosen


class Refused(Exception):
    """Report that the lab can't run as asked; one line says why."""


def main(argv: Sequence[str] | None = None, name: str = "koyeb_vllm_setup") -> int:
    """Run the lab; returns 0, or 2 if the options, or the model that they name, can't be used."""
    options = _parser(name).parse_args(argv)
    try:
        _show(options)
    except Refused as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    return 0


def _show(options: argparse.Namespace) -> None:
    """Show the chosen chapters. Raises `Refused`."""
    names = [name for group in options.only for name in group.split(",") if name]
    target = Path(options.report).expanduser() if options.report else None
    if target is not None and (target.is_dir() or not target.absolute().parent.is_dir()):
        raise Refused(f"--report {target} can't be written: name a file in a folder that exists.")
    try:
        chapters = chosen(names)
        policy = named_scheduler(options.scheduler_cls) if options.scheduler_cls else None
        find_model(options.model, None, os.environ.get("HF_TOKEN"))
        from lab.show import show

        show(options.model, chapters, options.quick, policy, target)
    except (UnknownChapter, ModelError, TextError, ConfigError) as error:
        raise Refused(str(error)) from None


def _parser(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=name,
        description="The lab: each optimisation of the engine, predicted, run on this machine,"
        " measured and drawn.",
        epilog="Chapters: " + ", ".join(NAMES),
    )
    parser.add_argument(
        "--model",
        default=POCKET_MODEL,
        help="pocket, smollm2, a folder or a hub id; default: pocket",
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="CHAPTERS", help="these chapters and no others"
    )
    parser.add_argument(
        "--scheduler-cls",
        metavar="MODULE:CLASS",
        help="a scheduler of yours, which the chapter `policy` shows beside fcfs",
    )
    parser.add_argument("--quick", action="store_true", help="smaller runs, about two minutes")
    parser.add_argument("--report", metavar="FILE", help="write the chapters to this HTML file too")
    return parser
