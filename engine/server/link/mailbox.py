"""Hold the engine's news of a request until the coroutine that answers it reads them.

news = await mailbox.take()     one task switch for each time that news come
await mailbox.flow(taker)       none: the reader of the engine's socket calls `taker` itself
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from engine.core.messages import CoreOutput
from engine.server.http.errors import ApiError


class Mailbox:
    """Hold the unread news of one caller's requests.

    One coroutine reads them. It may be cancelled at any time.
    """

    def __init__(self) -> None:
        self._news: list[CoreOutput] = []
        self._error: ApiError | None = None
        self._wake: asyncio.Future[None] | None = None
        self._taker: Callable[[list[CoreOutput]], bool] | None = None

    async def take(self) -> list[CoreOutput]:
        """Return all news since the last call, at least one. Raises `ApiError` if the request
        failed."""
        while not self._news:
            await self.change()
        news, self._news = self._news, []
        return news

    async def flow(self, taker: Callable[[list[CoreOutput]], bool]) -> None:
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

    def hand_over(self) -> None:
        """Give the reader its news: call its taker, or wake it."""
        taker, wake = self._taker, self._wake
        if taker is None or wake is None or wake.done():  # done: the reader was cancelled
            self.wake()
            return
        news, self._news = self._news, []
        try:
            wants_more = taker(news)
        except Exception as error:  # its reader's alone: other requests have news, too
            self._taker = self._wake = None
            wake.set_exception(error)
        else:
            if not wants_more:
                self._taker = None
                self.wake()

    def fail(self, error: ApiError) -> None:
        """Fail the reader: nothing more comes."""
        self._error = error
        self.wake()

    def wake(self) -> None:
        """Wake the reader, so that it looks again."""
        wake, self._wake = self._wake, None
        if wake is not None and not wake.done():
            wake.set_result(None)
