"""Start the other ranks' processes from rank 0, tell them what to compute, and watch them.

A rank that ends, however it ends, closes its connection. Whoever waits for its numbers then learns
it from the kernel of the system (`ranks.cpp`), and a thread that watches the connections says which
rank it was.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

from engine.config import ConfigError, EngineConfig
from engine.kernels.cpu.build import BuildError
from engine.kernels.cpu.rank_ops import MOST_RANKS, SharedMemoryRanks, shared_bytes
from engine.kernels.ranks import RankLost
from engine.trace.events import RankShare
from engine.worker.parallel.rank_messages import Loaded, RankFailed, Start, receive, send

ROOT = str(Path(__file__).resolve().parents[3])
END_S = 5.0
"""Seconds that a rank gets to end by itself; then it is killed."""


class OtherRanks:
    """Hold the processes of ranks 1, 2, …: `wait_until_loaded`, then `tell` what to compute."""

    def __init__(self, config: EngineConfig, folder: Path) -> None:
        """Start the processes, which begin to load the model in `folder`.

        Raises `ConfigError` if ranks can't be joined here.
        """
        self.size = config.tensor_parallel_size
        try:
            num_bytes = shared_bytes(self.size)
        except BuildError as error:
            raise ConfigError(f"--tensor-parallel-size is {self.size}, but {error}.") from None
        file = _shared_file(num_bytes)
        self._connections: list[Connection] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self.shares: list[RankShare] = []  # of ranks 1, 2, …, when they are loaded
        self.lost = ""  # which rank is gone, and how it ended
        self._found = threading.Event()  # set when `lost` is
        self._on_lost: Callable[[], None] = lambda: None
        self._end = weakref.finalize(self, _end, self._connections, self._processes)
        try:
            for rank in range(1, self.size):
                self._start(file, rank, replace(config, model=str(folder), tokenizer=None))
            memory = mmap.mmap(file, num_bytes)
        finally:
            os.close(file)
        fds = [connection.fileno() for connection in self._connections]
        self.ranks = SharedMemoryRanks(memory, 0, self.size, fds)

    def _start(self, file: int, rank: int, config: EngineConfig) -> None:
        ours, theirs = Pipe()
        command = [sys.executable, "-m", "engine.worker.parallel.rank_process"]
        path = os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))
        process = subprocess.Popen(
            [*command, str(theirs.fileno()), str(file), str(self.size)],
            pass_fds=(theirs.fileno(), file),
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
        )
        theirs.close()
        self._connections.append(ours)
        self._processes.append(process)
        send(ours, Start(config, rank))

    def wait_until_loaded(self) -> None:
        """Wait until all ranks have their weights, and begin to watch. Raises `RankLost`."""
        for connection in self._connections:
            try:
                answer = receive(connection)
            except (EOFError, OSError):
                answer = None
            if not isinstance(answer, Loaded):
                self._lose(connection, answer)
                self.check()
            else:
                self.shares.append(answer.share)
        threading.Thread(target=_watch, args=(weakref.ref(self),), daemon=True).start()

    def tell(self, message: Any) -> None:
        """Send a message to every rank. Raises `RankLost`."""
        for connection in self._connections:
            try:
                send(connection, message)
            except OSError:
                self._raise()

    def watch(self, on_lost: Callable[[], None]) -> None:
        """Call `on_lost`, from another thread, when a rank is gone."""
        self._on_lost = on_lost
        if self._found.is_set():
            on_lost()

    def check(self) -> None:
        """Raise `RankLost` if a rank is gone."""
        if self._found.is_set():
            raise RankLost(self.lost)
        try:
            self.ranks.check()
        except RankLost:
            self._raise()

    def close(self) -> None:
        """End the other ranks."""
        self._end()

    def _raise(self) -> None:
        """Raise the error of a rank that is gone, once it is known which."""
        self._found.wait(END_S)
        raise RankLost(self.lost or "a process of the model has ended")

    def _lose(self, connection: Connection, answer: Any) -> None:
        """Note that the rank of a connection is gone. answer: the last that it said."""
        place = self._connections.index(connection)
        how = (
            answer.why if isinstance(answer, RankFailed) else _how_it_ended(self._processes[place])
        )
        self.lost = f"rank {place + 1} of {self.size}, a process of the model, {how}"
        self._found.set()
        self._on_lost()


def check_size(config: EngineConfig, device_type: str) -> None:
    """Raise `ConfigError` where a model can't be divided, whatever model it is."""
    size = config.tensor_parallel_size
    if device_type != "cpu":
        raise ConfigError(
            f"--tensor-parallel-size is {size}: this version divides a model among processes of a"
            f" CPU only, and --device is {device_type}. Take a GPU that holds the model"
            " (python -m engine.fit MODEL)."
        )
    if size > MOST_RANKS:
        raise ConfigError(f"--tensor-parallel-size is {size}; at most {MOST_RANKS} can share one.")


def _watch(ranks: weakref.ref[OtherRanks]) -> None:
    """Wait until a connection ends or its rank says why it will."""
    held = ranks()
    if held is None:
        return
    connections = list(held._connections)
    del held  # so that it can be collected while this thread waits
    try:
        ready = wait(connections)[0]
        answer = receive(ready)  # type: ignore[arg-type]
    except (EOFError, OSError):
        answer = None
    held = ranks()
    if held is not None and held._end.alive:
        held._lose(ready, answer)  # type: ignore[arg-type]


def _how_it_ended(process: subprocess.Popen[bytes]) -> str:
    with contextlib.suppress(subprocess.TimeoutExpired):
        code = process.wait(END_S)
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"ended with code {code}"
    return "closed its connection"


def _end(connections: list[Connection], processes: list[subprocess.Popen[bytes]]) -> None:
    for connection in connections:  # not closed yet: a thread waits for them, and sees this
        with socket.socket(fileno=os.dup(connection.fileno())) as end, contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
    for process in processes:
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for connection in connections:
        connection.close()


def _shared_file(num_bytes: int) -> int:
    """Return the number of a file of zeros in memory, which has no name that could stay behind."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("glasshouse-ranks")
    else:
        with tempfile.TemporaryFile() as temporary:
            file = os.dup(temporary.fileno())
    os.ftruncate(file, num_bytes)
    return file
