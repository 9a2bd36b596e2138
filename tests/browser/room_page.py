"""Waiting for the Engine Room: what several tests of it share."""

from __future__ import annotations

import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def until(page, condition: str, timeout_s: float = 60) -> None:
    """Wait for a condition. (Playwright's own waiting evaluates strings inside the page, which the
    page's Content-Security-Policy forbids.)"""
    deadline = time.monotonic() + timeout_s
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        time.sleep(0.05)


def lies_within(selector: str, height: int) -> str:
    """Make a condition for `until`: the element is shown, from the top to `height` pixels. Asked in
    the page, since a live page replaces its elements between a locator's two questions."""
    return f"""(() => {{
        const box = document.querySelector({selector!r})?.getBoundingClientRect();
        return box && box.height > 0 && box.top >= 0 && box.bottom <= {height};
    }})()"""


def caught_up(page, server=None, step: int | None = None) -> None:
    """Wait until nothing runs and the page shows it. With a `server`, wait also until it has no
    open request and the page shows its last step: records arrive late, so a page may lag behind.
    step: the last one of a file."""
    shown = "" if step is None else f" && room.record.state.step === {step}"
    if server is not None:
        server.wait_until_idle()
        last = server.http.get("/trace/state").json()["state"]["step"]
        shown = f" && room.record.state.step >= {last}"  # more if the page still sends
    until(
        page,
        # A file opens at its first mark, whenever that is found: go to its end each time.
        "(room.live || room.follow(), true)"
        " && room.record.steps.length > 0 && room.record.state.running.length === 0"
        " && room.record.state.waiting.length === 0"
        " && [...room.ledger.steps.values()].every((step) => step.finished || step.cut)" + shown,
    )
