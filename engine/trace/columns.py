"""Print the story of a record in columns, with colours on a terminal."""

from __future__ import annotations

import textwrap
import zlib
from collections.abc import Iterable
from typing import TextIO

from rich.console import Console as RichConsole
from rich.text import Text

from engine.trace.printable import printable
from engine.trace.sequences import request_of
from engine.trace.story import Line

WIDTH = 100  # if the output is not a terminal

_COLOURS = (
    "cyan",
    "green",
    "magenta",
    "yellow",
    "blue",
    "bright_red",
    "bright_cyan",
    "bright_green",
)
_TIME, _STEP, _NAME = 8, 7, 7  # widths of the columns
_INDENT = _TIME + 1 + _STEP + 1 + _NAME + 1


class RichPrinter:
    """Print aligned columns, each request in its own colour.

    Time, step and name are printed only where they change.
    """

    def __init__(self, file: TextIO) -> None:
        terminal = file.isatty()
        self._console = RichConsole(
            file=file, width=None if terminal else WIDTH, highlight=False, soft_wrap=True
        )
        self._start_ns = 0
        self._time = ""
        self._shown = ("", "")  # step and name of the previous line

    def __call__(self, lines: Iterable[Line]) -> None:
        for line in lines:
            self._console.print(self._text(line))

    def _text(self, line: Line) -> Text:
        self._start_ns = self._start_ns or line.ts_ns
        time = f"{(line.ts_ns - self._start_ns) / 1e9:.3f}"
        step = _steps(line)
        name = printable(line.name)
        in_step, of = self._shown
        self._shown = (step, name)
        # Events caused by a step are printed after it, so a line can be older than the one before.
        newer = not self._time or float(time) > float(self._time)
        self._time = time if newer else self._time
        text = Text()  # without a style: it would apply to every part
        text.append(f"{time if newer else '':>{_TIME}} ", style="dim")
        text.append(f"{'' if step == in_step else step:>{_STEP}} ", style="bold" if step else "")
        same = step == in_step and name == of
        text.append(f"{'' if same else name:<{_NAME}} ", style=_colour(line.request_id))
        body = Text(style=_body_style(line))
        body.append(_hanging(printable(line.text), self._console.width))
        body.highlight_regex(r"\bblocks? \d[\d–, ]*", "not dim bold")
        return text + body


def _steps(line: Line) -> str:
    if not line.first_step or line.kind == "summary":
        return ""
    if line.first_step == line.last_step:
        return str(line.first_step)
    return f"{line.first_step}–{line.last_step}"


def _colour(request_id: str) -> str:
    """Choose a request's colour, shared with its siblings and the same in every run.

    It comes from a checksum of the id: hash() differs between runs.
    """
    request = request_of(request_id)
    return _COLOURS[zlib.crc32(request.encode()) % len(_COLOURS)] if request else ""


def _body_style(line: Line) -> str:
    if line.kind == "engine.failed":
        return "bold red"
    if line.kind in ("engine.warning", "request.preempted", "request.refused", "request.waiting"):
        return "yellow"
    return "dim" if line.kind == "omitted" or line.kind.startswith("block.") else ""


def _hanging(text: str, width: int) -> str:
    """Wrap text into its column, never narrower than half a comfortable reading width."""
    lines = textwrap.wrap(text, max(40, width - _INDENT), break_long_words=False)
    return f"\n{' ' * _INDENT}".join(lines)
