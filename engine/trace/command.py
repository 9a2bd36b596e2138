"""Run a program's main function and end the process cleanly, even if its output's reader is
gone."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import NoReturn


def write_any_text() -> None:
    """Let standard output take any text: what its encoding lacks becomes a question mark.

    A locale such as C or ISO-8859-1 has no “, … or –, and printing must not end a program.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run a program's main function, and end the process with the status that it returns.

    If the reader of its output stops early, as `head` does, the process ends silently with status
    0.
    """
    write_any_text()
    try:
        status = main() or 0
        sys.stdout.flush()  # flushing the buffer may show that the reader is gone
    except BrokenPipeError:
        status = 0
        # Python flushes standard output once more at exit, which must not fail: /dev/null takes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)
