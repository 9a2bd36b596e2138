"""Run one part of `make gpu` in a process with a time limit; pass on its results.

They are passed on one by one, so those that came before it fails, or before we are stopped
ourselves, are kept.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

LAST_LINES = 8  # of what a part that failed has said


def run_part(command: Sequence[str], limit_s: float, take: Callable[[str, dict], None]) -> dict:
    """Run a part, and return {ended, seconds, why}.

    `take` gets each result and where it belongs. ended: "complete", "failed", "out of time".
    """
    started = time.monotonic()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=os.setpgrp,  # with whatever it starts, so that all end together
    )
    late = threading.Event()

    def stop() -> None:
        late.set()
        _end(process)

    timer = threading.Timer(limit_s, stop)
    timer.start()
    said: deque[str] = deque(maxlen=LAST_LINES)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if line.startswith('{"where": '):
                found = json.loads(line)
                take(found["where"], found["result"])
            elif line.strip():
                said.append(line.strip())
        status = process.wait()
    finally:
        timer.cancel()
        _end(process)
        if process.stdout is not None:
            process.stdout.close()
    why, ended = "", "complete"
    if late.is_set():
        why, ended = f"it was stopped after {limit_s:,.0f} s", "out of time"
    elif status != 0:
        why, ended = f"exit status {status}: {' | '.join(said)[-600:]}", "failed"
    return {"ended": ended, "seconds": round(time.monotonic() - started, 1), "why": why}


def part_command(part: str, dry: bool, limits: dict | None = None) -> list[str]:
    """Return the command that starts a part (or `limits`)."""
    command = [sys.executable, "-m", "benchmarks.gpu.parts", part]
    command += ["--dry-run"] if dry else []
    return command + (["--limits", json.dumps(limits)] if limits else [])


def _end(process: subprocess.Popen[str]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()
