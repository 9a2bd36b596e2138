"""Hold the engine's news of a request until the coroutine that answers it reads them.

news = await mailbox.take()     one task switch for each time that news come
await mailbox.flow(taker)       none: the reader of the engine's socket calls `taker` itself

A stream of text reads its news itself, as long as they come one by one (`Reader`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from engine.core.messages import CoreOutput
from engine.server.http.errors import ApiError

Taker = Callable[[list[CoreOutput]], bool]
"""Takes news, at least one output; returns whether it takes more."""


class Reader(Protocol):
    """Get the news of a request."""

    def put(self, output: CoreOutput) -> None:
        """Add news. Call `hand_over` when all that came together are added."""

    def hand_over(self, now: float) -> None:
        """Do with the news what is to be done. It must be short, and raise nothing.

        now: of `time.monotonic`.
        """


class OwnReader(Reader, Protocol):
    """Get the news of one request, and pass on to its mailbox what it doesn't take itself."""

    def take_all(self, outputs: list[CoreOutput]) -> bool:
        """Take what it has passed on: the mailbox's `Taker`."""

    def leave(self) -> None:
        """Pass on to the mailbox what isn't handed over."""


class Mailbox:
    """Hold the unread news of one caller's requests.

    One coroutine reads them. It may be cancelled at any time.
    """

    __slots__ = ("_error", "_news", "_taker", "_wake")

    def __init__(self) -> None:
        self._news: list[CoreOutput] = []
        self._error: ApiError | None = None
        self._wake: asyncio.Future[None] | None = None
        self._taker: Taker | None = None

    async def take(self) -> list[CoreOutput]:
        """Return all news since the last call, at least one. Raises `ApiError` if the request
        failed."""
        while not self._news:
            await self.change()
        news, self._news = self._news, []
        return news

    @property
    def flows(self) -> bool:
        """Return whether a taker waits for news."""
        return self._taker is not None and self._wake is not None and not self._wake.done()

    async def flow(self, taker: Taker) -> None:
        """Have `taker` called with all news, as they come, until it returns False.

        It runs where the news arrive, so it must be short. Raises what it raises, and `ApiError` if
        the request failed. May return earlier: the caller asks again if it wants more.
        """
        if self._news:
            news, self._news = self._news, []
            if not taker(news):
                return
        self._taker = taker
        try:
            await self.change()
        finally:
            self._taker = None

    async def change(self) -> None:
        """Wait until there is news or a request is booked. Raises `ApiError` if one failed."""
        self.check()
        self._wake = asyncio.get_running_loop().create_future()
        await self._wake

    def check(self) -> None:
        """Raise the `ApiError` of a request that failed."""
        if self._error is not None:
            raise self._error

    def put(self, output: CoreOutput) -> None:
        """Add news. Call `hand_over` when all that came together are added."""
        self._news.append(output)

    def hand_over(self, now: float) -> None:
        """Give the coroutine its news: call its taker, or wake it."""
        if not self._news:  # it has read them meanwhile: its turn came before this call's
            return
        taker, wake = self._taker, self._wake
        if taker is None or wake is None or wake.done():  # done: the reader was cancelled
            self.wake()
            return
        news, self._news = self._news, []
        try:
            if not taker(news):
                self.stop_flow()
        except Exception as error:
            self.break_flow(error)

    def stop_flow(self) -> None:
        """Let the coroutine go on: its taker takes no more."""
        self._taker = None
        self.wake()

    def break_flow(self, error: Exception) -> None:
        """Raise in the coroutine what its taker raised: other requests have news, too."""
        wake, self._wake, self._taker = self._wake, None, None
        if wake is not None and not wake.done():
            wake.set_exception(error)

    def fail(self, error: ApiError) -> None:
        """Fail the reader: nothing more comes."""
        self._error = error
        self.wake()

    def wake(self) -> None:
        """Wake the reader, so that it looks again."""
        wake, self._wake = self._wake, None
        if wake is not None and not wake.done():
            wake.set_result(None)
