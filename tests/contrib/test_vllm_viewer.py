"""What vLLM tells becomes a record that folds, and nothing that it doesn't tell stands in it."""

from __future__ import annotations

import sys

import pytest

from contrib.vllm_viewer import __main__ as viewer
from contrib.vllm_viewer.watch import Watch
from engine.trace import events as ev
from engine.trace.__main__ import main
from engine.trace.files import to_jsonl
from engine.trace.recorder import Recorder
from engine.trace.replay import Replay
from engine.trace.story import Story
from tests.contrib.fake_vllm import SIZE, FakeRequest, blocks, plan

USABLE = 6


class Scene:
    """A watch of a pool of six blocks, and the events that it recorded."""

    def __init__(self, pool=True):
        self.recorder = Recorder("steps", thread=False)
        self.events: list[ev.Event] = []
        self.recorder.subscribe(self.events.extend)
        self.pool = blocks(USABLE + 1)
        self.watch = Watch(self.recorder.record, self._at, self.pool if pool else None)
        self.watch.begin(
            "0.32.0",
            {"max_num_seqs": 4},
            ev.EngineKvSized(num_blocks=USABLE + 1, block_size=SIZE),
            ev.EngineModelLoaded(
                model="m", architecture="Llama", implementation="vLLM", dtype="fp32"
            ),
        )

    def _at(self, step):
        self.recorder.step = step

    def queue(self, *requests):
        for number, request in enumerate(requests, 1):
            self.watch.queued(request, number, by_priority=False)

    def step(self, output, free, finish=True):
        self.watch.planned(output, 0, running=2, waiting=0, budget=64, free=free)
        if finish:
            self.watch.finished(output, 0)

    def hash(self, *numbers):
        for number in numbers:
            self.pool[number].block_hash = bytes([number]) * 12

    def told(self, kind=ev.Event):
        self.recorder.flush()
        return [event for event in self.events if isinstance(event, kind)]

    def folded(self) -> Replay:
        replay = Replay()
        for event in self.told():
            replay.fold(event)
        replay.check()
        return replay


@pytest.fixture
def preempted():
    """Two requests that share a block; the second is preempted, returns, and both end."""
    scene = Scene()
    a, b = FakeRequest("a", 8), FakeRequest("b", 8)
    scene.queue(a, b)
    scene.hash(3, 1)  # blocks in the order in which vLLM likes them
    # b finds a's first block: it was cached when a was planned, in this very step
    scene.step(plan({"a": 8, "b": 4}, new=[("a", [3, 1], 0), ("b", [3, 5], 4)]), free=3)
    a.num_tokens = b.num_tokens = 9
    b.num_preemptions = 1
    scene.step(plan({"a": 1}, old=[("a", [6], 8)], preempted=["b"]), free=3)
    scene.hash(5)
    again = plan({"a": 1, "b": 5}, old=[("a", None, 9), ("b", [3, 4, 2], 4)], resumed=["b"])
    scene.step(again, free=1)
    for request, reason in ((a, "length"), (b, "stop")):
        request.num_output_tokens, request.ended = 2, reason
    scene.step(plan({"a": 1, "b": 1}, old=[("a", None, 10), ("b", None, 9)]), free=1)
    return scene


def test_the_record_folds_with_vllms_own_order_of_blocks(preempted):
    state = preempted.folded().state
    assert not state.sequences and not state.tables
    kinds = [type(event).__name__ for event in preempted.told()]
    for wanted in ("Preempted", "Resumed", "Finished"):
        assert f"Request{wanted}" in kinds
    shared = preempted.told(ev.BlockShared)
    assert [(e.request_id, e.blocks, e.num_tokens) for e in shared] == [("b", [2], 4)] * 2
    gone = preempted.told(ev.RequestPreempted)[0]
    assert (gone.num_blocks, gone.num_computed_tokens, gone.mode) == (2, 8, "recompute")
    assert preempted.told(ev.EngineKvSized)[0].num_blocks == USABLE
    ends = {e.request_id: e for e in preempted.told(ev.RequestFinished)}
    assert (ends["b"].reason, ends["b"].num_preemptions, ends["b"].num_cached_tokens) == (
        "stop",
        1,
        4,
    )


def test_rows_have_their_places_and_what_they_draw(preempted):
    rows = [[tuple(r.__getattribute__(f) for f in r.__struct_fields__) for r in e.rows]
            for e in preempted.told(ev.StepPlanned)]  # fmt: skip
    assert rows[0] == [("a", 0, 8, 1), ("b", 4, 4, 1)]
    assert rows[2] == [("a", 9, 1, 1), ("b", 4, 5, 1)]
    chunk = Scene()
    long = FakeRequest("long", 12)
    chunk.queue(long)
    long.is_prefill_chunk = True  # vLLM says so after it has planned
    chunk.step(plan({"long": 8}, new=[("long", [1, 2], 0)]), free=4)
    assert chunk.told(ev.StepPlanned)[0].rows[0].samples == 0
    assert chunk.told(ev.StepFinished)[0].num_sampled == 0


def test_no_reason_is_made_up(preempted):
    for event in preempted.told():
        assert not getattr(event, "why", "") and not getattr(event, "for_request", "")
        assert not isinstance(event, ev.RequestWaiting)
    assert "no reasons" in preempted.told(ev.EngineWarning)[0].message


def test_a_cached_block_that_is_taken_is_evicted_first():
    scene = Scene()
    a, b = FakeRequest("a", 4), FakeRequest("b", 4)
    scene.queue(a, b)
    scene.hash(2)
    scene.step(plan({"a": 4}, new=[("a", [2], 0)]), free=5, finish=False)
    a.ended, a.num_output_tokens = "length", 1
    scene.watch.finished(scene.watch._flying[0].output, 0)
    assert scene.folded().state.hashes == {1: (bytes([2]) * 8).hex()}
    scene.pool[2].block_hash = None
    scene.step(plan({"b": 4}, new=[("b", [2], 0)]), free=5)
    assert [event.block for event in scene.told(ev.BlockEvicted)] == [1]
    assert scene.folded().state.tables == {"b": [1]}


def test_steps_that_overlap_and_a_request_that_is_aborted():
    scene = Scene()
    a, b = FakeRequest("a", 4), FakeRequest("b", 4)
    scene.queue(a, b)
    first = plan({"a": 4, "b": 4}, new=[("a", [1], 0), ("b", [2], 0)])
    second = plan({"a": 1, "b": 1}, old=[("a", [3], 4), ("b", [4], 4)])
    scene.step(first, free=4, finish=False)
    scene.step(second, free=2, finish=False)
    scene.watch.finished(first, 0)
    scene.watch.aborted([b, FakeRequest("never seen", 1)])
    scene.watch.finished(second, 0)
    loops = [(event.step, event.loop) for event in scene.told(ev.StepFinished)]
    assert loops == [(1, "overlapped"), (2, "plain")]
    state = scene.folded().state
    assert list(state.tables) == ["a"] and len(scene.told(ev.RequestAborted)) == 1
    empty = plan({})
    scene.step(empty, free=4)
    assert len(scene.told(ev.StepPlanned)) == 2


def test_where_blocks_dont_follow_they_are_told_no_more():
    scene = Scene()
    a, b = FakeRequest("a", 4), FakeRequest("b", 4)
    scene.queue(a, b)
    scene.step(plan({"a": 4, "b": 4}, new=[("a", [1], 0), ("b", [1], 0)]), free=4)
    said = [event.message for event in scene.told(ev.EngineWarning)]
    assert len(said) == 2 and "blocks aren't told" in said[1]
    scene.step(plan({"a": 1}, old=[("a", [2], 4)]), free=4)
    assert len(scene.told(ev.BlockAllocated)) == 1
    assert len(scene.told(ev.StepFinished)) == 2  # steps go on
    scene.folded()


def test_a_model_without_one_table_a_request_tells_no_blocks():
    scene = Scene(pool=False)
    scene.queue(FakeRequest("a", 4))
    scene.step(plan({"a": 4}, new=[("a", [1], 0)]), free=4)
    assert not scene.told(ev.BlockAllocated) and not scene.told(ev.EngineKvSized)
    assert scene.told(ev.StepFinished)
    scene.folded()


def test_without_vllm_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(viewer, "SETTINGS", {})
    monkeypatch.setenv("GLASSHOUSE_RECORD", "")  # put back afterwards
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setattr(sys, "argv", ["vllm_viewer", "a-model"])
    assert viewer.main() == 2
    assert capsys.readouterr().err.startswith("vLLM isn't installed here")


def test_readers_take_the_record(preempted, tmp_path, capsys):
    """The log, replay and the page, whose reasons are empty."""
    lines = [*Story().tell(preempted.told())]
    told = "\n".join(line.text for line in lines)
    assert "preempted; gives back 2 blocks" in told and "finished (length); 2 out" in told
    assert "()" not in told and " 0 parameters" not in told
    record = tmp_path / "vllm.jsonl"
    record.write_bytes(to_jsonl(preempted.told()))
    assert main(["annotate", str(record), "--all"]) == 0
    assert main(["replay", str(record)]) == 0
    assert "next to be taken" not in capsys.readouterr().out
    assert main(["page", str(record), "-o", str(tmp_path / "room.html")]) == 0
