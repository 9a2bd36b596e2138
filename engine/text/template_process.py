"""Render the templates of requests in a process that is killed when its time is over."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from engine.text.errors import TextError
from engine.text.sandbox import message

RENDER_S = 2.0  # for one conversation; ordinary ones take less than a millisecond
START_S = 30.0
ROOT = str(Path(__file__).resolve().parents[2])


class TemplateProcess:
    """Run one warm process, `engine.text.sandbox`. Use it from one thread at a time."""

    def __init__(self, render_s: float = RENDER_S):
        self.render_s = render_s
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process unless it runs, and wait until it is ready."""
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        path = os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "engine.text.sandbox"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # a template could write to it
            env={"PYTHONPATH": path},  # without secrets
            bufsize=0,
            start_new_session=True,  # only the server handles Ctrl-C
        )
        self._receive(time.monotonic() + START_S)

    def render(self, template: str, variables: dict[str, Any], characters: int) -> str:
        """Render `template`. Raises `TextError`, also for too much time or more than
        `characters`."""
        try:
            self.start()
            assert self._process is not None and self._process.stdin is not None
            job = {"template": template, "variables": variables, "characters": characters}
            _write(self._process.stdin.fileno(), message(job))
            reply = self._receive(time.monotonic() + self.render_s)
        except TimeoutError:
            self.close()
            raise TextError(
                "chat_template",
                f"The chat template took more than {self.render_s:g} s and was stopped.",
            ) from None
        except OSError:
            self.close()
            raise TextError(
                "chat_template", "The chat template used up what it may have, and was stopped."
            ) from None
        if "error" in reply:
            raise TextError(reply["param"], reply["error"])
        return reply["text"]

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
