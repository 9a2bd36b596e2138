"""Print the log: the story in columns on a terminal, one JSON object a line elsewhere.

      1.204      1  req-1    starts after 0.2 ms: 1 seat(s) and blocks for 23 tokens are free; …
      time    step  request  what happened, how much, and why

An engine records more than a console can show. So at most `LINES_A_SECOND` lines are shown, and the
rest is counted by kind in one line. Warnings, failures, refusals and summaries are always shown.
The record itself stays complete.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO

import msgspec

from engine.trace.events import Event
from engine.trace.printable import printable_json
from engine.trace.story import Line, Story
from engine.trace.wording import count, joined

LINES_A_SECOND = 40
BURST = 300

_ALWAYS = {"summary", "engine.warning", "engine.failed", "request.refused"}


class LogConsole:
    """Subscribe to a recorder and print the story of its events. `style` is "rich" or "json".

    Raises ValueError for another style.
    """

    def __init__(self, style: str, file: TextIO | None = None) -> None:
        if style not in ("rich", "json"):
            raise ValueError(f"the log's style is {style!r}: it must be 'rich' or 'json'")
        file = file or sys.stdout
        self._story = Story()
        self._throttle = Throttle()
        self._print = _printer(style, file)

    @classmethod
    def auto(cls, file: TextIO | None = None) -> LogConsole:
        """Choose "rich" on a terminal, "json" elsewhere."""
        return cls("rich" if (file or sys.stdout).isatty() else "json", file)

    def __call__(self, batch: list[Event]) -> None:
        self._print(self._throttle.pass_on(self._story.tell(batch)))

    def close(self) -> None:
        """Print the lines that are still open."""
        self._print(self._throttle.pass_on(self._story.end()))
        self._print(self._throttle.end())


def _printer(style: str, file: TextIO) -> Callable[[Iterable[Line]], None]:
    if style == "json":
        return JsonPrinter(file)
    from engine.trace.columns import RichPrinter  # `rich`: memory that JSON has no use for

    return RichPrinter(file)


class Throttle:
    """Let a burst of lines through, then so many a second, and count the rest.

    Seconds are those of the record's timestamps.
    """

    def __init__(self, lines_a_second: int = LINES_A_SECOND, burst: int = BURST) -> None:
        self.lines_a_second = lines_a_second
        self.burst = burst
        self._allowed = float(burst)
        self._last_ns = 0
        self._omitted: Counter[str] = Counter()
        self._omitted_since_ns = 0

    def pass_on(self, lines: Iterable[Line]) -> Iterator[Line]:
        """Yield the lines that may be shown and, once a second, a line that counts the omitted
        ones."""
        for line in lines:
            seconds = max(0, line.ts_ns - self._last_ns) / 1e9
            self._last_ns = max(line.ts_ns, self._last_ns)
            self._allowed = min(self.burst, self._allowed + seconds * self.lines_a_second)
            if self._omitted and line.ts_ns - self._omitted_since_ns > 1e9:
                yield from self.end()
            if line.kind in _ALWAYS:
                yield line
            elif self._allowed >= 1 and not self._omitted:
                self._allowed -= 1
                yield line
            else:
                if not self._omitted:
                    self._omitted_since_ns = line.ts_ns
                self._omitted[line.kind] += 1

    def end(self) -> Iterator[Line]:
        """Yield one line that counts the omitted lines, if there are any."""
        if self._omitted:
            seconds = (self._last_ns - self._omitted_since_ns) / 1e9
            kinds = joined(f"{times} {name}" for name, times in self._omitted.most_common(4))
            lines = (
                f"… {count(self._omitted.total(), 'more line')} in {seconds:.1f} s not shown here"
            )
            yield Line(self._last_ns, f"{lines} (the record has them): {kinds}", "omitted")
            self._omitted.clear()


class JsonPrinter:
    """Print one JSON object a line.

    Its fields: time (s, CLOCK_MONOTONIC), kind, step or [first, last], request, text.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._encode = msgspec.json.Encoder().encode

    def __call__(self, lines: Iterable[Line]) -> None:
        text = "".join(
            printable_json(self._encode(self._fields(line)).decode()) + "\n" for line in lines
        )
        if text:
            self._file.write(text)
            self._file.flush()

    def _fields(self, line: Line) -> dict[str, object]:
        fields: dict[str, object] = {"time": round(line.ts_ns / 1e9, 6), "kind": line.kind}
        if line.first_step:
            one = line.first_step == line.last_step
            fields["step"] = line.first_step if one else [line.first_step, line.last_step]
        if line.request_id:
            fields["request_id"] = line.request_id
            fields["name"] = line.name
        fields["text"] = line.text
        return fields
