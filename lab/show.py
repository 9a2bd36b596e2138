"""Run chapters one after another, on the terminal and in a report if one is wanted."""

from __future__ import annotations

import time
from pathlib import Path

from engine.config import POCKET_MODEL
from engine.core.scheduler import Scheduler
from engine.models.errors import ModelError
from lab.chapter import CannotShow, Chapter, Outcome
from lab.chapters import CHAPTERS
from lab.limits import describe_machine
from lab.report import Section, report
from lab.terminal import Terminal
from lab.workbench import Workbench


def show(
    model: str, names: list[str], quick: bool, policy: type[Scheduler] | None, target: Path | None
) -> None:
    """Show the chapters of these names; target: the report's file.

    Raises what `Workbench` raises where the model can't be used.
    """
    started = time.perf_counter()
    text = " ".join(chapter.idea for chapter in CHAPTERS)
    chapters = [chapter for chapter in CHAPTERS if chapter.name in names]
    try:
        bench = Workbench(model, quick, text, policy)
    except ValueError as error:  # transformers', about config.json
        raise ModelError(str(error)) from None
    terminal = Terminal()
    try:
        machine = describe_machine(bench.device, bench.busy)
        terminal.title(_shown(model), quick, len(chapters), machine)
        sections = [
            _run(chapter, number, bench, terminal) for number, chapter in enumerate(chapters, 1)
        ]
    finally:
        bench.close()
    if target is not None:
        title = [f"Model: {_shown(model)}", *machine]
        title.append(time.strftime("%Y-%m-%d %H:%M") + (", --quick" if quick else ""))
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
