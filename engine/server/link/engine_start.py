"""Start the engine process, before this process has imported what a server needs.

This module imports little, so that both processes import the rest at the same time. The new process
runs `engine_main`, with the arguments PARENT ALIVE RECORD ORDERS…: this process's id, and file
numbers that it inherits. Its standard input has the config, and what loads the model.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import subprocess
from collections.abc import Callable
from typing import Any, NamedTuple

from engine.child_process import command_of
from engine.config import EngineConfig

Load = Callable[[EngineConfig, Any, Callable[[str], None]], Any]
"""Makes the executor, which has `.kv` (KVShape) and `.execute(plan) -> StepOutput`, and `.cores` if
its threads may be bound. Called with the config, a Recorder, and what is told of the progress."""


KILL_S = 5.0  # for a killed process to be gone
PROGRAM = "engine.server.link.engine_main"
"""What the new process runs. A name: importing it here would import the engine."""


class Ends(NamedTuple):
    """Hold the engine process's ends of its channels."""

    orders: list[socket.socket]  # of each server process: orders come in, news go out
    record: socket.socket  # events go out


class EngineStart:
    """Hold the channels to an engine process, and the process once `run` has started it."""

    def __init__(self, num_servers: int):
        """Open a channel for each server process, and one for the record."""
        pairs = [socket.socketpair() for _ in range(num_servers)]
        self.end, *self.other_ends = (ours for ours, _ in pairs)
        self.record_end, its_record_end = socket.socketpair()  # receives the record
        self._its_ends = Ends([its_end for _, its_end in pairs], its_record_end)
        self._process: subprocess.Popen[bytes] | None = None
        self.sentinel: int | None = None  # a file that can be read once the process has ended

    def run(self, config: EngineConfig, load: Load | None = None) -> None:
        """Start the process, on the main thread: it ends with the thread that has started it.

        load: what it calls for its executor; None: the real one.
        """
        told = pickle.dumps((config, load))
        self.sentinel, alive = os.pipe()
        orders, record = self._its_ends
        files = [alive, record.fileno(), *(end.fileno() for end in orders)]
        try:
            # A fresh interpreter, with none of this process's threads, locks or CUDA state.
            self._process = subprocess.Popen(
                command_of(PROGRAM, os.getpid(), *files), stdin=subprocess.PIPE, pass_fds=files
            )
        finally:
            os.close(alive)
            for end in (*orders, record):
                end.close()  # the process has its own copies: they are gone when it ends
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as way:
            way.write(told)  # if it has ended already, `sentinel` says so

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Return how the process ended, minus the signal that killed it; None: it hasn't."""
        return None if self._process is None else self._process.poll()

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def wait(self) -> None:
        """Wait until the process has ended."""
        if self._process is not None:
            self._process.wait()

    def close(self) -> None:
        """Kill the process if it runs, and wait for its end. A signal's handler may call it."""
        if self._process is not None:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                # With a limit it takes no lock that what the signal interrupts may hold.
                self._process.wait(KILL_S)
        if self.sentinel is not None:
            os.close(self.sentinel)
            self.sentinel = None
