"""A request whose logits aren't finite ends with an error that says so; nobody else notices.

The model's embedding of one token is NaN: what contains it can't be computed, as when numbers grow
too large for float16 or a checkpoint is broken.
"""

from __future__ import annotations

import pytest
import torch

from engine.kernels import BACKENDS, TORCH, Backend
from engine.sampling_params import SamplingParams
from engine.trace import events
from engine.trace.state import EngineState
from tests.models import tiny_models
from tests.support.engine_on_tokens import TokenEngine

POISON = 11
PREFIX = [5, 6, 7, 8, 9, 10, 1, 2]  # two blocks
HEALTHY = [[*PREFIX, 20, 21], [3], [30, 31, 32, 33, 34, 35, 36]]
SICK = [*PREFIX, POISON, 4, 4]
WAYS = {
    "plain": {},
    "one by one": {"enforce_eager": True},
    "overlapped": {"async_scheduling": True},
    "chunks": {"max_num_batched_tokens": 5},
    "small pool, overlapped": {
        "num_gpu_blocks_override": 10,
        "max_model_len": 32,
        "async_scheduling": True,
    },
}
GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
RANDOM = SamplingParams(temperature=0.9, seed=4, max_tokens=6, ignore_eos=True)
CUT = SamplingParams(temperature=0.9, top_p=0.9, top_k=40, seed=5, max_tokens=6, ignore_eos=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(a sane model, the same one with a poisoned embedding)"""
    sane, poisoned = (tmp_path_factory.mktemp(name) for name in ("sane", "poisoned"))
    model = tiny_models.save(tiny_models.NATIVE["llama"](), sane)
    with torch.no_grad():
        model.model.embed_tokens.weight[POISON] = float("nan")
    model.save_pretrained(poisoned)
    return sane, poisoned


def start(folder, **options) -> TokenEngine:
    return TokenEngine(folder, block_size=4, **options)


def failure(engine: TokenEngine, name: str):
    """The last output of a request that failed, and its event."""
    [last] = [output for output in engine.outputs[name] if output.finish_reason]
    ends = engine.recorded(events.RequestFinished)
    return last, next(event for event in ends if event.request_id == name)


@pytest.mark.parametrize("backend", ["torch", "fastest"])
@pytest.mark.parametrize("params", [GREEDY, RANDOM, CUT], ids=["greedy", "random", "cut"])
@pytest.mark.parametrize("way", WAYS)
def test_only_the_request_itself_ends(folders, way, params, backend, monkeypatch):
    if backend == "torch":
        monkeypatch.setitem(BACKENDS, "cpu", Backend(lambda: TORCH, asynchronous=False))
    sane, poisoned = folders
    every = [params] * 3
    with start(sane, **WAYS[way]) as healthy:
        expected = healthy.run(HEALTHY, every)
    assert all(POISON not in tokens for [tokens] in expected)
    with start(poisoned, **WAYS[way]) as on_tokens:
        found = on_tokens.run([SICK, *HEALTHY], [params, *every])
        assert found == [[[]], *expected]
        last, event = failure(on_tokens, "r0")
        assert last.finish_reason == event.reason == "error"
        seen = 10 if way == "chunks" else len(SICK)  # tokens, at the end of the step that failed
        assert f"no finite logits for position {seen}:" in last.error
        assert "--dtype bfloat16 or float32" in last.error
        assert f"position {seen}" in event.why
        # its blocks are taken by others, who find nothing of it; and its prefix is computed anew
        assert on_tokens.run(HEALTHY, every) == expected
        state = EngineState()
        for event in on_tokens.recorded(events.Event):
            state.fold(event)
        state.check()
        assert not sum(state.references)


@pytest.mark.parametrize("overlapped", [False, True])
@pytest.mark.parametrize("logprobs", [None, 3])
def test_in_the_middle_of_an_answer(folders, overlapped, logprobs, tmp_path):
    """What was drawn before is kept."""
    sane, _ = folders
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, logprobs=logprobs)
    with start(sane, async_scheduling=overlapped) as healthy:
        answers = healthy.run(HEALTHY, [params] * 3)
    [first], others = answers[0], {t for [tokens] in answers[1:] for t in tokens}
    seen = {token for prompt in HEALTHY for token in prompt}
    place = next(i for i, t in enumerate(first) if t not in others | seen)
    model = tiny_models.make(tiny_models.NATIVE["llama"]())
    with torch.no_grad():
        model.model.embed_tokens.weight[first[place]] = float("nan")
    model.save_pretrained(tmp_path)
    with start(tmp_path, async_scheduling=overlapped) as on_tokens:
        on_tokens.recorder.full_requests.add("r0")  # a draw that fails has no event of its own
        found = on_tokens.run(HEALTHY, [params] * 3)
        assert found == [[first[: place + 1]], *answers[1:]]
        last, _ = failure(on_tokens, "r0")
        assert f"position {len(HEALTHY[0]) + place + 1}:" in last.error
        assert len(on_tokens.recorded(events.SampleDrawn)) == place + 1


def test_all_of_several_answers_end(folders):
    _, poisoned = folders
    params = SamplingParams(n=3, temperature=1.0, seed=1, max_tokens=4, ignore_eos=True)
    with start(poisoned) as on_tokens:
        assert on_tokens.run([SICK], [params]) == [[[], [], []]]
        ends = on_tokens.recorded(events.RequestFinished)
    assert [event.reason for event in ends] == ["error"] * 3


def test_on_8_bit_pages(folders):
    sane, poisoned = folders
    with start(sane, kv_cache_dtype="fp8") as healthy:
        expected = healthy.run(HEALTHY, [GREEDY] * 3)
    with start(poisoned, kv_cache_dtype="fp8") as on_tokens:
        assert on_tokens.run([SICK, *HEALTHY], [GREEDY] * 4) == [[[]], *expected]
        assert on_tokens.run(HEALTHY, [GREEDY] * 3) == expected


def test_a_temperature_next_to_0_is_no_failure(folders):
    """Logits divided by 1e-40 are infinite; nothing is wrong with the model."""
    sane, _ = folders
    cold = SamplingParams(temperature=1e-40, seed=1, max_tokens=6, ignore_eos=True)
    with start(sane) as on_tokens:
        assert on_tokens.run(HEALTHY, [cold] * 3) == on_tokens.run(HEALTHY, [GREEDY] * 3)
