"""Do work that may not end in a process that is killed when its time is over.

The other side is a module whose `main` calls `jobs.do_jobs`.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import time
from typing import Any

from engine.child_process import command_of
from engine.text.jobs import message

START_S = 30.0


class SandboxProcess:
    """Run one warm process of a module. Use it from one thread at a time."""

    def __init__(self, module: str):
        self.module = module
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Return the id of the process; None while there is none."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the process unless it runs, and wait until it is ready."""
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        self._process = subprocess.Popen(
            command_of(self.module),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # what a client sent could write to it
            env={},  # without secrets
            bufsize=0,
            start_new_session=True,  # only the server handles Ctrl-C
        )
        self._receive(time.monotonic() + START_S)

    def ask(self, job: Any, seconds: float) -> Any:
        """Return the answer to a job.

        Raises `TimeoutError` after `seconds`, and `OSError` when the process has ended; then the
        process is gone.
        """
        try:
            self.start()
            assert self._process is not None and self._process.stdin is not None
            _write(self._process.stdin.fileno(), message(job))
            return self._receive(time.monotonic() + seconds)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Kill the process."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _receive(self, deadline: float) -> Any:
        """Read the next answer. Raises `TimeoutError`, or `BrokenPipeError` if the process has
        ended."""
        size = int.from_bytes(self._read(4, deadline), "big")
        return json.loads(self._read(size, deadline))

    def _read(self, size: int, deadline: float) -> bytes:
        assert self._process is not None and self._process.stdout is not None
        source = self._process.stdout.fileno()
        data = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(source, selectors.EVENT_READ)
            while len(data) < size:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                part = os.read(source, min(size - len(data), 2**20))
                if not part:
                    raise BrokenPipeError
                data += part
        return bytes(data)


def _write(sink: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(sink, rest) :]
