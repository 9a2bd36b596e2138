"""The drawings of ARCHITECTURE_OVERVIEW refuse a record that doesn't show what they draw."""

from __future__ import annotations

import pytest

from docs.scripts import overview_steps
from docs.scripts.reader import Record


class Noise:
    """What a fit makes of a busy machine's times: a row costs nothing."""

    steps = [((0, 1, 0), 200.0)]
    cost = (200.0, 1.0, 0.0, 0.0)

    def __init__(self, events):
        assert events


def test_a_curve_of_noise_is_refused(monkeypatch):
    monkeypatch.setattr(overview_steps, "StepTimes", Noise)
    with pytest.raises(LookupError, match="record it again on a quiet machine"):
        overview_steps.curve_figure(Record("seats"))


def test_what_a_record_does_not_have_is_refused():
    with pytest.raises(LookupError, match=r"no such sample\.drawn; record it again"):
        overview_steps.draw_figure(Record("seats"), "seat-0")
