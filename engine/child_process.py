"""Start modules of the engine as further processes, which end when the process that started them
does."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from pathlib import Path

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


def end_with_parent(parent_pid: int | None = None) -> None:
    """Have the kernel kill this process when its parent dies, however it dies (Linux).

    parent_pid: the parent's id; None: this process was started by multiprocessing. The kernel
    counts the thread that started this process as its parent: it must live as long.
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
