"""Run the lab's command: options in, chapters one after another, a report if one is wanted."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from engine.config import POCKET_MODEL, ConfigError
from engine.core.named_scheduler import named_scheduler
from engine.models.errors import ModelError
from engine.text.errors import TextError
from lab.chapter import CannotShow, Chapter, Outcome
from lab.chapters import CHAPTERS, UnknownChapter, chosen
from lab.limits import describe_machine
from lab.report import Section, report
from lab.terminal import Terminal
from lab.workbench import Workbench


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
    started = time.perf_counter()
    names = [name for group in options.only for name in group.split(",") if name]
    target = Path(options.report).expanduser() if options.report else None
    if target is not None and (target.is_dir() or not target.absolute().parent.is_dir()):
        raise Refused(f"--report {target} can't be written: name a file in a folder that exists.")
    text = " ".join(chapter.idea for chapter in CHAPTERS)
    try:
        chapters = chosen(names)
        policy = named_scheduler(options.scheduler_cls) if options.scheduler_cls else None
        bench = Workbench(options.model, options.quick, text, policy)
    except (UnknownChapter, ModelError, TextError, ConfigError, ValueError) as error:
        raise Refused(str(error)) from None
    terminal = Terminal()
    try:
        machine = describe_machine(bench.device)
        terminal.title(_shown(options.model), options.quick, len(chapters), machine)
        sections = [
            _run(chapter, number, bench, terminal) for number, chapter in enumerate(chapters, 1)
        ]
    except (ModelError, ConfigError) as error:  # while the weights are loaded, in some chapter
        raise Refused(str(error)) from None
    finally:
        bench.close()
    if target is not None:
        title = [f"Model: {_shown(options.model)}", *machine]
        title.append(time.strftime("%Y-%m-%d %H:%M") + (", --quick" if options.quick else ""))
        page = report(title, sections, target.absolute().parent)
        target.write_text(page, encoding="utf-8")
    terminal.end(time.perf_counter() - started, str(target or ""))


def _shown(model: str) -> str:
    return "pocket (embedded)" if model in ("pocket", POCKET_MODEL) else model


def _run(chapter: Chapter, number: int, bench: Workbench, terminal: Terminal) -> Section:
    started = time.perf_counter()
    section = Section(chapter, [], Outcome())
    terminal.open(number, chapter)
    try:
        with terminal.working("measuring what the prediction needs"):
            section.expectations = chapter.predict(bench)
        terminal.expect(section.expectations)
        with terminal.working("running"):
            section.outcome = chapter.run(bench)
    except CannotShow as error:
        section.reason = str(error)
        terminal.cannot(section.reason)
    section.seconds = time.perf_counter() - started
    if not section.reason:
        terminal.close(chapter, section.expectations, section.outcome, section.seconds)
    return section


def _parser(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=name,
        description="The lab: each optimisation of the engine, predicted, run on this machine,"
        " measured and drawn.",
        epilog="Chapters: " + ", ".join(chapter.name for chapter in CHAPTERS),
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
