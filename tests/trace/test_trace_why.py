"""Why a request was slow: the parts sum to the whole, and each names what really happened."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from engine.config import EngineConfig
from engine.core.engine_core import EngineCore
from engine.core.messages import CoreRequest, KVShape, StepOutput, StepPlan
from engine.sampling_params import SamplingParams
from engine.trace import events as ev
from engine.trace.files import read_all
from engine.trace.life import requests_of
from engine.trace.names import Names
from engine.trace.recorder import Recorder
from engine.trace.why import why_in_words, why_slow
from engine.trace.why.shares import divide, fit_in
from tests.trace.test_import_rules import ROOT

RECORDS = ROOT / "docs" / "records"
RUNS, PART = 1000, 100


class Simulated:
    """An executor that computes nothing and moves the clock; the core runs on that clock."""

    def __init__(self, shape: random.Random | None = None, **kv: int):
        self.now = 1_000_000_000
        self.random = shape or random.Random(0)
        defaults = {"num_blocks": 12, "num_host_blocks": 6, "block_size": 4, "max_model_len": 40}
        self.kv = KVShape(
            **{**defaults, **kv}, bytes_per_block=64, vocab_size=50, swap_us_per_block=3.0
        )

    def clock(self) -> int:
        self.now += self.random.randrange(0, 900)  # of the loop itself
        return self.now

    def execute(self, plan: StepPlan) -> StepOutput:
        prepare = 3_100 + 9_300 * len(plan.swap_in + plan.swap_out)
        forward = 40_000 + 11_300 * plan.num_tokens + self.random.randrange(0, 5_000)
        sample = 2_000 if any(row.samples for row in plan.rows) else 0
        self.now += prepare + forward + sample
        tokens = [[self.random.randrange(50) for _ in range(row.samples)] for row in plan.rows]
        times = {
            "prepare_us": prepare / 1e3,
            "forward_us": forward / 1e3,
            "sample_us": sample / 1e3,
        }
        return StepOutput(step=plan.step, tokens=tokens, **times)


class Run:
    """A core on the simulated machine, and its record."""

    def __init__(self, machine: Simulated, **options):
        self.machine = machine
        self.recorder = Recorder(clock=machine.clock, thread=False)
        self.events: list[ev.Event] = []
        self.recorder.subscribe(self.events.extend)
        self.core = EngineCore(EngineConfig(**options), machine, self.recorder)

    def add(self, name: str, length: int, **params) -> None:
        prompt = list(range(length))
        params = SamplingParams(**{"ignore_eos": True, "max_tokens": 6, "seed": 0, **params})
        self.core.add_request(CoreRequest(request_id=name, prompt_token_ids=prompt, params=params))

    def to_the_end(self) -> list[ev.Event]:
        while self.core.has_work:
            self.core.step()
        self.recorder.flush()
        return self.events


def random_run(seed: int) -> list[ev.Event]:
    draw = random.Random(seed)
    machine = Simulated(
        draw, num_blocks=draw.randrange(10, 20), num_host_blocks=draw.choice([0, 8])
    )
    run = Run(
        machine,
        max_num_seqs=draw.randrange(3, 6),
        max_num_batched_tokens=draw.choice([5, 8, 16]),
        preemption_mode=draw.choice(["auto", "swap", "recompute"]),
        async_scheduling=False,
    )
    for number in range(draw.randrange(4, 9)):
        name = f"r{number}"
        run.add(
            name, draw.randrange(1, 22), max_tokens=draw.randrange(0, 14), n=draw.choice([1, 1, 3])
        )
        for _ in range(draw.randrange(0, 6)):
            run.core.step()
        if draw.random() < 0.1:
            run.core.abort(name, "it left")
    if draw.random() < 0.8:
        return run.to_the_end()
    run.recorder.flush()
    return run.events  # cut off


@pytest.mark.parametrize(
    "first", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(PART, RUNS, PART))]
)
def test_the_parts_sum_to_the_whole(first):
    causes: Counter[str] = Counter()
    for seed in range(first, first + PART):
        events = random_run(seed)
        for request in requests_of(events):
            told = why_slow(events, request)
            assert sum(part["ns"] for part in told["parts"]) == told["whole_ns"], (seed, request)
            assert all(part["ns"] > 0 for part in told["parts"])
            before = sum(part["before_first_token_ns"] for part in told["parts"])
            assert before == (told["first_token_ns"] or 0), (seed, request)
            assert len(why_in_words(told, Names())) >= 1
            if told["ended"]:
                assert told["whole_ns"] == lifetime(events, request)
            causes.update(part["cause"] for part in told["parts"])
    assert {"queued", "prefill", "decode", "others' prompts", "preempted", "recompute", "swap",
            "sampling", "loop", "left out"} <= causes.keys()  # fmt: skip


def lifetime(events, request):
    ends = (ev.RequestFinished, ev.RequestAborted)
    mine = [event for event in events if event.request_id.split(".")[0] == request]
    last = max(event.ts_ns for event in mine if isinstance(event, ends))
    return last - mine[0].ts_ns


def parts_of(events, request):
    return why_slow(events, request)["parts"]


def test_a_long_prompt_beside_it_is_named():
    machine = Simulated(num_blocks=60, max_model_len=100)
    run = Run(machine, max_num_batched_tokens=64, enable_prefix_caching=False)
    run.add("small", 4, max_tokens=8)
    run.core.step()
    run.core.step()
    run.add("large", 60, max_tokens=2)
    events = run.to_the_end()
    (delay,) = [part for part in parts_of(events, "small") if part["cause"] == "others' prompts"]
    assert delay["who"] == ["large"] and delay["steps"] == 1
    # Its chunk has 60 tokens at 11.3 µs; the decode-only steps tell what the rest costs.
    assert delay["ns"] == pytest.approx(60 * 11_300, rel=0.05)


def test_a_wait_for_a_seat_names_the_head_of_the_queue_or_who_runs():
    run = Run(Simulated(num_blocks=60), max_num_seqs=1)
    for name in ("a", "b", "c"):
        run.add(name, 4)
    events = run.to_the_end()
    (of_b,) = [p for p in parts_of(events, "b") if p["for"] == "seats"]
    assert of_b["who"] == ["a"] and "1 of 1 seats" in of_b["why"]
    behind, ran = [p for p in parts_of(events, "c") if p["for"] == "seats"]
    assert behind["who"] == ["b"] and behind["ns"] > 0  # first behind b, …
    assert ran["who"] == ["b"]  # … then for the seat that b has


@pytest.mark.parametrize("mode", ["recompute", "swap"])
def test_a_preemption_and_its_cost_have_the_request_that_gained(mode):
    run = Run(Simulated(num_blocks=6, num_host_blocks=6), preemption_mode=mode)
    run.add("first", 8, max_tokens=12)
    run.add("second", 7, max_tokens=12)
    events = run.to_the_end()
    assert any(isinstance(e, ev.RequestPreempted) for e in events)
    parts = {(part["cause"], *part["who"]) for part in parts_of(events, "second")}
    assert ("preempted", "first") in parts
    assert (("recompute", "first") in parts) == (mode == "recompute")
    assert (("swap",) in parts) == (mode == "swap")


@pytest.mark.parametrize("name", sorted(path.stem for path in RECORDS.glob("*.jsonl")))
def test_real_records(name):
    events = read_all(RECORDS / f"{name}.jsonl")
    for request in requests_of(events):
        told = why_slow(events, request)
        assert sum(part["ns"] for part in told["parts"]) == told["whole_ns"]
        assert all(part["why"] or part["cause"] for part in told["parts"])
    assert why_slow(events, "nobody") is None


def words_of(name: str) -> list[str]:
    """Say of each request of a record in words why it took its time."""
    events = read_all(RECORDS / f"{name}.jsonl")
    names = Names.of(events)
    told = (why_slow(events, request) for request in requests_of(events))
    return ["\n".join(why_in_words(why, names)) for why in told if why is not None]


def test_the_words_of_real_records():
    waited = [text for text in words_of("crowd") if "waited for a seat, behind or beside" in text]
    assert waited and all(text.startswith("req-") for text in waited)
    assert any("chunks of req-" in text for text in words_of("chunks"))


def test_shares_sum_and_are_fair():
    assert divide(10, {"a": 1, "b": 1, "c": 1}) == {"a": 4, "b": 3, "c": 3}
    assert divide(5, {}) == {} == divide(5, {"a": 0})
    assert fit_in(10, {"a": 3}, "rest") == {"a": 3, "rest": 7}
    assert fit_in(10, {"a": 30, "rest": 10}, "rest") == {"a": 8, "rest": 2}
