"""Start modules of the engine as further processes, which end when the process that started them
does."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = str(Path(__file__).resolve().parents[1])
RUN = (
    "import sys; sys.path[:] = sys.argv.pop(1).split('\\n');"
    " import runpy; runpy.run_module(sys.argv.pop(1), None, '__main__', True)"
)


def command_of(module: str, *arguments: object) -> list[str]:
    """Return the command that runs a module of the engine in another Python.

    It imports from where this process imports. `-m` would look in the current folder first, and
    find there what a user has called `queue.py`.
    """
    folders = [path for path in sys.path if path and isinstance(path, str)]
    if ROOT not in folders:
        folders.append(ROOT)
    return [sys.executable, "-P", "-c", RUN, "\n".join(folders), module, *map(str, arguments)]


def start_lasting(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a process that may call `end_with_parent`, from any thread. options: of `Popen`.

    The kernel would end it with the thread that started it, so a thread that never ends does.
    """
    global _starter
    with _starting:
        if _starter is None or _starter.pid != os.getpid():  # a fork has no threads
            _starter = _Starter()
    started: queue.SimpleQueue[subprocess.Popen[bytes] | BaseException] = queue.SimpleQueue()
    _starter.wanted.put((command, options, started))
    process = started.get()
    if isinstance(process, BaseException):
        raise process
    return process


class _Starter:
    """Hold a thread that starts processes, and lives as long as this process."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.wanted: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._start_each, name="starter", daemon=True).start()

    def _start_each(self) -> None:
        while True:
            command, options, started = self.wanted.get()
            try:
                started.put(subprocess.Popen(command, **options))
            except BaseException as error:
                started.put(error)


_starter: _Starter | None = None
_starting = threading.Lock()


def end_with_parent(parent_pid: int | None = None) -> None:
    """Have the kernel kill this process when its parent dies, however it dies (Linux).

    parent_pid: the parent's id; None: this process was started by multiprocessing. The kernel
    counts the thread that started this process as its parent: it must live as long, as that of
    `start_lasting` does.
    """
    if parent_pid is None:
        parent = multiprocessing.parent_process()
        parent_pid = parent.pid if parent is not None else None
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        # Not "has it become 1": in a container the parent may well be process 1.
        if parent_pid is not None and os.getppid() != parent_pid:
            sys.exit(1)  # the parent died before that call
