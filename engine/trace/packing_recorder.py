"""Pack the record of a process whose readers are in another process.

    loop ──record()──▶ list ──pack(), every few steps──▶ bytes ──every 50 ms, drain thread──▶ send()

The loop itself packs the events of its last steps, while they are still in the processor's caches.
256 requests make 16 KB of rows in each step; if the drain thread packed them, they would cost the
loop several times as much (docs/archive/NOTES.md, "The host's part for many rows"). The drain
thread sends, because sending may wait.
"""

from __future__ import annotations

from collections.abc import Callable

from engine.trace.events import Event
from engine.trace.files import bundle, pack
from engine.trace.recorder import Recorder

AT_ONCE = 16
"""Pack from this many events on: those of about four steps."""


class PackingRecorder(Recorder):
    """Record like `Recorder`, but send packed messages to `send` instead of to subscribers.

    `files.unpack` reads the messages. Up to `capacity` events wait to be packed, and about as many
    to be sent.
    """

    def __init__(
        self,
        send: Callable[[bytes], None],
        level: str = "steps",
        src: str = "core",
        text: bool = True,
        capacity: int = 200_000,
    ) -> None:
        self._send = send
        self._packed: list[bytes] = []
        self._num_packed = 0  # events in `_packed`
        super().__init__(level, src, text, capacity)

    def pack(self) -> None:
        if len(self._buffer) >= AT_ONCE and self._num_packed < self.capacity:
            with self._lock:
                self._pack()

    def _pack(self) -> None:
        batch = self._take(everything=True)
        if not batch:
            return
        try:
            self._packed.append(pack(batch))
        except Exception:
            self._pack_one_by_one(batch)
        self._num_packed += len(batch)

    def _pack_one_by_one(self, batch: list[Event]) -> None:
        """Pack a batch of which at least one event can't be packed: that one alone is lost."""
        for event in batch:
            try:
                self._packed.append(pack([event]))
            except Exception as error:
                self._lose(self._send, error)

    def _drain(self, everything: bool = False) -> None:
        with self._lock:
            self._pack()
            packed, self._packed, self._num_packed = self._packed, [], 0
        if not packed:
            return
        try:
            self._send(bundle(packed))
        except Exception:  # the readers are gone
            self.enabled = False
