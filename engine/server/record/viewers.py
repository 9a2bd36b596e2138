"""Send the record to those who watch it as it grows, over `GET /trace/stream`.

    window ──▶ Follower (one for all viewers: tells the log's lines, keeps snapshots)
       │
       └─────▶ Viewer (a position in the window) ──▶ frames ──▶ its socket

A viewer has no queue: it is a position, and takes new events when its socket is ready for more. One
that is more than `BEHIND` events behind jumps to a snapshot of now, and is told how many events it
missed. None of this runs on the thread that drains the record, so even a slow viewer delays neither
the record nor the engine.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from engine.server.record.record_window import RecordWindow
from engine.trace.events import AnyEvent
from engine.trace.story import Story

HISTORY = 20_000  # events that a viewer gets when it joins
BEHIND = 2 * HISTORY  # events: more than it gets when it joins, and about a second's work of a page
FRAME_EVENTS = 2_000
FRAME_S = 0.1  # a frame at most this often: ten a second are smooth, and cheap
IDLE_S = 0.5  # how soon a viewer notices that the server is ending
MOST_VIEWERS = 16

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(AnyEvent).decode


class Follower:
    """Follow the window while anybody watches. May be used from several threads."""

    def __init__(self, window: RecordWindow):
        self._window = window
        self._lock = threading.Lock()
        self._start()

    def _start(self) -> None:
        """Start at the window's beginning; events older than `HISTORY` are folded without lines."""
        self._fold, self.position = self._window.beginning()
        self._story = Story(with_summaries=False)
        self._story.context = self._fold.context
        self._told: deque[tuple[int, bytes]] = deque()  # (position, line) as written
        self._snapshots: deque[tuple[int, bytes]] = deque()
        _first, last = self._window.span
        self._advance(max(self.position, last - HISTORY), tell=False)
        self._take_snapshot()

    def advance(self) -> None:
        """Follow the window up to now."""
        with self._lock:
            _first, last = self._window.span
            self._advance(last, tell=True)

    def _advance(self, last: int, tell: bool) -> None:
        while self.position < last:
            lines = self._window.after(self.position, min(FRAME_EVENTS, last - self.position))
            if lines is None:  # the window moved past it: nobody has watched for long
                self._start()
                return
            for line in lines:
                event = _decode(line)
                self.position += 1
                if tell:
                    told = list(self._story.tell([event]))  # this shows it to the context, too
                    self._told.extend((self.position, _encode(line)) for line in told)
                    self._fold.keep(event)
                else:
                    self._fold.see(event)
            if self.position - self._snapshot_position >= max(HISTORY // 2, self._num_blocks):
                self._take_snapshot()
        first, _last = self._window.span
        while self._told and self._told[0][0] < first:
            self._told.popleft()
        while len(self._snapshots) > 1 and self._snapshots[0][0] < first - 1:
            self._snapshots.popleft()

    @property
    def _num_blocks(self) -> int:
        state = self._fold.context.state
        return state.num_blocks if state is not None else 0

    @property
    def _snapshot_position(self) -> int:
        return self._snapshots[-1][0] if self._snapshots else self.position

    def _take_snapshot(self) -> None:
        self._snapshots.append((self.position, _encode(self._fold.snapshot())))

    def snapshot(self, history: int) -> tuple[int, bytes]:
        """Return (position, snapshot) of about `history` events ago; 0: of now."""
        with self._lock:
            if history == 0:
                if self._snapshots[-1][0] != self.position:
                    self._take_snapshot()
                return self._snapshots[-1]
            for position, snapshot in self._snapshots:
                if self.position - position <= history:
                    return position, snapshot
            return self._snapshots[-1]

    def lines_between(self, after: int, to: int) -> list[bytes]:
        """Return [position, line] for the log's lines about the events at these positions."""
        with self._lock:
            found: list[bytes] = []
            for position, line in reversed(self._told):
                if position <= after:
                    break
                if position <= to:
                    found.append(b"[%d,%s]" % (position, line))
            found.reverse()
            return found


class Viewers:
    """Hold all viewers. The follower exists while there are any."""

    def __init__(self, window: RecordWindow, epoch: str, ended: Callable[[], bool]):
        self.window = window
        self.epoch = epoch  # names this run of the server in event ids
        self.ended = ended
        self.num_viewers = 0
        self.num_skipped = 0  # events that viewers missed, in total
        self._follower: Follower | None = None
        self._lock = threading.Lock()

    def join(self) -> None:
        """Count one more viewer. Raises OverflowError when there are too many."""
        if self.num_viewers >= MOST_VIEWERS:
            raise OverflowError(f"{MOST_VIEWERS} viewers watch already; close one of them")
        self.num_viewers += 1

    def leave(self) -> None:
        self.num_viewers -= 1
        if self.num_viewers == 0:
            self._follower = None

    def follower(self) -> Follower:
        """Return the follower, up to date.

        The first call takes a second; call it on a thread.
        """
        with self._lock:
            follower = self._follower
            if follower is None:
                follower = self._follower = Follower(self.window)
        follower.advance()
        return follower

    async def frames(self, since: int | None) -> AsyncIterator[bytes]:
        """Yield a viewer's frames as server-sent events; it has seen everything up to `since`."""
        loop = asyncio.get_running_loop()
        news = asyncio.Event()

        def wake() -> None:
            loop.call_soon_threadsafe(news.set)

        viewer = Viewer(self, since)
        self.window.watch(wake)
        try:
            while not self.ended():
                news.clear()
                frame = await asyncio.to_thread(viewer.next_frame)
                if frame:
                    yield frame
                    await asyncio.sleep(0 if viewer.has_more else FRAME_S)
                else:
                    try:
                        await asyncio.wait_for(news.wait(), IDLE_S)
                    except TimeoutError:
                        continue
        finally:
            self.window.unwatch(wake)


class Viewer:
    """Hold one viewer's position, and what it is sent next."""

    def __init__(self, viewers: Viewers, since: int | None):
        self._viewers = viewers
        self._position = since  # None: it has received nothing
        self.has_more = False  # another frame could be made immediately

    def next_frame(self) -> bytes:
        """Return the next frame; empty if there is nothing new."""
        viewers = self._viewers
        follower = viewers.follower()
        first, last = viewers.window.span
        if self._position is None or self._position > last:
            return self._restart(follower, HISTORY, skipped=0)
        if last - self._position > BEHIND or self._position < first - 1:
            skipped = max(0, last - self._position)
            viewers.num_skipped += skipped
            return self._restart(follower, 0, skipped)
        most = min(FRAME_EVENTS, max(0, follower.position - self._position))
        lines = viewers.window.after(self._position, most)
        if not lines:
            self.has_more = lines is None
            return b""
        start, self._position = self._position, self._position + len(lines)
        self.has_more = self._position < follower.position
        told = follower.lines_between(start, self._position)
        body = b'{"position":%d,"events":[%s],"lines":[%s]}' % (
            start, b",".join(lines), b",".join(told)
        )  # fmt: skip
        return self._frame(b"events", body)

    def _restart(self, follower: Follower, history: int, skipped: int) -> bytes:
        self._position, snapshot = follower.snapshot(history)
        self.has_more = True
        facts: dict[str, Any] = {"position": self._position, "skipped": skipped}
        return self._frame(b"snapshot", _encode({**facts, "snapshot": msgspec.Raw(snapshot)}))

    def _frame(self, name: bytes, body: bytes) -> bytes:
        identity = f"{self._viewers.epoch}-{self._position}".encode()
        return b"event: %s\nid: %s\ndata: %s\n\n" % (name, identity, body)
