"""What if: a record's load through the real core on simulated time."""

from __future__ import annotations

import json

import pytest

from engine.config import ConfigError, EngineConfig
from engine.core.messages import KVShape
from engine.core.named_scheduler import named_scheduler
from engine.core.scheduler import Scheduler
from engine.trace import events as ev
from engine.trace.diff import first_difference
from engine.trace.files import read_all, to_jsonl
from engine.trace.replay import Replay
from engine.whatif.__main__ import main
from engine.whatif.arrivals import Arrival, workload
from engine.whatif.measures import measure
from engine.whatif.rerun import what_if
from engine.whatif.simulator import run
from engine.whatif.step_times import StepTimes, fit

KV = KVShape(
    num_blocks=40, num_host_blocks=0, block_size=4, bytes_per_block=64, max_model_len=200,
    vocab_size=0,
)  # fmt: skip
SETTINGS = {"max_num_seqs": 4, "max_num_batched_tokens": 32, "block_size": 4}


def step_us(shape) -> float:
    prompt, rows, copies, prompts = shape
    return 300.0 + 20.0 * prompt + 50.0 * rows + 10.0 * copies + 700.0 * prompts


def arrivals(count=24, gap_us=1500, shared=16, prompt=24, output=9):
    """Requests of three families, each with a common beginning."""
    made = []
    for number in range(count):
        own = [1000 + number] * (prompt - shared + output)
        tokens = [number % 3] * shared + own
        outputs = [output - number % 4]
        at_ns = 10**9 + number * gap_us * 1000
        made.append(Arrival(f"r{number}", at_ns, prompt, output + 5, 0, 1, outputs, [tokens]))
    return made


def recorded(load=None, kv=KV, **settings):
    return run(load or arrivals(), EngineConfig(**{**SETTINGS, **settings}), kv, step_us)


def decisions(events):
    """Blank the hashes: they are of real tokens, or of made ones."""
    for event in events:
        if isinstance(event, ev.RequestQueued | ev.RequestFinished):
            event.hashes = ""
        if isinstance(event, ev.BlockCached):
            event.hashes = []
        if isinstance(event, ev.BlockEvicted):
            event.hash = ""
    return events


@pytest.mark.parametrize("settings", [{}, {"async_scheduling": True}, {"max_num_seqs": 2}])
def test_the_recorded_settings_give_the_recorded_decisions(settings):
    """Hits in the cache too: made-up tokens are equal where the real ones were."""
    events = recorded(**settings)
    answer = what_if(events, {})
    assert answer.recorded.counts == answer.again.counts
    assert answer.recorded.counts["tokens from the cache"] > 0
    again = run(workload(events).arrivals, EngineConfig(**{**SETTINGS, **settings}), KV, step_us)
    assert first_difference(events, again) == ""  # of hashes only which are equal
    hashes = [event for event in again if isinstance(event, ev.BlockCached)]
    hashes[-1].hashes = hashes[0].hashes
    assert "block.cached" in first_difference(events, again)


@pytest.mark.parametrize(
    "changes",
    [{"num_gpu_blocks": 14}, {"max_num_seqs": 1}, {"max_num_batched_tokens": 8},
     {"enable_prefix_caching": False}],
)  # fmt: skip
def test_an_answer_is_what_a_run_with_those_settings_does(changes):
    """On the simulated machine itself the counts are exact, and the times nearly."""
    events = recorded()
    answer = what_if(events, changes)
    kv = KVShape(
        **{**{n: getattr(KV, n) for n in KV.__struct_fields__},
           "num_blocks": changes.get("num_gpu_blocks", KV.num_blocks)}
    )  # fmt: skip
    settings = {name: value for name, value in changes.items() if name != "num_gpu_blocks"}
    truth = measure(recorded(kv=kv, **settings))
    for name, value in truth.counts.items():
        assert answer.other.counts[name] == pytest.approx(value, rel=0.02, abs=1), name
    for name, value in truth.rows().items():
        if name.endswith("ms"):
            assert answer.other.rows()[name] == pytest.approx(value, rel=0.25), name
    Replay.of(answer.events).check()


def test_preemptions_are_foreseen():
    events = recorded(arrivals(gap_us=3000, shared=4, output=30), max_num_seqs=2)
    assert not any(isinstance(event, ev.RequestPreempted) for event in events)
    answer = what_if(events, {"num_gpu_blocks": 18})
    assert answer.other.counts["preemptions"] > 0


def test_the_fit_finds_what_a_step_costs():
    times = StepTimes(recorded())
    assert times.cost[:3] == pytest.approx([300, 20, 50], rel=0.01)
    assert times.cost[4] + times.cost[5] == pytest.approx(700, rel=0.01)
    assert times.error < 0.01
    noisy = [((p, r, 0, 0), 300 + 20 * p + 50 * r) for p in range(0, 30, 3) for r in range(4)]
    noisy[7] = (noisy[7][0], 90_000.0)  # one slow step changes nothing
    assert fit(noisy)[:3] == pytest.approx([300, 20, 50], rel=0.02)


def launched_us(prompt, rows, prompts) -> float:
    """A step of prompts is launched, whatever their number; others are replayed."""
    return 300.0 + 20.0 * prompt + 50.0 * rows + 1500.0 * (prompts > 0)


def test_prompts_that_always_came_alone_are_not_dear_together():
    """What a step with a prompt costs beside its tokens is its launches', unless the record has
    steps of several prompts that cost more each."""
    alone = [((p, r, 0, 1), launched_us(p, r, 1)) for p in range(4, 40, 3) for r in range(6)]
    decoding = [((0, r, 0, 0), launched_us(0, r, 0)) for r in range(1, 9)] * 4
    together = (240, 0, 0, 8)
    cost = fit(alone + decoding)
    predicted = cost[0] + 240 * cost[1] + 8 * cost[4] + cost[5]
    assert predicted == pytest.approx(launched_us(240, 0, 8), rel=0.02)
    dear = [((p, r, 0, n), launched_us(p, r, n) + 400 * n)
            for p in range(40, 90, 9) for r in range(3) for n in (1, 2, 4, 7)]  # fmt: skip
    cost = fit(dear + decoding)
    predicted = cost[0] + 240 * cost[1] + 8 * cost[4] + cost[5]
    assert predicted == pytest.approx(launched_us(*together[:2], 8) + 3200, rel=0.05)


class Shortest(Scheduler):
    """Run the shortest prompt first."""

    def add(self, request) -> None:
        request.rank = (request.num_prompt_tokens, *request.rank[1:])
        super().add(request)


def test_a_policy_of_ones_own():
    load = arrivals(count=6, gap_us=1)
    for number, arrival in enumerate(load):
        arrival.num_prompt_tokens = 30 - 4 * number
    events = recorded(load, max_num_seqs=1)
    name = f"{__name__}:Shortest"
    answer = what_if(events, {}, named_scheduler(name))
    order = [e.request_id for e in answer.events if isinstance(e, ev.RequestAdmitted)]
    assert order == ["r0", "r5", "r4", "r3", "r2", "r1"]
    for wrong in ("mine", "no.such.module:X", "json:loads", f"{__name__}:nothing"):
        with pytest.raises(ConfigError, match=r"no class|imported|no subclass"):
            named_scheduler(wrong)


def test_the_command(tmp_path, capsys):
    path, new = tmp_path / "record.jsonl", tmp_path / "new.jsonl"
    path.write_bytes(to_jsonl(recorded()))
    assert main([str(path), "--num-gpu-blocks", "14", "-o", str(new)]) == 0
    out = capsys.readouterr().out
    assert "24 requests, as they arrived" in out
    assert out.index("preemptions") < out.index("first token, p50, ms")  # counts come first
    assert "its error" in out and "clients that wait for an answer" in out
    Replay.of(read_all(new)).check()
    assert main([str(path), "--max-num-seqs", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["what_if"]["steps"] >= told["recorded"]["steps"]
    path.write_bytes(to_jsonl([]))
    assert main([str(path)]) == 2
    assert "no request that reached the core" in capsys.readouterr().err


def test_a_real_record_says_what_it_cannot_know():
    from tests.trace.test_import_rules import ROOT

    events = decisions(read_all(ROOT / "docs" / "records" / "crowd.jsonl"))
    answer = what_if(events, {"num_gpu_blocks": 40})
    assert answer.recorded.counts["preemptions"] > answer.other.counts["preemptions"]
    assert any("no hashes" in note for note in answer.notes)


def test_wrong_proposals_of_a_record_are_no_tokens():
    from tests.trace.test_import_rules import ROOT

    events = read_all(ROOT / "docs" / "records" / "repeats.jsonl")
    unfinished = [event for event in events if not isinstance(event, ev.RequestFinished)]
    sampled = sum(e.num_sampled for e in events if isinstance(e, ev.StepFinished))
    load = workload(unfinished)
    assert load.arrivals[0].outputs == [sampled]
    assert any("proposed" in note for note in load.notes)
