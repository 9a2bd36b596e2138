"""Encode the record: JSON lines in a file, msgpack between processes.

A JSONL record has one event a line: `{"kind":"block.freed","seq":81,…}`. Fields that have their
default value are left out. Records are decoded against the event declarations, so a field of the
wrong type is an error that names it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import msgspec

from engine.trace.events import AnyEvent, EngineWarning, Event
from engine.trace.together import AnyEvents, one_by_one

_json_encoder = msgspec.json.Encoder()
_json_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(AnyEvent)
_batch_encoder = msgspec.msgpack.Encoder()
_bundle_decoder: msgspec.msgpack.Decoder[list[list[Event]]] = msgspec.msgpack.Decoder(
    list[list[AnyEvents]]
)


class RecordError(Exception):
    """Report a record that can't be read; the message says which line, and why."""


def to_json(event: Event) -> bytes:
    """Encode one event as a JSON object, without a line end."""
    return _json_encoder.encode(event)


def to_jsonl(events: list[Event]) -> bytes:
    """Encode events as JSON lines; the last line has its end, too."""
    return _json_encoder.encode_lines(events)


def pack(events: list[Event]) -> bytes:
    """Pack events for another process. Those that happened together stay one message entry."""
    return _batch_encoder.encode(events)


def bundle(batches: list[bytes]) -> bytes:
    """Join packed batches into one message; `Recorder.forward` takes what `unpack` makes of it."""
    return _batch_encoder.encode([msgspec.Raw(batch) for batch in batches])


def unpack(message: bytes) -> list[Event]:
    """Return the events of a bundle, one by one. Raises RecordError."""
    try:
        batches = _bundle_decoder.decode(message)
    except msgspec.MsgspecError as error:
        raise RecordError(f"{len(message)} bytes hold no events: {error}") from error
    return one_by_one(chain.from_iterable(batches))


class JsonlWriter:
    """Write the events of a subscription to a file.

    The file is complete up to the last batch at any time. Raises OSError if it can't be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = self.path.open("wb", buffering=0)  # nothing is left to be written at the end
        self._size = 0

    def __call__(self, batch: list[Event]) -> None:
        left = memoryview(to_jsonl(batch))
        size = self._size + len(left)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            with contextlib.suppress(OSError):  # a pipe has no length
                self._file.truncate(self._size)  # no line is torn
                self._file.seek(self._size)
            raise
        self._size = size

    def close(self) -> None:
        self._file.close()


def read_jsonl(path: str | Path) -> Iterator[Event]:
    """Yield the events of a JSONL record, in the file's order, as `read_lines` does.

    Raises OSError if there is no such file, RecordError for a line that isn't an event.
    """
    with Path(path).open("rb") as file:
        yield from read_lines(file, str(path))


def read_lines(lines: Iterable[bytes], name: str) -> Iterator[Event]:
    """Yield the events of a record's lines, each with its line end. Empty lines are skipped.

    A last line without its end was cut off while it was written (the writer was killed, or is still
    writing): it yields an `engine.warning` that says so, and reading ends. Raises RecordError for
    any other line that isn't an event; `name` is the record's in its message.
    """
    last = Event()
    for number, line in enumerate(lines, start=1):
        if line.isspace():
            continue
        try:
            event = _json_decoder.decode(line)
        except msgspec.MsgspecError as error:
            if not line.endswith(b"\n"):
                message = f"the record ends in the middle of an event, on line {number}"
                yield EngineWarning(message=message, ts_ns=last.ts_ns, step=last.step)
                return
            raise RecordError(f"{name}, line {number}: {_explain(line, error)}") from error
        last = event
        yield event


def read_all(path: str | Path) -> list[Event]:
    """Read the whole record into memory. Raises as `read_jsonl` does."""
    return list(read_jsonl(path))


def _explain(line: bytes, error: Exception) -> str:
    shown = line[:60].decode(errors="replace").strip()
    return f"this is no event of the record ({error}): {shown}{'…' if len(line) > 60 else ''}"
