"""Run uvicorn so that it ends as a platform wants: drain on SIGTERM, end with the engine."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from loguru import logger
from starlette.types import ASGIApp

from engine.server.app import create_app
from engine.server.http.connection import BoundedConnection
from engine.server.http.relay import RelayedConnection
from engine.server.service import Service

LOST_ANSWERS = 3  # exit code
ANSWER_TIMEOUT_S = 2.0  # for the last bytes of answers, when the server ends
FAILURE_SHOWN_S = 1.0  # /health shows for this long why the engine failed
_TICK_S = 0.02


class Server(uvicorn.Server):
    """Run uvicorn with another way of ending: stop admitting, finish running requests, then end."""

    def __init__(self, service: Service, wrap: Callable[[ASGIApp], ASGIApp] | None = None):
        """Prepare to serve. `wrap` is put around the application."""
        config = service.config
        app = create_app(service)
        super().__init__(
            uvicorn.Config(
                app if wrap is None else wrap(app),
                http=BoundedConnection,
                ws="none",  # whatever is installed
                log_config=None,  # `logs` has configured it
                access_log=False,  # the record shows the requests
                server_header=False,
                timeout_graceful_shutdown=int(ANSWER_TIMEOUT_S),
                timeout_keep_alive=75,  # longer than a proxy keeps its own side open
                ssl_keyfile=config.ssl_keyfile,
                ssl_certfile=config.ssl_certfile,
                ssl_ca_certs=config.ssl_ca_certs,
                ssl_cert_reqs=config.ssl_cert_reqs,
            )
        )
        self.service = service
        service.on_failure = self._engine_failed
        if service.others is not None:
            service.others.on_death = self._process_lost
        self.lost_process = False  # another server process died
        self.num_lost = 0  # answers that were given up
        self._ending: asyncio.Task[None] | None = None
        self._told_twice = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain on the first signal, give all answers up on the second, and exit on the third.

        Called by uvicorn, as a signal handler.
        """
        name = signal.Signals(sig).name
        if self._told_twice:
            self.should_exit = self.force_exit = True
        elif self.service.draining or self.service.client.state == "failed":
            self._told_twice = True
            self._loop.call_soon_threadsafe(self.start_giving_up, name)
        else:
            self.service.draining = True
            self._loop.call_soon_threadsafe(self.start_draining, name)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()  # signals are handled from here on
        await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        others = self.service.others
        if others is not None:  # what only this process can answer comes here
            inner = await self._loop.create_unix_server(self._connection, others.address)
            self.servers.append(inner)

    def _connection(self) -> RelayedConnection:
        return RelayedConnection(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )

    def start_draining(self, signal_name: str) -> None:
        """Take no new requests, answer the open ones, then end."""
        if self.service.others is not None:
            self.service.others.end(signal_name)
        self._ending = asyncio.create_task(self._drain(signal_name))

    async def _drain(self, signal_name: str) -> None:
        timeout_s = self.service.config.shutdown_timeout
        began_s = self._loop.time()
        if self.service.number == 1:
            logger.info(
                "{}: no new requests; the {} open ones get {:g} s to finish.",
                signal_name,
                self.service.num_open,
                timeout_s,
            )
        if not await self._answered(timeout_s):
            logger.warning("{} requests did not finish in time.", self.service.num_open)
            await self._give_up()
        # They were told at the same time, with the same timeout.
        await self._others_ended(began_s + timeout_s + 2 * ANSWER_TIMEOUT_S)
        self.should_exit = True

    def start_giving_up(self, signal_name: str) -> None:
        """End at once."""
        if self.service.others is not None:
            self.service.others.end(signal_name)
        if self._ending is not None:
            self._ending.cancel()
        logger.warning(
            "{} again: ending at once; {} answers are lost.", signal_name, self.service.num_open
        )
        self._ending = asyncio.create_task(self._end_at_once())

    async def _end_at_once(self) -> None:
        await self._give_up()
        self.should_exit = True

    async def _others_ended(self, deadline_s: float) -> None:
        """Wait until the other processes have ended; count those that lost answers."""
        others = self.service.others
        if others is None:
            return
        while others.num_running and self._loop.time() < deadline_s:
            await asyncio.sleep(_TICK_S)
        self.num_lost += others.num_running + others.num_with_losses

    def _process_lost(self, message: str) -> None:
        """End, because another server process has died: a platform starts all of them again."""
        logger.error("{} The server ends when the open requests are answered.", message)
        self.lost_process = True
        if not self.service.draining:
            self.service.draining = True
            self.start_draining("A process has died")

    async def _give_up(self) -> None:
        """Fail every open request, and give their last bytes the time to be sent."""
        self.num_lost += self.service.num_open
        self.service.client.abort_all("The server is shutting down; the answer is not complete.")
        await self._answered(ANSWER_TIMEOUT_S)

    def _engine_failed(self, message: str) -> None:
        self._ending = asyncio.create_task(self._end_after_failure())

    async def _end_after_failure(self) -> None:
        # Every open request has its error now; its bytes and the state must still be sent.
        await asyncio.gather(asyncio.sleep(FAILURE_SHOWN_S), self._answered(ANSWER_TIMEOUT_S))
        self.should_exit = True

    async def _answered(self, timeout_s: float) -> bool:
        """Wait until no request is open; return False if some still are after `timeout_s`."""
        deadline = self._loop.time() + timeout_s
        while self.num_unanswered and self._loop.time() < deadline:
            await asyncio.sleep(_TICK_S)
        return not self.num_unanswered

    @property
    def num_unanswered(self) -> int:
        """Count the requests that are answered before the process ends."""
        return self.service.num_open
