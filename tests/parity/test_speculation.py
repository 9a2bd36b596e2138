"""Rule 11: with proposals each request gets the same tokens and log-probabilities as without.

In fp32 on a tiny model, whose small vocabulary makes proposals hit and miss, and in bf16 on the
pocket model, whose tokens would differ if a row's sums depended on how many rows there are.
"""

from __future__ import annotations

import random

import pytest

import engine.kernels
from engine.config import POCKET_MODEL
from engine.core.messages import CoreOutput
from engine.sampling_params import SamplingParams
from engine.trace import events
from tests.models import tiny_models
from tests.parity.test_company import EXACT
from tests.support.cases import FULL, mostly
from tests.support.engine_on_tokens import TokenEngine
from tests.support.proposing import EagerScheduler

VARIANTS = EXACT[:1]
"""That rows don't change each other is held for each variant by `test_company.py`."""
KINDS = [
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 1.1, "frequency_penalty": 0.2},
    {"temperature": 0.0, "presence_penalty": 0.5, "logprobs": 3},
    {"temperature": 0.6, "logprobs": 0},
    {"temperature": 0.8, "top_p": 0.9, "top_k": 20, "logprobs": 4},
    {"temperature": 0.5, "min_p": 0.05, "frequency_penalty": 0.1},
    {"temperature": 0.4, "n": 3, "logprobs": 1},
    {"temperature": 0.0, "min_tokens": 12, "ends": True},
    {"temperature": 0.5, "ends": True},
    {"temperature": 0.3, "bad": True, "logit_bias": {11: 1.5, 13: -2.0}},
    {"temperature": 0.3, "n": 2, "repetition_penalty": 1.2},
    {"temperature": 0.0, "logprobs": 2, "prompt_logprobs": 1},
]


def requests(vocab: int, longest: int, output: int) -> tuple[list[list[int]], list[SamplingParams]]:
    """Return prompts that repeat themselves, and parameters of every kind."""
    draw = random.Random(11)
    prompts, params = [], []
    for i in range(len(KINDS) * (2 if FULL else 1)):
        part = [draw.randrange(5, vocab) for _ in range(draw.randint(3, longest // 3))]
        prompts.append(part * 2 + part[: draw.randint(1, len(part))])
        kind = dict(KINDS[i % len(KINDS)])
        if kind.pop("ends", False):
            kind["stop_token_ids"] = draw.sample(range(vocab), vocab // 12)
        if kind.pop("bad", False):
            kind["_bad"] = [part[:2], part[1:3], [draw.randrange(vocab)]]
        bad = kind.pop("_bad", None)
        one = SamplingParams(seed=i, max_tokens=output + i % 7, ignore_eos=True, **kind)
        if bad is not None:
            one.bad_words_token_ids = bad
        params.append(one)
    return prompts, params


WAYS = {
    "together": {"enable_prefix_caching": False},
    "prefix-cached": {},
    "chunked": {"max_num_batched_tokens": 13, "max_num_seqs": 5},
    "overlapped": {"async_scheduling": True},
    "launched-ahead": {"async_scheduling": True, "launches_ahead": True},
    "recomputed": {"small": True, "preemption_mode": "recompute"},
    "swapped": {"small": True, "preemption_mode": "swap", "swap_space": 1.0},
    "eager": {"enforce_eager": True, "level": "full"},
}


MOSTLY = ("prefix-cached", "chunked", "launched-ahead", "swapped", "eager")


def told(outputs: list[CoreOutput]) -> dict:
    """Return what a request got: of each sequence its tokens, log-probabilities and end."""
    found: dict = {}
    for output in outputs:
        tokens, logprobs, ends = found.setdefault(output.index, ([], [], []))
        tokens += output.token_ids
        assert output.logprobs is None or len(output.logprobs) == len(output.token_ids)
        logprobs += output.logprobs or []
        if output.finish_reason:
            ends.append((output.finish_reason, output.stop_reason))
    return found


def answers(engine: TokenEngine, prompts, params) -> list[dict]:
    engine.run(prompts, params)
    return [told(engine.outputs[f"r{i}"]) for i in range(len(prompts))]


def check_that_proposals_were_made(engine: TokenEngine, fewest: int) -> None:
    verified = engine.recorded(events.SpecVerified)
    assert sum(e.num_accepted for e in verified) >= fewest, "proposals hit"
    assert sum(e.num_accepted < e.num_proposed for e in verified) >= fewest, "proposals miss"


class Workload:
    """Hold requests, and what each gets alone and without proposals."""

    def __init__(self, model, dtype: str, blocks: int, requests) -> None:
        self.model, self.dtype, self.blocks = model, dtype, blocks
        self.prompts, self.params = requests
        with self.start(enable_prefix_caching=False) as engine:
            self.alone = [
                answers(engine, [prompt], [params])[0]
                for prompt, params in zip(self.prompts, self.params)
            ]

    def start(self, small: bool = False, **options) -> TokenEngine:
        if small:
            options |= {"num_gpu_blocks_override": self.blocks, "enable_prefix_caching": False}
        return TokenEngine(
            self.model, dtype=self.dtype, block_size=8, scheduler=EagerScheduler, **options
        )

    def check(self, most: int, **options) -> None:
        lookup = {"method": "ngram", "num_speculative_tokens": most, "prompt_lookup_min": 1}
        with self.start(speculative_config=lookup, **options) as engine:
            assert answers(engine, self.prompts, self.params) == self.alone
            chunked = "max_num_batched_tokens" in options  # prompts leave proposals little room
            # How many hit depends on the drawn tokens, and so on each kind of CPU's rounding.
            check_that_proposals_were_made(engine, 10 if FULL and not chunked else 3)
            if options.get("small"):
                modes = {e.mode for e in engine.recorded(events.RequestPreempted)}
                assert modes == {options["preemption_mode"]}


@pytest.fixture(scope="module", params=VARIANTS, autouse=True)
def variant(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLASSHOUSE_CPU_VARIANT", request.param)
        engine.kernels.forget()
        yield
    engine.kernels.forget()


@pytest.fixture(scope="module")
def tiny(variant, tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    tiny_models.save(tiny_models.NATIVE["llama"](), folder)
    return Workload(folder, "float32", 24, requests(tiny_models.VOCAB, 24, 18))


@pytest.fixture(scope="module")
def pocket(variant):
    return Workload(POCKET_MODEL, "bfloat16", 120, requests(2000, 290, 30))


@pytest.mark.parametrize("most", mostly([4, 1, 11], 4))
@pytest.mark.parametrize("way", mostly(list(WAYS), *MOSTLY))
def test_in_fp32(tiny, way, most):
    tiny.check(most, **WAYS[way])


@pytest.mark.parametrize("way", mostly(list(WAYS), "overlapped", "swapped"))
def test_in_bf16(pocket, way):
    pocket.check(7, cpu_threads=2, **WAYS[way])
