"""Start and end a server: bind first, load then, drain on SIGTERM, end with its engine.

Exit codes: 0 after SIGTERM or Ctrl-C, 1 when the engine failed (a platform then starts a new one),
3 when the server was told to end and answers were lost: they had not finished in time, or it was
told twice.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
from types import FrameType

from engine.config import ConfigError, EngineConfig
from engine.core.garbage_collection import collector_off
from engine.server.link.engine_start import EngineStart, Load

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def serve(config: EngineConfig, load: Load | None = None) -> int:
    """Run the server until it is told to end; return the exit code.

    load: what makes the executor; None: the real one. Raises `ConfigError` for a port that is in
    use.
    """
    others = config.api_server_count - 1
    listener = bind_unix(config.uds) if config.uds else bind(config.host, config.port)
    listeners: list[socket.socket] = []
    if others:
        listener, *listeners = share(config.host, listener, others + 1)
    print(f"Glasshouse listens on {address(config, listener)}", flush=True)
    engine = EngineStart(config.api_server_count)
    _end_early(config, engine)
    try:
        engine.run(config, load)
        return _serve(config, engine, listener, listeners)
    finally:
        for number in SIGNALS:  # the exit code is known, and what is left takes no time
            signal.signal(number, signal.SIG_IGN)
        _undo(config, engine)


def _serve(
    config: EngineConfig,
    engine: EngineStart,
    listener: socket.socket,
    listeners: list[socket.socket],
) -> int:
    """Serve with an engine process that runs; return the exit code."""
    # Only now, as they take a second: the engine process imports its own at the same time.
    with collector_off():
        from engine.server import logs
        from engine.server.api_process import run_api_process
        from engine.server.api_servers import ApiServers
        from engine.server.ending import LOST_ANSWERS, Server
        from engine.server.service import Service

    logs.configure(config)
    service = Service(config, engine=engine)
    if listeners:
        service.others = ApiServers(config, listeners, run_api_process)
    server = Server(service)
    server.run(sockets=[listener])
    if service.client.state == "failed" or server.lost_process:
        return 1
    return LOST_ANSWERS if server.num_lost else 0


def _end_early(config: EngineConfig, engine: EngineStart) -> None:
    """End when told to before uvicorn handles signals: nobody has an answer to wait for."""

    # Not by an exception: what is being imported may turn it into an error of its own.
    def end(number: int, frame: FrameType | None) -> None:
        try:
            _undo(config, engine)
        finally:
            os._exit(0)

    for number in SIGNALS:
        signal.signal(number, end)


def _undo(config: EngineConfig, engine: EngineStart) -> None:
    """End the engine process and remove the Unix socket."""
    engine.close()
    if config.uds:
        with contextlib.suppress(OSError):
            os.unlink(config.uds)


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


def bind(host: str, port: int) -> socket.socket:
    """Open a listening socket before anything slow is done.

    So a health check finds the port from the first second.
    """
    family, protocol, address = _found(host, port)
    return _listening(family, protocol, address, _told(host, port))


def share(host: str, alone: socket.socket, count: int) -> list[socket.socket]:
    """Return `count` sockets on the port of one that is alone there; the first one listens.

    The kernel divides new connections among those that listen. The others only hold the port:
    uvicorn listens when its process takes connections.
    """
    port = alone.getsockname()[1]
    family, protocol, address = _found(host, port)
    # Another server would share its port as silently, so `alone` has found out that there is none.
    alone.close()
    return [
        _listening(family, protocol, address, _told(host, port), True, number == 0)
        for number in range(count)
    ]


def _found(host: str, port: int) -> tuple[int, int, object]:
    """Return family, protocol and address of a socket."""
    try:
        family, _, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise _can_not_listen(_told(host, port), error) from None
    return family, protocol, address


def _told(host: str, port: int) -> str:
    return f"--host {host} --port {port}"


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
