"""Rule 9, on the pocket model: a token depends on its own request alone, on each variant.

Logits must not depend on who shares a step, on how a prompt was cut, on whether its beginning came
from the cache, or on a preemption: sums are made in an order of the row's own.
"""

from __future__ import annotations

import random

import pytest

import engine.kernels
from engine.config import POCKET_MODEL
from engine.kernels.cpu.build import variants_here
from engine.sampling_params import SamplingParams
from engine.trace import events
from tests.support.cases import mostly
from tests.support.engine_on_tokens import TokenEngine

EXACT = [v for v in variants_here() if v != "portable"]
"""On the portable variant torch computes some of the products."""

draw = random.Random(3)
SHARED = [draw.randrange(10, 2000) for _ in range(300)]
"""Longer than a part of attention (PART in attention_task.h): its parts are joined."""
PROMPTS = [
    SHARED[: draw.randint(40, 300)] + [draw.randrange(10, 2000) for _ in range(draw.randint(1, 40))]
    for _ in range(24)
] + [[draw.randrange(10, 2000) for _ in range(draw.randint(1, 20))] for _ in range(16)]
PARAMS = [
    SamplingParams(temperature=[0.0, 1.0][i % 2], seed=i, max_tokens=12, ignore_eos=True)
    for i in range(len(PROMPTS))
]
SMALL_POOL = {"num_gpu_blocks_override": 80, "enable_prefix_caching": False}
WAYS = {
    "together": {"enable_prefix_caching": False},
    "prefix-cached": {},
    "chunked": {"max_num_batched_tokens": 7, "max_num_seqs": 4},
    "overlapped": {"async_scheduling": True, "max_num_batched_tokens": 100},
    "recomputed": {**SMALL_POOL, "preemption_mode": "recompute"},
    "swapped": {**SMALL_POOL, "preemption_mode": "swap", "swap_space": 1.0},
}


KINDS = [*((v, "bfloat16") for v in EXACT), (EXACT[0], "float32")]
"""In fp32 the other variants are held kernel by kernel (tests/kernels/cpu)."""


@pytest.fixture(scope="module", params=mostly(KINDS, KINDS[0]), ids="-".join)
def alone(request):
    """(dtype, the answers of each request by itself); the variant computes meanwhile."""
    variant, dtype = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLASSHOUSE_CPU_VARIANT", variant)
        engine.kernels.forget()
        with start(dtype, enable_prefix_caching=False) as engine_alone:
            yield dtype, [engine_alone.run([p], [q])[0] for p, q in zip(PROMPTS, PARAMS)]
    engine.kernels.forget()


def start(dtype: str, **options) -> TokenEngine:
    return TokenEngine(POCKET_MODEL, dtype=dtype, **{"cpu_threads": 2, **options})


@pytest.mark.parametrize("way", mostly(list(WAYS), "chunked", "overlapped", "swapped"))
def test_a_token_depends_on_its_own_request_alone(alone, way):
    dtype, answers = alone
    with start(dtype, **WAYS[way]) as together:
        assert together.run(PROMPTS, PARAMS) == answers
        preempted = together.recorded(events.RequestPreempted)
        assert {event.mode for event in preempted} == (
            {WAYS[way]["preemption_mode"]} if "preemption_mode" in WAYS[way] else set()
        )


@pytest.mark.parametrize("threads", [1])
def test_nor_on_the_number_of_threads(alone, threads):
    dtype, answers = alone
    with start(dtype, cpu_threads=threads) as together:
        assert together.run(PROMPTS, PARAMS) == answers
