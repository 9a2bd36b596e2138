"""The reference: greedy tokens equal transformers' `generate`, token for token, however the engine
came to them (rule 10).
"""

from __future__ import annotations

import random

import pytest

from engine.trace import events
from tests.models import tiny_models
from tests.support.cases import FULL, pairs
from tests.support.engine_on_tokens import TokenEngine

NUM_PROMPTS = 20 if FULL else 10  # each length twice, or once
MAX_TOKENS = 16
BLOCK_SIZE = 4

ARCHITECTURES = [
    "opt",
    "opt-350m",
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gpt2",
    "gemma2",
    "phi3",
    "gpt-neox",
]

# Room for about three requests, so that someone is always preempted.
SMALL_POOL = {"num_gpu_blocks_override": 40, "enable_prefix_caching": False}
SCENARIOS = {
    "plain": {},
    "budget-7": {"max_num_batched_tokens": 7},
    "prefix-cached": {},
    "recompute": {**SMALL_POOL, "preemption_mode": "recompute"},
    "swap": {**SMALL_POOL, "preemption_mode": "swap"},
    "n-4": {},
    "overlapped": {"async_scheduling": True},
    "overlapped-small-pool": {**SMALL_POOL, "preemption_mode": "auto", "async_scheduling": True},
    "launched-ahead": {
        **SMALL_POOL,
        "preemption_mode": "auto",
        "async_scheduling": True,
        "launches_ahead": True,
    },
}


def make_prompts() -> list[list[int]]:
    """Lengths from 1 to beyond every sliding window (8); some share their beginnings, some are
    multiples of a block.
    """
    draw = random.Random(5)
    prompts = []
    shared = [draw.randrange(tiny_models.VOCAB) for _ in range(20)]
    for i in range(NUM_PROMPTS):
        length = [1, 4, 7, 8, 13, 16, 23, 30, 37, 40][i % 10]
        head = shared[: min(length, 18)] if i % 2 else []
        prompts.append(
            head + [draw.randrange(tiny_models.VOCAB) for _ in range(length - len(head))]
        )
    return prompts


PROMPTS = make_prompts()


@pytest.fixture(scope="module")
def model(request, tmp_path_factory):
    """(folder, expected answers of transformers) of one tiny model."""
    kind = request.param
    config = (tiny_models.NATIVE.get(kind) or tiny_models.ADAPTED[kind])()
    folder = tmp_path_factory.mktemp(kind)
    reference = tiny_models.save(config, folder)
    return folder, tiny_models.greedy(reference, PROMPTS, MAX_TOKENS)


@pytest.mark.parametrize(
    ("model", "scenario"), pairs(ARCHITECTURES, list(SCENARIOS), every=3), indirect=["model"]
)
def test_greedy_equals_generate(model, scenario):
    folder, expected = model
    with TokenEngine(folder, block_size=BLOCK_SIZE, **SCENARIOS[scenario]) as engine:
        if scenario == "n-4":  # n siblings of temperature 0 are refused; top_k 1 leaves one choice
            answers = engine.run(PROMPTS, n=4, temperature=1.0, top_k=1, max_tokens=MAX_TOKENS)
            assert answers == [[tokens] * 4 for tokens in expected]
            assert engine.recorded(events.BlockCopied)
            return
        if scenario == "prefix-cached":
            engine.run(PROMPTS, temperature=0.0, max_tokens=MAX_TOKENS)
            engine.forget_events()
        answers = engine.run(PROMPTS, temperature=0.0, max_tokens=MAX_TOKENS)
        assert answers == [[tokens] for tokens in expected]
        # The scenario really happened.
        if scenario == "prefix-cached":
            hits = [e.num_cached_tokens for e in engine.recorded(events.RequestAdmitted)]
            assert sum(hits) > 0.7 * sum(map(len, PROMPTS))
        if "preemption_mode" in SCENARIOS[scenario]:
            modes = {e.mode for e in engine.recorded(events.RequestPreempted)}
            assert modes and (SCENARIOS[scenario]["preemption_mode"] in ("auto", *modes))
        if scenario == "budget-7":
            assert max(e.budget_used for e in engine.recorded(events.StepPlanned)) == 7
