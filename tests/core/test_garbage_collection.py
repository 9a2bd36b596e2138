"""The collector stays away from a loop that runs, and comes back."""

from __future__ import annotations

import gc

import pytest

from engine.core.garbage_collection import YOUNG, quiet_collector


def test_it_is_as_before_afterwards_whatever_happens():
    gc.unfreeze()  # what a server of an earlier test froze
    before = gc.get_threshold()
    with pytest.raises(KeyError), quiet_collector():
        assert gc.get_threshold()[0] == YOUNG and gc.get_freeze_count() > 0
        raise KeyError
    assert gc.get_threshold() == before and gc.get_freeze_count() == 0


def test_what_waits_to_be_recorded_is_not_walked_through():
    with quiet_collector():
        collections = [generation["collections"] for generation in gc.get_stats()]
        waiting = [[i] for i in range(YOUNG // 2)]
        assert [generation["collections"] for generation in gc.get_stats()] == collections
    assert len(waiting) == YOUNG // 2
