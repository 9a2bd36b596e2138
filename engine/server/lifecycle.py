"""Start and end a server: bind first, load then, drain on SIGTERM, end with its engine.

Exit codes: 0 after SIGTERM or Ctrl-C, 1 when the engine failed (a platform then starts a new one),
3 when the server was told to end and answers were lost: they had not finished in time, or it was
told twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import stat
from collections.abc import Callable
from types import FrameType

import uvicorn
from loguru import logger
from starlette.types import ASGIApp

from engine.config import ConfigError, EngineConfig
from engine.server import logs
from engine.server.api_servers import ApiServers
from engine.server.app import create_app
from engine.server.http.connection import BoundedConnection
from engine.server.link.engine_process import Load, load_worker
from engine.server.service import Service

LOST_ANSWERS = 3  # exit code
ANSWER_TIMEOUT_S = 2.0  # for the last bytes of answers, when the server ends
FAILURE_SHOWN_S = 1.0  # /health shows for this long why the engine failed
_TICK_S = 0.02


def serve(config: EngineConfig, load: Load = load_worker) -> int:
    """Run the server until it is told to end; return the exit code.

    Raises `ConfigError` for a port that is in use.
    """
    logs.configure(config)
    others = config.api_server_count - 1
    listener = bind_unix(config.uds) if config.uds else bind(config.host, config.port, others > 0)
    port = 0 if config.uds else listener.getsockname()[1]
    listeners = [bind(config.host, port, True, listens=False) for _ in range(others)]
    print(f"Glasshouse listens on {address(config, listener)}", flush=True)
    service = Service(config, load)
    if others:
        service.others = ApiServers(config, listeners)
    server = Server(service)
    server.run(sockets=[listener])
    if config.uds:
        with contextlib.suppress(OSError):
            os.unlink(config.uds)
    if service.client.state == "failed" or server.lost_process:
        return 1
    return LOST_ANSWERS if server.num_lost else 0


def address(config: EngineConfig, listener: socket.socket) -> str:
    """Return where clients find the server."""
    scheme = "https" if config.ssl_certfile else "http"
    if config.uds:
        return f"{scheme}+unix://{config.uds}"
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def bind_unix(path: str) -> socket.socket:
    """Listen on a Unix socket, and replace one that a dead server left behind.

    Raises `ConfigError` for a socket in use, and for a path that can't be one.
    """
    told = f"--uds {path}"
    try:
        if stat.S_ISSOCK(os.stat(path).st_mode):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
                if other.connect_ex(path) == 0:
                    raise ConfigError(f"{told}: another server listens there.")
            os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _can_not_listen(told, error) from None
    return _listening(socket.AF_UNIX, 0, path, told)


def bind(host: str, port: int, is_shared: bool = False, listens: bool = True) -> socket.socket:
    """Open a listening socket before anything slow is done.

    So a health check finds the port from the first second. `is_shared`: several sockets of this
    user may listen there, and the kernel divides new connections among them. Not `listens`: only
    reserve the port; uvicorn listens when the process that gets the socket takes connections.
    """
    told = f"--host {host} --port {port}"
    try:
        family, _, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise _can_not_listen(told, error) from None
    return _listening(family, protocol, address, told, is_shared, listens)


def _listening(
    family: int,
    protocol: int,
    address: object,
    told: str,
    is_shared: bool = False,
    listens: bool = True,
) -> socket.socket:
    """Return a socket that listens, or only holds its address.

    Closes it and raises `ConfigError` where it can't.
    """
    listener = socket.socket(family, socket.SOCK_STREAM, protocol)
    try:
        if family != socket.AF_UNIX:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)  # type: ignore[arg-type]
        if listens:
            listener.listen(1024)
    except OSError as error:
        listener.close()
        raise _can_not_listen(told, error) from None
    return listener


def _can_not_listen(told: str, error: OSError) -> ConfigError:
    return ConfigError(f"{told}: can't listen there ({error.strerror or error}).")


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

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        others = self.service.others
        if others is not None:  # what only this process can answer comes here
            inner = await self._loop.create_unix_server(self._connection, others.address)
            self.servers.append(inner)

    def _connection(self) -> BoundedConnection:
        return BoundedConnection(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )

    def start_draining(self, signal_name: str) -> None:
        """Take no new requests, answer the open ones, then end."""
        if self.service.others is not None:
            self.service.others.end(signal_name)
        self._ending = asyncio.create_task(self._drain(signal_name))

    async def _drain(self, signal_name: str) -> None:
        timeout_s = self.service.config.shutdown_timeout
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
        await self._others_ended(timeout_s)
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

    async def _others_ended(self, timeout_s: float) -> None:
        """Wait until the other processes have ended; count those that lost answers."""
        others = self.service.others
        if others is None:
            return
        deadline = self._loop.time() + timeout_s + 2 * ANSWER_TIMEOUT_S
        while others.num_running and self._loop.time() < deadline:
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
        while self.service.num_open and self._loop.time() < deadline:
            await asyncio.sleep(_TICK_S)
        return not self.service.num_open
