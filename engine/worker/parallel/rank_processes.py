"""Start the processes of other ranks, limit how long they may be written to, and end them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import tempfile
import time
import weakref
from multiprocessing.connection import Connection, Pipe

from engine.child_process import command_of, start_lasting

END_S = 2.0
"""Seconds that all ranks get to end by themselves; then they are killed. Less than the server's
`EXIT_TIMEOUT_S`, which kills rank 0."""
TOLD_S = 5.0
"""Seconds to wait until it is known which rank has ended, and how."""


class RankProcesses:
    """Hold the processes of ranks 1, 2, …, and the connection to each. Collected, they end."""

    def __init__(self) -> None:
        self.connections: list[Connection] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._end = weakref.finalize(self, _end, self.connections, self._processes)

    def start(self, file: int, size: int, patience_s: float) -> Connection:
        """Start one more, and return the connection to it.

        file: shared by all ranks. size: how many there are, rank 0 included. patience_s: a message
        that isn't taken for so long fails with `BlockingIOError`.
        """
        ours, theirs = Pipe()
        _limit_sending(ours, patience_s)
        arguments = theirs.fileno(), file, size, os.getpid()
        process = start_lasting(
            command_of("engine.worker.parallel.rank_process", *arguments),
            pass_fds=(theirs.fileno(), file),
            stdin=subprocess.DEVNULL,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
        theirs.close()
        self.connections.append(ours)
        self._processes.append(process)
        return ours

    @property
    def ended(self) -> bool:
        """Return whether `end` was called."""
        return not self._end.alive

    def end(self) -> None:
        """End all, and wait for it."""
        self._end()

    def how_it_ended(self, place: int) -> str:
        """Say how the process of a closed connection ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._processes[place].wait(TOLD_S)
            if code < 0:
                return f"was killed by {signal.Signals(-code).name}"
            return f"ended with code {code}"
        return "closed its connection"


def shared_file(num_bytes: int) -> int:
    """Return the number of a file of zeros in memory, which has no name that could stay behind."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("glasshouse-ranks")
    else:
        with tempfile.TemporaryFile() as temporary:
            file = os.dup(temporary.fileno())
    os.ftruncate(file, num_bytes)
    return file


def _limit_sending(connection: Connection, seconds: float) -> None:
    """Let a message fail with `BlockingIOError` when it isn't taken for so long."""
    limit = struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))  # struct timeval
    with socket.socket(fileno=os.dup(connection.fileno())) as end:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


def _end(connections: list[Connection], processes: list[subprocess.Popen[bytes]]) -> None:
    for connection in connections:  # not closed yet: a thread waits for them, and sees this
        with socket.socket(fileno=os.dup(connection.fileno())) as end, contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
    deadline = time.monotonic() + END_S
    try:
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
    finally:  # also when a second Ctrl-C ends this wait
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        for connection in connections:
            connection.close()
