"""Notice an engine that is alive and does nothing: a step that never ends, a stopped process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

TICKS = 20
"""Looks within the time that an engine may be silent."""
LONGEST_TICK_S = 1.0


class Silence:
    """Measure how long the engine has said nothing while requests are open.

    An engine without requests may be silent for ever. Messages are counted, not timed, so that one
    costs an addition; `silent_s` is exact to one tick.
    """

    def __init__(
        self, timeout_s: float, is_waiting: Callable[[], bool], give_up: Callable[[float], None]
    ) -> None:
        """Call `give_up(silent_s)` after `timeout_s` seconds of silence; 0: never."""
        self.timeout_s = timeout_s
        self.num_messages = 0
        self.silent_s = 0.0
        self._seen = 0
        self._is_waiting, self._give_up = is_waiting, give_up
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_long(self) -> bool:
        """Return whether half of the time is over: the engine is shown as stalled."""
        return 0 < self.timeout_s <= 2 * self.silent_s

    def watch(self) -> None:
        """Begin to look, on the running loop."""
        if self.timeout_s > 0:
            self._loop = asyncio.get_running_loop()
            self._looked = self._loop.time()
            self._schedule()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _schedule(self) -> None:
        tick_s = min(LONGEST_TICK_S, self.timeout_s / TICKS)
        self._timer = self._loop.call_later(tick_s, self._look)

    def _look(self) -> None:
        # A loop that was itself held up for long must not take its own pause for the engine's.
        tick_s = min(self._loop.time() - self._looked, 2 * LONGEST_TICK_S)
        self._looked = self._loop.time()
        heard = self.num_messages != self._seen
        self._seen = self.num_messages
        self.silent_s = 0.0 if heard or not self._is_waiting() else self.silent_s + tick_s
        if self.silent_s >= self.timeout_s:
            self._give_up(self.silent_s)
        else:
            self._schedule()
