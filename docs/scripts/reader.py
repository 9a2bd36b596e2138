"""Read a record as the documents quote it: its events, its story, its lines as on the console."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from docs.scripts.server import ROOT
from engine.trace import events as ev
from engine.trace.__main__ import main as trace_command
from engine.trace.columns import RichPrinter
from engine.trace.events import Event
from engine.trace.files import read_all
from engine.trace.replay import Replay
from engine.trace.story import Line, Story

RECORDS = ROOT / "docs" / "records"


class Record:
    """Hold one file of docs/records/."""

    def __init__(self, name: str, folder: Path = RECORDS) -> None:
        self.name = f"docs/records/{name}.jsonl"
        self.path = folder / f"{name}.jsonl"
        self.events = read_all(self.path)
        story, single = Story(with_summaries=True), Story(with_summaries=False, joined=False)
        self.story = [*story.tell(self.events), *story.end()]
        self.single = [*single.tell(self.events), *single.end()]  # one for each event, in order
        self.replay = Replay.of(self.events)

    def all(self, kind: type[Event]) -> list:
        return [event for event in self.events if isinstance(event, kind)]

    def first(self, kind: type[Event], matches: Callable[..., bool] = lambda _: True):
        """Return the first such event. Raises LookupError: this record has none to show."""
        for event in self.all(kind):
            if matches(event):
                return event
        raise LookupError(f"{self.name} has no such {ev.kind(kind)}; record it again.")

    def line_of(self, event: Event) -> Line:
        """Return the line of one event, as `annotate --all` prints it."""
        return self.single[next(i for i, other in enumerate(self.events) if other is event)]

    def id_of(self, asked: str) -> str:
        """Return the request's id in the record, for the id that docs/scripts/record.py sent."""
        wanted = (asked, f"chatcmpl-{asked}")
        return self.first(ev.RequestQueued, lambda e: e.request_id in wanted).request_id

    def lines(self, keep: Callable[[Line], bool], joined: bool = True) -> list[Line]:
        return [line for line in (self.story if joined else self.single) if keep(line)]


def printed(lines: Iterable[Line]) -> str:
    """Print lines as the console does, 100 columns wide, with times from the first line on."""
    out = io.StringIO()
    RichPrinter(out)(lines)
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip("\n").splitlines())


def trace_output(arguments: Sequence[str]) -> str:
    """Return what `python -m engine.trace ARGUMENTS` prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        trace_command(list(arguments))
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())
