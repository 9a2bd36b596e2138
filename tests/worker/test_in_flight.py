"""Steps that are launched before the one before them is booked, as on CUDA: the same tokens as in
the plain loop, whatever the sequences ask for. On a CPU a launch computes at once; what is tried
here is that nobody needs a token of the host's before it has arrived."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from engine.core.messages import CoreRequest
from engine.placeholders import UNKNOWN
from engine.sampling_params import SamplingParams
from engine.trace import events
from engine.worker.in_flight import Clock, DrawnTokens, InFlight
from engine.worker.sampling.sample_step import SampleStep
from engine.worker.seats import Seats
from tests.models import tiny_models
from tests.support.engine_on_tokens import TokenEngine

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [3], [20, 21, 22, 23, 24], list(range(30, 55)), [9, 9, 9, 2]]
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
RANDOM = SamplingParams(temperature=1.5, max_tokens=12, ignore_eos=True, seed=7)
KINDS = {
    "greedy": [GREEDY],
    "random": [RANDOM],
    "mixed": [GREEDY, RANDOM, replace(RANDOM, top_k=20, top_p=0.9)],
    "penalties": [replace(GREEDY, repetition_penalty=1.7, frequency_penalty=0.5), GREEDY],
    "rules": [replace(RANDOM, bad_words_token_ids=[[5], [7, 8]], min_tokens=4), RANDOM],
    "logprobs": [replace(GREEDY, logprobs=2, prompt_logprobs=1), RANDOM],
    "n": [replace(RANDOM, n=3), GREEDY],
    "stops": [replace(RANDOM, stop_token_ids=list(range(0, 160, 7))), RANDOM],
}
OPTIONS = {"block_size": 4, "max_num_batched_tokens": 9, "max_num_seqs": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    tiny_models.save(tiny_models.NATIVE["llama"](), folder)
    return folder


def params_of(kind: str) -> list[SamplingParams]:
    return [KINDS[kind][i % len(KINDS[kind])] for i in range(len(PROMPTS))]


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_tokens_as_in_the_plain_loop(model, kind, eager):
    options = {**OPTIONS, "num_gpu_blocks_override": 40, "enforce_eager": eager}
    with TokenEngine(model, **options) as engine:
        expected = engine.run(PROMPTS, params_of(kind))
        logprobs = [out.logprobs for out in engine.outputs["r0"]]
    with TokenEngine(model, launches_ahead=True, async_scheduling=True, **options) as engine:
        assert engine.core._worker is None, "no thread is needed"
        assert engine.run(PROMPTS, params_of(kind)) == expected
        assert [out.logprobs for out in engine.outputs["r0"]] == logprobs


@pytest.mark.parametrize("mode", ["recompute", "swap"])
def test_and_when_sequences_are_preempted(model, mode):
    options = {**OPTIONS, "enable_prefix_caching": False}
    with TokenEngine(model, num_gpu_blocks_override=64, **options) as engine:
        expected = engine.run(PROMPTS, params_of("mixed"))
    options |= {"num_gpu_blocks_override": 11, "preemption_mode": mode, "async_scheduling": True}
    with TokenEngine(model, launches_ahead=True, **options) as engine:
        assert engine.run(PROMPTS, params_of("mixed")) == expected
        assert {event.mode for event in engine.recorded(events.RequestPreempted)} == {mode}


def test_steps_are_launched_before_the_ones_before_them_are_booked(model, monkeypatch):
    order = []
    launch, book = Seats.gather, SampleStep.book
    monkeypatch.setattr(
        Seats, "gather", lambda self, plan: order.append("launch") or launch(self, plan)
    )
    monkeypatch.setattr(
        SampleStep, "book", lambda self, *args: order.append("book") or book(self, *args)
    )
    with TokenEngine(model, launches_ahead=True, async_scheduling=True, **OPTIONS) as engine:
        order.clear()
        engine.run([[1, 2, 3]], [replace(GREEDY, max_tokens=4)])
    assert order == ["launch", *["launch", "book"] * 3, "book"]


def test_an_abort_between_launch_and_result_disturbs_nobody(model):
    options = {**OPTIONS, "async_scheduling": True, "num_gpu_blocks_override": 40}
    with TokenEngine(model, launches_ahead=True, **options) as engine:
        [expected] = engine.run([PROMPTS[0]], [RANDOM])
        core, found = engine.core, []
        for name, prompt in (("a", PROMPTS[0]), ("b", PROMPTS[3])):
            core.add_request(CoreRequest(request_id=name, prompt_token_ids=prompt, params=RANDOM))
        for step in range(40):
            found += [t for o in core.step() if o.request_id == "a" for t in o.token_ids]
            core.check()
            if step == 5:
                core.abort("b", "the test wants it")
        assert found == expected[0]
        assert not core.has_work and core.stats().blocks_used == 0


def test_a_sampler_of_ones_own_sees_every_token(model):
    """It may look at the host's rows: the step before is booked first."""

    class Looks(SampleStep):
        def run(self, inputs, drawing, *args):
            seats = inputs.seats[drawing]
            held = [inputs.rows[i].start + inputs.rows[i].num_tokens for i in drawing]
            assert all((self.seats.tokens[s, :n] != UNKNOWN).all() for s, n in zip(seats, held))
            return super().run(inputs, drawing, *args)

    with TokenEngine(model, Looks, launches_ahead=True, async_scheduling=True) as engine:
        engine.run(PROMPTS, params_of("mixed"))


def test_drawn_tokens_fill_what_is_unknown_and_nothing_else():
    drawn = DrawnTokens(6)
    drawn.keep(np.array([5, 2]), torch.tensor([77, -1]))
    ids = torch.tensor([10, UNKNOWN, 12, UNKNOWN])
    drawn.fill(ids, torch.from_numpy(drawn.places(np.array([5, 5, 0, 2]))))
    assert ids.tolist() == [10, 77, 12, 0]  # 0: its sequence ends, there was nothing to draw


def test_a_result_is_made_once():
    made = []
    step = InFlight(lambda: made.append(1) or "output")
    assert step.result() == step.result() == "output"
    assert made == [1]


def test_a_result_that_fails_says_so_again():
    step = InFlight(lambda: 1 // 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            step.result()


def test_the_clock_of_a_cpu_is_the_hosts():
    clock = Clock(torch.device("cpu"))
    for _ in range(3):
        clock.mark()
    assert clock.wait() > 0
    spans = clock.spans_us()
    assert len(spans) == 2 and min(spans) >= 0


def test_a_clock_of_a_device_waits_for_the_last_mark(monkeypatch):
    class Event:
        made: list = []

        def __init__(self, **options):
            assert options == {"enable_timing": True, "blocking": True}
            self.ready, self.waited = False, False
            Event.made.append(self)

        def record(self):
            pass

        def query(self):
            return self.ready

        def synchronize(self):
            self.waited = True

        def elapsed_time(self, end):
            return float(Event.made.index(end) - Event.made.index(self))

    monkeypatch.setattr(torch.cuda, "Event", Event)
    clock = Clock(torch.device("cuda"))
    for _ in range(3):
        clock.mark()
    assert clock.wait() > 0
    assert [event.waited for event in Event.made] == [False, False, True]
    looks = []

    def patience():
        looks.append(True)
        Event.made[-1].ready = len(looks) == 3

    Event.made[-1].waited = False
    assert clock.wait(patience) > 0
    assert len(looks) == 3 and not Event.made[-1].waited
    assert np.allclose(clock.spans_us(), [1000.0, 1000.0])
    Event.made[-1].ready = True
    assert clock.wait() == 0  # it had passed already: nobody knows when
