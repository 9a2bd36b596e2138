"""Run a further server process: HTTP and text for its connections, one engine with the others."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
import socket
import sys
from types import FrameType

from starlette.types import ASGIApp

from engine.child_process import end_with_parent
from engine.config import EngineConfig
from engine.server import logs
from engine.server.api_servers import ApiEnds
from engine.server.ending import LOST_ANSWERS, Server
from engine.server.http.relay import Relay
from engine.server.link import control
from engine.server.link.channel import Channel, Frames, framed
from engine.server.link.engine_client import EngineEnd
from engine.server.service import Service, SharedEngine
from engine.trace.files import unpack


def run_api_process(
    config: EngineConfig,
    number: int,
    ends: ApiEnds,
    first: str,
    engine_pid: int,
    makes_spans: bool,
) -> None:
    """Run the process until the first one tells it to end, or dies. `first`: its Unix socket."""
    end_with_parent()
    # A terminal or a platform signals the whole group: the first process decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logs.configure(config)
    # The record's readers are in the first process.
    own = dataclasses.replace(config, trace_file=None, log_format="off")
    record = Channel(ends.record, unpack)
    engine = EngineEnd(ends.engine, engine_pid)
    service = Service(own, shared=SharedEngine(number, engine, record.send, makes_spans))
    server = ApiServer(service, first, ends.control)
    server.run(sockets=[ends.listener])
    if service.client.state == "failed":
        sys.exit(1)
    sys.exit(LOST_ANSWERS if server.num_lost else 0)


class ApiServer(Server):
    """Run uvicorn as the first process says."""

    def __init__(self, service: Service, first: str, control_end: socket.socket):

        def wrap(app: ASGIApp) -> ASGIApp:
            self._relay = Relay(app, first, service.config)
            return self._relay

        super().__init__(service, wrap)
        self._control_end = control_end
        self._told_to_end = False
        self._first: asyncio.Transport | None = None
        service.on_ready = lambda: self.tell(control.Up())

    @property
    def num_unanswered(self) -> int:
        return super().num_unanswered + self._relay.num_asking

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Ignore signals: the first process gets them, too."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_unix_connection(
            lambda: _Orders(self), sock=self._control_end
        )
        self._first = transport
        await super().startup(sockets)

    def tell(self, answer: control.Up | control.ProcessCounts) -> None:
        """Send the first process an answer."""
        if self._first is not None:
            self._first.write(framed(control.encode(answer)))

    def take(self, order: control.Ask | control.End) -> None:
        """Carry out an order of the first process."""
        service = self.service
        if isinstance(order, control.Ask):
            self.tell(
                control.ProcessCounts(
                    service.num_open,
                    service.client.requests.num_unbooked,
                    service.recorder.events_lost,
                    service.metrics.counted(),
                )
            )
        elif not self._told_to_end:
            self._told_to_end = service.draining = True
            self.start_draining(order.signal)
        else:
            self.start_giving_up(order.signal)


class _Orders(asyncio.Protocol):
    """Pass the first process's orders on."""

    def __init__(self, server: ApiServer):
        self._server = server
        self._frames = Frames()

    def data_received(self, data: bytes) -> None:
        for message in self._frames.feed(data):
            self._server.take(control.decode_order(message))
