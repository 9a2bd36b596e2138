"""Replay equals the truth after every operation, forward and back, and refuses records that
contradict themselves.
"""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.trace import events as ev
from engine.trace.replay import CHECKPOINT_EVENTS, Replay, ReplayError, differences
from engine.trace.state import EngineState
from tests.trace.model_engine import ModelEngine
from tests.trace.test_import_rules import ROOT

SEEDS = st.integers(0, 2**32)


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, num_blocks=st.integers(4, 40), num_host_blocks=st.integers(0, 12))
def test_replay_equals_the_engine_after_every_operation(seed, num_blocks, num_host_blocks):
    engine = ModelEngine(num_blocks, num_host_blocks, seed)
    state = EngineState()
    folded = 0
    for _ in range(120):
        engine.random_operation()
        for event in engine.events[folded:]:
            state.fold(event)
        folded = len(engine.events)
        state.check()
        assert differences(engine.to_dict(), state.to_dict()) == []


def test_the_model_engine_reaches_every_block_and_request_event():
    """Otherwise the property above would test less than it seems to."""
    seen = set()
    for seed in range(40):
        engine = ModelEngine(12, 6, seed)
        for _ in range(150):
            engine.random_operation()
        seen |= {type(event) for event in engine.events}
    folded = {event for event in ev.ALL_EVENTS if ev.kind(event).split(".")[0] in ("block", "step")}
    folded |= {ev.RequestQueued, ev.RequestAdmitted, ev.RequestResumed, ev.RequestForked}
    folded |= {ev.RequestPreempted, ev.RequestFinished, ev.RequestAborted}
    assert folded <= seen


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, moves=st.lists(st.integers(-700, 700), max_size=12))
def test_going_back_gives_the_state_that_was(seed, moves):
    engine = ModelEngine(24, 8, seed)
    truth = [EngineState().to_dict()]
    live = EngineState()
    replay = Replay()
    while len(engine.events) < 1200:
        engine.random_operation()
    for event in engine.events:
        live.fold(event)
        truth.append(live.to_dict())
        replay.fold(event)
    for move in moves:
        (replay.forward if move > 0 else replay.back)(abs(move))
        assert replay.to_dict() == truth[replay.position]
        replay.check()


def test_the_page_knows_whose_an_event_is_that_does_not_say():
    """A record leaves `src` out where it is the kind's default; the two count separately."""
    page = (ROOT / "engine" / "server" / "web" / "room" / "state.js").read_text(encoding="utf-8")
    [told] = re.findall(r"OF_SERVER = new Set\(\[(.*?)\]\)", page, re.DOTALL)
    of_server = {ev.kind(event) for event in ev.ALL_EVENTS if event().src == "server"}
    assert set(re.findall(r'"([^"]+)"', told)) == of_server


def test_state_at_a_step_is_the_state_after_its_last_event():
    engine = ModelEngine(24, 8, seed=5)
    truth = {}
    for _ in range(400):
        engine.random_operation()
        truth[engine.step] = engine.to_dict()
    replay = Replay.of(engine.events)
    for step in [7, engine.step, 30, 31, 29, 1]:
        assert differences(truth[step], replay.state_at(step).to_dict()) == []
    with pytest.raises(KeyError, match="step 99999 is not in this record, which has steps 1 to"):
        replay.state_at(99_999)
    with pytest.raises(IndexError):
        replay.seek(len(engine.events) + 1)


def test_a_paused_replay_keeps_recording():
    engine = ModelEngine(24, 8, seed=6)
    for _ in range(100):
        engine.random_operation()
    replay = Replay.of(engine.events[:50])
    replay.seek(20)
    for event in engine.events[50:]:
        replay.fold(event)
    assert replay.position == 20
    replay.seek(len(replay.events))
    assert differences(engine.to_dict(), replay.to_dict()) == []


def test_checkpoints_are_independent_of_the_state_that_goes_on():
    engine = ModelEngine(24, 8, seed=9)
    while len(engine.events) < 2 * CHECKPOINT_EVENTS + 10:
        engine.random_operation()
    replay = Replay.of(engine.events)
    at_checkpoint = replay.seek(CHECKPOINT_EVENTS).to_dict()
    replay.forward(500)
    assert replay.seek(CHECKPOINT_EVENTS).to_dict() == at_checkpoint


def sized(num_blocks=4, num_host_blocks=2) -> EngineState:
    state = EngineState()
    sizes = ev.EngineKvSized(seq=1, num_blocks=num_blocks, num_host_blocks=num_host_blocks)
    state.fold(sizes)
    return state


def allocate(seq, *blocks, index=0, name="a"):
    return ev.BlockAllocated(seq=seq, request_id=name, blocks=list(blocks), index=index)


@pytest.mark.parametrize(
    ("events", "problem"),
    [
        ([allocate(2, 1)], "block 1 is taken, but block 0 is the next free one"),
        ([allocate(2, 0, 1, 2, 3, 4)], "block 4 is taken, but no block is free"),
        ([allocate(2, 0, index=3)], "index 3, but its table has 0 entries"),
        ([allocate(2, 0), ev.BlockFreed(seq=3, request_id="b", blocks=[0])], "it names 'b'"),
        ([allocate(2, 0), ev.BlockFreed(seq=3, request_id="a", blocks=[1])], r"its table is \[0\]"),
        ([ev.BlockEvicted(seq=2, block=0, hash="ff")], "it names 0"),
        (
            [
                allocate(2, 0),
                ev.BlockCached(seq=3, request_id="a", blocks=[0], hashes=["aa"]),
                ev.BlockFreed(seq=4, request_id="a", blocks=[0]),
                allocate(5, 1, 2, 3, 0),
            ],
            "block 0 is taken, but its content was not evicted",
        ),
        (
            [ev.BlockSwappedOut(seq=2, request_id="a", blocks=[0], host_blocks=[2])],
            "the host pool has only 2 blocks",
        ),
        ([ev.RequestAdmitted(seq=2, request_id="a")], "it names 'a'"),
        ([ev.StepFinished(seq=2, step=3)], "it names 3"),
        ([ev.RequestQueued(seq=n, request_id="a", rank=[0, 1]) for n in (2, 3)], "alive already"),
    ],
)
def test_a_contradiction_is_named(events, problem):
    state = sized()
    with pytest.raises(ReplayError, match=problem):
        for event in events:
            state.fold(event)


def test_a_gap_is_counted_and_named_in_the_error():
    state = sized()
    with pytest.raises(ReplayError, match="6 events missing before it"):
        state.fold(allocate(8, 3))
    assert state.lost == 6


def test_events_of_the_server_do_not_count():
    state = sized()
    state.fold(ev.RequestReceived(seq=1, src="server", request_id="a"))
    state.fold(allocate(2, 0))
    assert state.lost == 0 and state.tables == {"a": [0]}


def test_check_finds_what_is_broken():
    for breakage, message in [
        (lambda s: s.references.__setitem__(0, 2), "2 references in 1 tables"),
        (lambda s: s.free_queue.append(0), "also free"),
        (lambda s: s.cached.__setitem__("aa", 1), "the map from hashes"),
        (lambda s: s.tables.__setitem__("b", [1, 1]), "names a block twice"),
        (lambda s: s.host_tables.update(a=[0], b=[0]), "same host block"),
        (lambda s: s.waiting.extend([((0, 2, 0), "y"), ((0, 1, 0), "x")]), "out of order"),
    ]:
        state = sized()
        state.fold(allocate(2, 0))
        state.check()
        breakage(state)
        with pytest.raises(ReplayError, match=message):
            state.check()


def test_differences_say_where():
    assert differences({"tables": {"a": [1], "b": [2]}}, {"tables": {"a": [1], "b": [3]}}) == [
        "tables['b']: expected [2], got [3]"
    ]
    assert differences({"running": ["a"]}, {"running": []}) == ["running: expected ['a'], got []"]


def test_folding_is_fast():
    """100,000 events a second is the aim on a quiet machine; a busy one gets ten times as long."""
    engine = ModelEngine(512, 64, seed=1)
    while len(engine.events) < 20_000:
        engine.random_operation()
    started = time.perf_counter()
    Replay.of(engine.events)
    assert len(engine.events) / (time.perf_counter() - started) > 10_000
