"""Run further server processes on the port of this one: `--api-server-count`.

    clients ──▶ the port ──▶ process 1, which owns the engine process, the record and the metrics
                        └──▶ process 2, 3, …, each with a socket of its own that the kernel feeds

Each reads, tokenizes and answers its connections itself, with its own channel to the engine. What
must be one truth (`/metrics`, `/trace`, `/load`, the page) process 1 tells: the others pass such
requests on to it (`http/relay.py`). When one of them dies, its requests are aborted in the engine,
those of the others are answered, and the server ends with exit code 1, so that a platform starts it
afresh. One that hangs is killed: process 1 asks each of them regularly, by the rules of `Pulse`.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import signal
import socket
import tempfile
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

from loguru import logger

from engine.config import EngineConfig
from engine.server.link import control
from engine.server.link.channel import Frames, framed
from engine.server.link.engine_start import EngineStart
from engine.server.link.pulse import Pulse, cpu_seconds, tick_seconds
from engine.server.record.trace_hub import TraceHub

ASK_S = 1.0  # a process that is busy for longer is shown as it was when it was last asked
EXIT_S = 5.0


class ApiEnds(NamedTuple):
    """Hold what a further server process gets from the first one."""

    listener: socket.socket
    engine: socket.socket  # orders go out, news come in
    record: socket.socket  # events go out
    control: socket.socket


class ApiServers:
    """Hold the other server processes. Use it on one event loop; `start` on the main thread.

    `on_death(message)` is called once if one ends without having been told to.
    """

    def __init__(
        self,
        config: EngineConfig,
        listeners: Sequence[socket.socket],
        run: Callable[[EngineConfig, int, ApiEnds, str, int, bool], None],
    ):
        """Prepare a process for each of `listeners`; `run` is its main function."""
        self.config = config
        self._run = run
        self.on_death: Callable[[str], None] = lambda message: None
        self._listeners = listeners
        self._others: list[_Other] = []
        self._told: list[str] = []  # the signals that tell them to end

    @cached_property
    def folder(self) -> tempfile.TemporaryDirectory[str]:
        """Make the folder of the Unix socket. `stop` removes it, so don't ask before it would."""
        return tempfile.TemporaryDirectory(prefix="glasshouse-")

    @property
    def address(self) -> str:
        """Return the Unix socket of the first process."""
        return str(Path(self.folder.name) / "first")

    async def start(self, engine: EngineStart, hub: TraceHub, makes_spans: bool) -> None:
        """Start the processes, for the engine that runs already.

        Raises OSError if one of them can't be started; `stop` ends the others.
        """
        self._watch(asyncio.get_running_loop().time())
        spawn = multiprocessing.get_context("spawn")
        ways = zip(self._listeners, engine.other_ends)
        for number, (listener, engine_end) in enumerate(ways, start=2):
            if self._told:
                return
            record_end, its_record_end = socket.socketpair()
            control_end, its_control_end = socket.socketpair()
            ends = ApiEnds(listener, engine_end, its_record_end, its_control_end)
            process = spawn.Process(
                target=self._run,
                args=(self.config, number, ends, self.address, engine.pid, makes_spans),
                name=f"API server {number}",
            )
            try:
                process.start()
            except OSError:
                record_end.close()
                control_end.close()
                raise
            finally:
                for end in ends:
                    end.close()  # the process has its own copies: they are gone when it ends
            hub.listen(record_end)
            other = _Other(process, number, self.config.engine_timeout)
            self._others.append(other)
            loop = asyncio.get_running_loop()
            other.transport, _ = await loop.create_unix_connection(
                partial(_same, other), sock=control_end
            )
            loop.add_reader(process.sentinel, self._ended, other)

    @property
    def are_up(self) -> bool:
        """Return whether all of them take requests."""
        return len(self._others) == len(self._listeners) and all(o.is_up for o in self._others)

    @property
    def num_running(self) -> int:
        return sum(other.process.is_alive() for other in self._others)

    @property
    def num_with_losses(self) -> int:
        """Count the processes that ended before they had answered all."""
        return sum(other.is_up and bool(other.process.exitcode) for other in self._others)

    @property
    def pids(self) -> list[int]:
        """Return the ids of those that run."""
        return [other.process.pid or 0 for other in self._others if other.process.is_alive()]

    async def counts(self) -> list[control.ProcessCounts]:
        """Return what each has counted."""
        asked = [other.ask() for other in self._others if not other.is_gone]
        if asked:
            await asyncio.wait(asked, timeout=ASK_S)
        return [other.counts for other in self._others]

    def end(self, signal_name: str) -> None:
        """Tell all to answer what they have, and to end; a second time, to end at once.

        One that takes no requests yet is killed: it has nothing to answer, and would only listen
        when it has imported and loaded what it serves with.
        """
        self._told.append(signal_name)
        for other in self._others:
            if other.is_up:
                other.send(control.End(signal_name))
            else:
                other.process.kill()

    async def stop(self) -> None:
        """Wait until all have ended, for a while; kill what is left."""
        if not self._told:
            self.end("stop")
            self.end("stop")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + EXIT_S
        while self.num_running and loop.time() < deadline:
            await asyncio.sleep(0.02)
        for other in self._others:
            loop.remove_reader(other.process.sentinel)
            if other.process.is_alive():
                other.process.kill()
            other.process.join()
            other.close()
        self.folder.cleanup()

    def _ended(self, other: _Other) -> None:
        asyncio.get_running_loop().remove_reader(other.process.sentinel)
        other.process.join()
        if self._told:
            return
        code = other.process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        self.on_death(f"API server process {other.number} {how}.")

    def _watch(self, last_s: float) -> None:
        """Kill the processes that hang; do this again at the next tick."""
        if self._told:
            return
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        for other in self._others:
            other.tick(now_s - last_s)
        loop.call_later(tick_seconds(self.config.engine_timeout), self._watch, now_s)


def _same(other: _Other) -> _Other:
    return other


class _Other(asyncio.Protocol):
    """Speak to one process."""

    def __init__(self, process: multiprocessing.process.BaseProcess, number: int, timeout_s: float):
        self.process = process
        self.number = number
        self.is_up = False
        self.counts = control.ProcessCounts(0, 0, 0, [])
        self._frames = Frames()
        self.transport: asyncio.Transport | None = None
        self._asked: asyncio.Future[None] | None = None
        self._heard = False  # since the last tick
        self._pulse = Pulse(timeout_s, lambda: cpu_seconds(process.pid or 0))

    def tick(self, elapsed_s: float) -> None:
        """Ask the process for a sign of life; kill it if it has given none for too long.

        One that doesn't take requests yet may take any time, as a model that is loaded.
        """
        if not self.is_up or self.is_gone:
            return
        hangs = bool(self._pulse.tick(elapsed_s, self._heard, owes=True))
        self._heard = hangs  # that is told once
        if hangs:
            silent_s = self._pulse.silent_s
            logger.error("API server process {} is silent for {:.0f} s.", self.number, silent_s)
            self.process.kill()
        self.ask()

    @property
    def is_gone(self) -> bool:
        return self.transport is None or self.transport.is_closing()

    def send(self, order: control.Ask | control.End) -> None:
        if self.transport is not None and not self.is_gone:
            self.transport.write(framed(control.encode(order)))

    def ask(self) -> asyncio.Future[None]:
        """Ask for its counts; the future is done when they are there."""
        if self._asked is None or self._asked.done():
            self._asked = asyncio.get_running_loop().create_future()
            self.send(control.Ask())
        return self._asked

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        self._heard = True
        for message in self._frames.feed(data):
            answer = control.decode_answer(message)
            if isinstance(answer, control.Up):
                self.is_up = True
            else:
                self.counts = answer
                self._answered()

    def connection_lost(self, exc: Exception | None) -> None:
        self._answered()

    def _answered(self) -> None:
        with contextlib.suppress(asyncio.InvalidStateError):
            if self._asked is not None:
                self._asked.set_result(None)
