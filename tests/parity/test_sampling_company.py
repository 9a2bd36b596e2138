"""Rule 9: a seeded request gets the same text alone, among 31 others, and when preempted."""

from __future__ import annotations

import pytest

from engine.sampling_params import SamplingParams
from engine.trace import events
from tests.models import tiny_models
from tests.support.engine_on_tokens import TokenEngine

PROMPTS = [[(7 * i + j) % tiny_models.VOCAB for j in range(5 + i % 23)] for i in range(32)]


def params(i: int) -> SamplingParams:
    return SamplingParams(
        temperature=[0.7, 1.0, 1.5][i % 3],
        top_p=[1.0, 0.9][i % 2],
        top_k=[0, 20, 0, 5][i % 4],
        min_p=[0.0, 0.05][i % 2],
        frequency_penalty=0.3 * (i % 2),
        repetition_penalty=1.0 + 0.1 * (i % 3),
        seed=1000 + i,
        max_tokens=20,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    tiny_models.save(tiny_models.NATIVE["llama"](), folder)
    return folder


@pytest.fixture(scope="module")
def alone(folder):
    with TokenEngine(folder, block_size=4, enable_prefix_caching=False) as engine:
        return [engine.run([p], [params(i)])[0] for i, p in enumerate(PROMPTS)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"async_scheduling": True},
        {"max_num_batched_tokens": 13},
        {"num_gpu_blocks_override": 60, "preemption_mode": "swap"},
        {"num_gpu_blocks_override": 60, "preemption_mode": "recompute"},
    ],
    ids=["together", "overlapped", "chunked", "swapped", "recomputed"],
)
def test_same_text_in_any_company(folder, alone, options):
    with TokenEngine(folder, block_size=4, **options) as engine:
        assert engine.run(PROMPTS, [params(i) for i in range(32)]) == alone
        if "preemption_mode" in options:
            assert engine.recorded(events.RequestPreempted)


def test_other_seeds_give_other_texts(folder, alone):
    with TokenEngine(folder, block_size=4) as engine:
        others = []
        for i in range(32):
            other = params(i)
            other.seed = 5
            others.append(other)
        answers = engine.run(PROMPTS, others)
    assert sum(a != b for a, b in zip(answers, alone)) > 25
