"""`make demo`: it ends as it says, and explains the time of the first piece."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import jsonschema
import pytest

from docs.scripts.reader import Record
from docs.scripts.server import ROOT, environment
from engine.trace import events as ev
from examples.demo import CARD, way_of_the_first_piece


def test_the_parts_of_the_first_piece_add_up():
    record = Record("tour")
    request = record.id_of("again")
    received = record.first(ev.RequestReceived, lambda e: e.request_id == request)
    mine = record.events[record.events.index(received) :]
    finished = next(e for e in mine if isinstance(e, ev.StepFinished))
    asked, came = received.ts_ns - 100_000_000, finished.ts_ns + 50_000_000
    said = way_of_the_first_piece(mine, asked, came)
    parts = [int(ms) for ms in re.findall(r"(\d+) ms ", said)]
    assert len(parts) == 4 and parts[0] == 100 and parts[3] >= 50
    assert abs(sum(parts) - (came - asked) / 1e6) <= 2  # each is rounded
    assert way_of_the_first_piece([], asked, came) == ""
    assert way_of_the_first_piece([received], asked, came) == ""


@pytest.mark.slow
def test_it_ends_where_nobody_can_end_it():
    """Without --once and without a terminal nobody could press Ctrl-C, so it must end by itself."""
    ended = subprocess.run(
        [sys.executable, "examples/demo.py"],
        cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240,
        env={**environment(), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    assert "/health says: " in ended.stdout
    assert re.search(r"Of the \d+ ms until the first piece: \d+ ms to connect", ended.stdout)
    card = re.search(r"^\{\n.*?^\}$", ended.stdout, re.DOTALL | re.MULTILINE)
    assert card, ended.stdout[-3000:]
    jsonschema.validate(json.loads(card.group()), CARD)
    assert re.search(r"the\s+grammar\s+allows\s+\d+\s+tokens?\s+\(−\d+%\)", ended.stdout)
    assert re.search(r"the\s+most\s+probable\s+allowed\s+one", ended.stdout)
    assert re.search(r"the\s+grammar\s+took\s+\d+%\s+of\s+its\s+probability", ended.stdout)
    called = r'the model calls calculator \{"expression": "12 \* 34"\} → 408'
    assert re.search(called, ended.stdout), ended.stdout[-3000:]
    assert "the model answers The result is 408." in ended.stdout
    assert "exited with code 0" in ended.stdout
