"""Do jobs that arrive on standard input, as a process of its own that may be killed at any time.

Jobs and answers are JSON, each after its length in four bytes.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

MEMORY = 512 * 2**20  # bytes of address space
CPU_S = 4  # for one job; the other process waits for a shorter time


def message(content: Any) -> bytes:
    """Encode a message."""
    data = json.dumps(content).encode()
    return len(data).to_bytes(4, "big") + data


def do_jobs(answer: Callable[[Any], Any]) -> None:
    """Answer each job until there are no more; the first answer says that the process is ready."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    reply: Any = {}
    while True:
        sink.write(message(reply))
        sink.flush()
        job = _read_message(source)
        if job is None:
            return
        spent = resource.getrusage(resource.RUSAGE_SELF)
        seconds = int(spent.ru_utime + spent.ru_stime) + CPU_S
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
        reply = answer(job)


def _read_message(source: BinaryIO) -> Any:
    """Read the next message; return None at the end."""
    head = source.read(4)
    return json.loads(source.read(int.from_bytes(head, "big"))) if len(head) == 4 else None
