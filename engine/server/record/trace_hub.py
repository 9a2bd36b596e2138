"""Collect the record of both processes.

    engine process ──channel──▶ hub's thread ──forward()──▶ the server's Recorder
    server process ──record()────────────────────────────▶          │ its drain thread
                                                                    ├──▶ window (GET /trace…)
                                                                    ├──▶ file (--trace-file)
                                                                    ├──▶ console (--log-format)
                                                                    └──▶ subscribers

None of this runs on the event loop: a slow disk delays the record and no answer.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

from engine.config import ConfigError, EngineConfig
from engine.server.link.channel import Channel
from engine.server.record.record_window import RecordWindow
from engine.trace.console import LogConsole
from engine.trace.events import EngineSnapshot, Event
from engine.trace.files import JsonlWriter, unpack
from engine.trace.merging import MergingRecorder


class TraceHub:
    """Collect events, keep the latest, and pass all on.

    Raises `ConfigError` for a bad --trace-file.
    """

    def __init__(self, config: EngineConfig, recorder: MergingRecorder):
        self.recorder = recorder
        self.window = RecordWindow(config.trace_buffer)
        self._threads: list[threading.Thread] = []
        recorder.subscribe(self.window)
        self._file: JsonlWriter | None = None
        if config.trace_file is not None:
            try:
                self._file = JsonlWriter(config.trace_file)
            except OSError as error:
                raise ConfigError(f"--trace-file can't be written: {error}.") from None
            recorder.subscribe(self._file)
        self._console = _console(config.log_format)
        if self._console is not None:
            recorder.subscribe(self._console)

    def listen(self, end: socket.socket) -> None:
        """Take another process's events, from now until it ends."""
        thread = threading.Thread(
            target=self._forward, args=(Channel(end, unpack),), name="trace hub", daemon=True
        )
        thread.start()
        self._threads.append(thread)

    def subscribe(self, callback: Callable[[list[Event]], None]) -> None:
        """Send every later batch of events, of both processes, to `callback`, on the drain
        thread."""
        self.recorder.subscribe(callback)

    def unsubscribe(self, callback: Callable[[list[Event]], None]) -> None:
        self.recorder.unsubscribe(callback)

    def record(self) -> tuple[EngineSnapshot | None, list[bytes]]:
        """Return the latest events, oldest first, and the state before them if some are gone.

        Each event is a line of JSON without its newline.
        """
        self.recorder.settle()
        return self.window.record()

    def close(self) -> None:
        """Take the other processes' last events, write everything, stop. Call when they have
        ended."""
        for thread in self._threads:
            thread.join(timeout=5)
        self.recorder.close()
        if self._console is not None:
            self._console.close()
        if self._file is not None:
            self._file.close()

    def _forward(self, engine: Channel[list[Event]]) -> None:
        while (batches := engine.receive(wait=True)) is not None:
            for batch in batches:
                self.recorder.forward(batch)
        engine.close()


def _console(log_format: str) -> LogConsole | None:
    if log_format == "off":
        return None
    return LogConsole.auto() if log_format == "auto" else LogConsole(log_format)
