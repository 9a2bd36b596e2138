"""The record that is packed for another process, and what many requests did together."""

from __future__ import annotations

import random
import threading
from contextlib import closing
from itertools import pairwise

import msgspec
import pytest

from engine.trace import events as ev
from engine.trace.files import bundle, pack, unpack
from engine.trace.packing_recorder import AT_ONCE, PackingRecorder
from engine.trace.recorder import Recorder
from engine.trace.together import BlocksCached, BlocksGrown, ProposalsVerified, how_many
from tests.trace.example_events import ID, stamped

GROWN = [
    ("a", [7], 2, 32, 1, []),
    ("b", [8, 9], 0, 0, 20, [(8, b"\x01\x02"), (9, b"\x03")]),
]
CACHED = [("a", [5, 6], [b"\xaa", b"\xbb"]), ("c", [4], [b"\xcc"])]
VERIFIED = [("a", 33, 2, 2, -1, []), ("b", 21, 3, 1, 4, [9]), ("c", 7, 0, 0, -1, [])]
ALONE = [
    ev.BlockAllocated(request_id="a", blocks=[7], index=2, why="for token 32"),
    ev.BlockEvicted(
        block=8, hash="0102", why="no block without cached content was free, and b needs one"
    ),
    ev.BlockEvicted(
        block=9, hash="03", why="no block without cached content was free, and b needs one"
    ),
    ev.BlockAllocated(request_id="b", blocks=[8, 9], index=0, why="for tokens 0 to 19"),
    ev.BlockCached(request_id="a", blocks=[5, 6], hashes=["aa", "bb"]),
    ev.BlockCached(request_id="c", blocks=[4], hashes=["cc"]),
    ev.SpecVerified(
        request_id="a", position=33, num_proposed=2, num_accepted=2, why="all were right"
    ),
    ev.SpecVerified(
        request_id="b", position=21, num_proposed=3, num_accepted=1, source=4, blocks=[9],
        why="another token was drawn for position 22",
    ),
    ev.SpecVerified(
        request_id="c", position=7, why="the draft model would end the text here"
    ),
]  # fmt: skip


def happen(recorder: Recorder) -> None:
    recorder.step = 3
    recorder.record(ev.RequestWaiting(request_id="before"))
    recorder.record(BlocksGrown(rows=list(GROWN)))
    recorder.record(BlocksCached(rows=list(CACHED)))
    recorder.record(ProposalsVerified(rows=list(VERIFIED)))
    recorder.record(ev.RequestWaiting(request_id="after"))


def without_time(events: list[ev.Event]) -> list[dict]:
    return [{**msgspec.to_builtins(event), "ts_ns": 0} for event in events]


def received(messages: list[bytes]) -> list[ev.Event]:
    return [event for message in messages for event in unpack(message)]


def test_readers_get_one_by_one_what_happened_together():
    got: list[ev.Event] = []
    with closing(Recorder()) as recorder:
        recorder.subscribe(got.extend)
        happen(recorder)
    assert [event.seq for event in got] == list(range(1, 12))
    assert {event.step for event in got} == {3} and len({event.ts_ns for event in got[1:5]}) == 1
    assert all(one.ts_ns <= other.ts_ns for one, other in pairwise(got))
    for event, expected in zip(got[1:-1], ALONE, strict=True):
        expected = msgspec.structs.replace(
            expected, seq=event.seq, ts_ns=event.ts_ns, step=3, src="core"
        )
        assert event == expected
    kinds = BlocksGrown(rows=GROWN), BlocksCached(rows=CACHED), ProposalsVerified(rows=VERIFIED)
    assert sum(map(how_many, kinds)) == len(ALONE)


def test_another_process_gets_what_readers_of_this_one_would():
    messages: list[bytes] = []
    got: list[ev.Event] = []
    packing, plain = PackingRecorder(messages.append), Recorder()
    plain.subscribe(got.extend)
    chance = random.Random(1)
    for _ in range(60):
        for recorder in (packing, plain):
            happen(recorder)
        for _ in range(chance.randint(0, 2)):
            packing.pack()
        if chance.random() < 0.2:
            packing.flush()
    packing.close()
    plain.close()
    assert without_time(received(messages)) == without_time(got) and len(got) == 660


def test_text_stays_out_of_a_packed_record_too():
    written = []
    for text in (True, False):
        messages: list[bytes] = []
        with closing(PackingRecorder(messages.append, "full", text=text)) as recorder:
            for event in stamped():
                recorder.record(event)
        written.append(msgspec.json.encode(received(messages)))
        assert len(received(messages)) == len(stamped())
    assert b"KV cache hold" in written[0] and b"KV cache hold" not in written[1]


def test_a_few_events_wait_for_more_or_for_the_drain_thread():
    messages: list[bytes] = []
    sent = threading.Event()

    def send(message: bytes) -> None:
        messages.append(message)
        sent.set()

    with closing(PackingRecorder(send)) as recorder:
        with recorder._drain_lock:  # nobody drains meanwhile
            for _ in range(AT_ONCE - 1):
                recorder.record(ev.RequestWaiting(request_id=ID))
            recorder.pack()
            assert len(recorder._buffer) == AT_ONCE - 1
            recorder.record(ev.RequestWaiting(request_id=ID))
            recorder.pack()
            assert not recorder._buffer
        assert sent.wait(5)
    assert len(received(messages)) == AT_ONCE


def test_a_reader_that_takes_nothing_costs_bounded_memory_and_the_loss_is_stated():
    messages: list[bytes] = []
    with closing(PackingRecorder(messages.append, capacity=40)) as recorder:
        with recorder._drain_lock:  # as if `send` waited
            for number in range(100):
                recorder.record(ev.RequestWaiting(request_id=str(number)))
                recorder.pack()
            assert recorder._num_packed + len(recorder._buffer) <= 2 * 40 + AT_ONCE
            recorder.record(BlocksGrown(rows=list(GROWN)))
        recorder.flush()
        recorder.record(ev.RequestWaiting(request_id="again"))
    got = received(messages)
    names = [event.request_id for event in got if isinstance(event, ev.RequestWaiting)]
    kept = len(names) - 1
    lost = 100 - kept + 4  # the grown ones are two requests' and two evictions
    (warning,) = [event for event in got if isinstance(event, ev.EngineWarning)]
    assert names == [*map(str, range(kept)), "again"] and recorder.dropped == lost > 4
    assert warning.message.startswith(f"{lost} events were lost")
    assert warning.seq == kept + lost + 1 and got[-1].seq == warning.seq + 1


def test_a_reader_that_is_gone_ends_the_record_and_nothing_else():
    def send(message: bytes) -> None:
        raise ConnectionError

    recorder = PackingRecorder(send)
    recorder.record(ev.RequestWaiting(request_id=ID))
    recorder.flush()
    assert not recorder.enabled
    recorder.record(ev.RequestWaiting(request_id=ID))
    recorder.pack()
    recorder.close()
    assert not recorder._buffer


@pytest.mark.parametrize("level", ["off", "steps", "full"])
def test_levels_are_those_of_any_recorder(level):
    messages: list[bytes] = []
    with closing(PackingRecorder(messages.append, level)) as recorder:
        for event in stamped():
            recorder.record(event)
    kinds = {type(event) for event in received(messages)}
    expected = set() if level == "off" else set(ev.ALL_EVENTS)
    assert kinds == (expected - set(ev.FULL_ONLY) if level == "steps" else expected)


def test_a_bundle_of_nothing_is_nothing():
    assert unpack(bundle([])) == unpack(bundle([pack([])])) == []
