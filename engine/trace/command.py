"""How a program of this repository ends, whatever reads what it prints."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run a program's main function, and end the process with the status that it returns.

    A reader of its output that has seen enough, such as `head`, ends it in silence with status 0.
    """
    try:
        status = main() or 0
        sys.stdout.flush()  # what is still in the buffer may find that the reader has gone
    except BrokenPipeError:
        status = 0
        # Python flushes standard output once more at its end: that must find somebody to take it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)
