"""Report how far a download is, by the size of the folder that it fills."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

Progress = Callable[[str, int, int], None]
"""Called as (what is going on: "download", "convert" or "load", bytes done, bytes in all)."""

POLL_SECONDS = 0.5


class DownloadWatch:
    """Report twice a second while it is entered, and once when it is left."""

    def __init__(self, folder: Path, total: int, progress: Progress | None) -> None:
        self._folder, self._total, self._progress = folder, total, progress
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="download-progress", daemon=True)

    def __enter__(self) -> None:
        if self._progress is not None:
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._progress is not None:
            self._thread.join()
            self._report()

    def _watch(self) -> None:
        while not self._done.wait(POLL_SECONDS):
            self._report()

    def _report(self) -> None:
        size = 0
        for path in self._folder.rglob("*"):
            try:
                size += path.stat().st_size if path.is_file() else 0
            except FileNotFoundError:  # a finished part was renamed meanwhile
                continue
        if self._progress is not None:
            self._progress("download", min(size, self._total), self._total)
