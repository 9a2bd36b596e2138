"""Hold the engine's news of a request until the coroutine that answers it reads them."""

from __future__ import annotations

import asyncio

from engine.core.messages import CoreOutput, CoreRequest
from engine.server.http.errors import ApiError


class Mailbox:
    """Hold the unread news of one caller's requests."""

    def __init__(self) -> None:
        self._news: list[CoreOutput] = []
        self._error: ApiError | None = None
        self._wake: asyncio.Future[None] | None = None

    async def take(self) -> list[CoreOutput]:
        """Return all news since the last call, at least one. Raises `ApiError` if the request
        failed."""
        while not self._news:
            if self._error is not None:
                raise self._error
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
        news, self._news = self._news, []
        return news

    def put(self, output: CoreOutput) -> None:
        self._news.append(output)
        if self._wake is not None:
            self._wake_reader()

    def fail(self, error: ApiError) -> None:
        self._error = error
        self._wake_reader()

    def _wake_reader(self) -> None:
        wake, self._wake = self._wake, None
        if wake is not None and not wake.done():
            wake.set_result(None)


class OpenRequest:
    """Hold one request in the engine. `booked` is done when the core took it, or raises why not."""

    def __init__(self, request: CoreRequest, mailbox: Mailbox):
        self.id = request.request_id
        self.mailbox = mailbox
        self.booked: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.unfinished = set(range(request.params.n))  # indices of the sequences that still run

    def deliver(self, output: CoreOutput) -> None:
        """Deliver an output. Outputs of a sequence that has ended are dropped."""
        if output.index in self.unfinished:
            if output.finish_reason is not None:
                self.unfinished.discard(output.index)
            self.mailbox.put(output)

    def fail(self, error: ApiError) -> None:
        if not self.booked.done():
            self.booked.set_exception(error)
            self.booked.exception()  # perhaps nobody awaits it any more
        self.mailbox.fail(error)
