"""Run the engine's loop for several server processes (`--api-server-count`)."""

from __future__ import annotations

import contextlib
import select
import time

from loguru import logger

from engine.core.engine_core import EngineCore
from engine.core.messages import CoreOutput
from engine.server.link import wire
from engine.server.link.channel import Channel, Closed
from engine.server.link.engine_loop import Bookings, EngineLoop
from engine.server.link.pulse import tick_seconds
from engine.trace.events import RequestRefused

MOST_UNSENT = 64 * 2**20
"""Bytes that wait for one server process: millions of tokens. More: it reads no more."""


class ServerChannel:
    """Hold one server process: its channel, and what it isn't told yet."""

    def __init__(self, channel: Channel[wire.Order]):
        self.channel = channel
        self.bookings = Bookings()
        self.is_owed = False  # it has sent an order, and was told nothing since
        self.told_s = 0.0  # when it was last told something


class SharedLoop(EngineLoop):
    """Take the orders of several servers, and answer each request to the server that sent it.

    The first server also gets the state after each step. Each order of another one is followed by
    news, even if it is an abort, and while steps are computed it hears of them: by silence each
    server knows a hung engine. A request's id belongs to one server while it is open, and only that
    one may end it. What a server that has ended leaves is aborted. A server that reads slowly
    delays nobody: what it doesn't take yet waits here.
    """

    def __init__(self, core: EngineCore, channels: list[Channel[wire.Order]]):
        super().__init__(core, channels[0])
        self.servers = [ServerChannel(channel) for channel in channels]  # those that have not ended
        self._first = self.servers[0]
        self._owners: dict[str, ServerChannel] = {}  # by request id
        # After this time, a step is told to a server that has no tokens of it, too.
        self._longest_silence_s = tick_seconds(core.config.engine_timeout)

    def _take_orders(self, wait: bool) -> bool:
        if wait:
            self._sleep()
        took = False
        for server in list(self.servers):
            orders = server.channel.receive(wait=False)
            if orders is None and server is self._first:
                self.stopped = True
                return False
            if orders is None:
                self._ended(server)
                took = True
                continue
            took = took or bool(orders)
            for order in orders:
                server.is_owed = True
                self._take(server, order)
        self._call()
        for server in list(self.servers):
            booked = server.bookings.take(self.core.num_waiting)
            if booked is not None:
                self._tell(server, booked)
            elif server.channel.num_unsent:
                self._flush(server)
        return took

    def _wait(self, woken: int) -> set[int]:
        slow = [s.channel.fileno() for s in self.servers if s.channel.num_unsent]
        all_ = [s.channel.fileno() for s in self.servers]
        came, ready, _ = select.select([*all_, woken], slow, [])
        return {*came, *ready}

    def _take(self, server: ServerChannel, order: wire.Order) -> None:
        if isinstance(order, wire.Add):
            self._add(server, order)
        elif isinstance(order, (wire.Abort, wire.Finish)):
            if self._owners.get(order.request_id) is server:
                self._carry_out(order)
                self._forget(order.request_id)
        elif not isinstance(order, wire.Stop) or server is self._first:
            self._carry_out(order)

    def _add(self, server: ServerChannel, order: wire.Add) -> None:
        request_id, most = order.request.request_id, self.core.config.max_num_queued_reqs
        num_waiting = self.core.num_waiting + len(self._gate)
        refusal = None
        if request_id in self._owners:
            message = f"request_id {request_id!r} is in use."
            refusal = wire.Refusal(order.number, "request_id", message)
        elif num_waiting >= most:  # no server knows how many the others have sent
            message = f"{num_waiting} requests wait already, and at most {most} may. Try later."
            refusal = wire.Refusal(order.number, None, message, is_busy=True)
        if refusal is not None:
            self.core.record(RequestRefused(request_id=request_id, why=refusal.message))
            server.bookings.refused(refusal)
            return
        self._owners[request_id] = server

        def settled(error: Exception | None) -> None:
            if error is not None:
                self._owners.pop(request_id, None)
            server.bookings.settled(order.number, error)

        self._gate.add(order.request, settled)

    def _forget(self, request_id: str) -> None:
        """Forget whose a request was, once none of its sequences is left."""
        if request_id not in self.core.books.groups and request_id not in self._gate:
            self._owners.pop(request_id, None)

    def _ended(self, server: ServerChannel) -> None:
        self.servers.remove(server)
        server.channel.close()
        for request_id in [name for name, owner in self._owners.items() if owner is server]:
            self._gate.abort(request_id, "its API server process has ended")
            del self._owners[request_id]

    # ------------------------------------------------------------------------------ news

    def _tell_step(self, outputs: list[CoreOutput]) -> None:
        stats = self.core.stats()
        now_s = time.monotonic()
        by_server: dict[ServerChannel, list[CoreOutput]] = {
            server: []
            for server in self.servers
            if server is self._first
            or server.is_owed
            or now_s - server.told_s > self._longest_silence_s
        }
        ended = []
        for output in outputs:
            owner = self._owners.get(output.request_id)
            if owner is not None:
                by_server.setdefault(owner, []).append(output)
                if output.finish_reason is not None:
                    ended.append(output.request_id)
        for request_id in ended:  # only now: its other sequences may have ended in this step, too
            self._forget(request_id)
        for server, its in by_server.items():
            self._tell(server, wire.Step(its, stats))

    def _tell(self, server: ServerChannel, news: wire.News) -> None:
        server.is_owed, server.told_s = False, time.monotonic()
        if server is self._first:  # as one alone: without it nothing goes on
            server.channel.send(wire.encode(news))
            return
        server.channel.keep(wire.encode(news))
        self._flush(server)

    def _flush(self, server: ServerChannel) -> None:
        with contextlib.suppress(Closed):  # the next `receive` says so
            server.channel.flush()
        if server.channel.num_unsent > MOST_UNSENT:
            logger.error("An API server process reads nothing: its requests are aborted.")
            self._ended(server)
