"""Recorders that are closed at a test's end, however it ends."""

from __future__ import annotations

import pytest

from engine.trace.events import Event


@pytest.fixture
def recorder_of_kind():
    """`recorder, got = recorder_of_kind(Recorder, level=…)`: `got` is what a subscriber gets."""
    made = []

    def make(kind, **options):
        recorder = kind(**options)
        got: list[Event] = []
        recorder.subscribe(got.extend)
        made.append(recorder)
        return recorder, got

    yield make
    for recorder in made:
        recorder.close()
