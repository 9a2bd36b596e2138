"""A model divided among two processes gives the tokens that one gives, however they come about."""

from __future__ import annotations

import os
import signal
import time
from contextlib import contextmanager
from itertools import count

import pytest

from engine.config import ConfigError, EngineConfig
from engine.kernels.ranks import RankLost
from engine.models.errors import ModelError
from engine.trace import events
from engine.trace.recorder import Recorder
from engine.worker.model_runner import ModelRunner
from tests.models import tiny_models
from tests.parity.test_parity import PROMPTS as ALL_PROMPTS
from tests.support.cases import mostly
from tests.support.engine_on_tokens import TokenEngine

PROMPTS = ALL_PROMPTS[:10]
MAX_TOKENS = 12
SMALL = {"block_size": 4, "num_gpu_blocks_override": 30}  # for two or three of the longest
SCENARIOS = {
    # prompts in pieces, blocks that go to the host and come back, hits in the prefix cache
    "chunks, swap": {**SMALL, "preemption_mode": "swap", "max_num_batched_tokens": 24},
    "recompute, proposals": {
        **SMALL,
        "preemption_mode": "recompute",
        "enable_prefix_caching": False,
        "speculative_config": {"method": "ngram", "prompt_lookup_min": 1},
    },
    "kernels one by one, 8-bit pages": {**SMALL, "level": "full", "kv_cache_dtype": "fp8"},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """(folder, transformers' answers)"""
    folder = tmp_path_factory.mktemp("llama")
    reference = tiny_models.save(tiny_models.NATIVE["llama"](), folder)
    return folder, [[ids] for ids in tiny_models.greedy(reference, PROMPTS, MAX_TOKENS)]


@contextmanager
def engine_of(folder, size: int, **options):
    with TokenEngine(folder, tensor_parallel_size=size, **options) as engine:
        try:
            yield engine
        finally:
            engine.core.executor.close()


def answers(engine: TokenEngine) -> list:
    """Greedy ones, twice, so that prompts are found in the cache; seeded ones with all extras."""
    greedy = [engine.run(PROMPTS, temperature=0.0, max_tokens=MAX_TOKENS) for _ in range(2)]
    assert greedy[0] == greedy[1]
    seeded = engine.run(
        PROMPTS[3:7], temperature=0.9, seed=7, n=2, max_tokens=MAX_TOKENS, prompt_logprobs=1
    )
    logprobs = [
        entry.top_ids
        for outputs in engine.outputs.values()
        for output in outputs
        for entry in output.prompt_logprobs or ()
        if entry is not None
    ]
    assert logprobs
    return [greedy[0], seeded, logprobs]


@pytest.mark.parametrize("scenario", mostly(list(SCENARIOS), "chunks, swap"))
def test_two_processes_give_the_tokens_of_one(model, scenario):
    folder, expected = model
    options = SCENARIOS[scenario]
    with engine_of(folder, 1, **options) as engine:
        whole = answers(engine)
    with engine_of(folder, 2, **options) as engine:
        assert answers(engine) == whole
        if "kv_cache_dtype" not in options:
            assert whole[0] == expected
        shares = engine.recorded(events.EngineDivided)[0]
        assert [len(shares.ranks), shares.num_heads, shares.num_kv_heads] == [2, 2, 1]
        assert shares.ranks[0].pid == os.getpid() != shares.ranks[1].pid
        steps = engine.recorded(events.StepFinished)
        assert all(0 < step.joined_us <= step.forward_us + 0.1 for step in steps)
        # what was to happen, did
        if "preemption_mode" in options:
            modes = {event.mode for event in engine.recorded(events.RequestPreempted)}
            assert modes == {options["preemption_mode"]}
        if "speculative_config" in options:
            assert engine.recorded(events.SpecVerified)
        if scenario == "chunks, swap":
            cached = [event.num_cached_tokens for event in engine.recorded(events.RequestAdmitted)]
            assert any(cached) and engine.recorded(events.GraphCaptured)
            kill_rank_1(engine)


def kill_rank_1(engine: TokenEngine) -> None:
    """It must be told within a second, to who waits for an order and to who computes."""
    told = []
    engine.core.executor.others.watch(lambda: told.append(time.monotonic()))
    pid = engine.recorded(events.EngineDivided)[0].ranks[1].pid
    killed = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(RankLost, match=r"rank 1 of 2, .* was killed by SIGKILL"):
        engine.run(PROMPTS, temperature=0.0, max_tokens=MAX_TOKENS)
    assert time.monotonic() - killed < 20  # a second, where no other program wants the cores
    assert told and told[0] - killed < 20


@pytest.mark.parametrize(
    "size, error, words",
    [(9, ConfigError, "is 9; at most 8"), (3, ModelError, "is 3, by which the 4 query heads")],
)
def test_what_cannot_be_divided_is_refused_before_a_process_is_started(model, size, error, words):
    with pytest.raises(error, match=words):
        config = EngineConfig(model=str(model[0]), tensor_parallel_size=size, device="cpu")
        ModelRunner(config, Recorder("off")).load()


def test_after_a_step_that_was_broken_off_no_token_comes(model):
    """As by Ctrl-C: rank 1 has computed another layer than rank 0."""
    with engine_of(model[0], 2, enforce_eager=True, **SMALL) as engine:
        others = engine.core.executor.others
        add, times = others.ranks.sum, count(1)

        def interrupted(*arguments):
            if next(times) == 4:  # after the embedding's and two of layer 0
                raise KeyboardInterrupt
            return add(*arguments)

        others.ranks.sum = interrupted
        with pytest.raises(KeyboardInterrupt):
            engine.run(PROMPTS[:1], temperature=0.0, max_tokens=2)
        assert next(times) == 5
        engine.core.abort("r0", "interrupted")
        with pytest.raises(RankLost, match="broken off by KeyboardInterrupt"):
            engine.run(PROMPTS[1:2], temperature=0.0, max_tokens=2)
        assert not any(engine.outputs.values())
        assert others._processes._processes[0].poll() is not None
