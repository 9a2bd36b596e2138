"""Hold the engine's news of a request until the coroutine that answers it reads them."""

from __future__ import annotations

import asyncio

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

    async def take(self) -> list[CoreOutput]:
        """Return all news since the last call, at least one. Raises `ApiError` if the request
        failed."""
        while not self._news:
            await self.change()
        news, self._news = self._news, []
        return news

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
        """Add news."""
        self._news.append(output)
        if self._wake is not None:
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
