"""A model divided among two ranks as on two GPUs: all of it but NCCL, capture and the cards."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.kernels.ranks import RankLost
from engine.sampling_params import SamplingParams
from engine.trace.events import (
    EngineDivided,
    EngineKvSized,
    EngineWarning,
    GraphReplayed,
    KernelLaunched,
)
from engine.worker.parallel import rank_processes
from engine.worker.platforms import PLATFORMS
from tests.kernels.triton.dry_rank import MEMORY, DryCuda, stand_in
from tests.kernels.triton.interpreted_engine import MODELS
from tests.support.engine_on_tokens import TokenEngine

# Padded rows compute on what lies in fresh memory; nobody reads them, but numpy warns.
pytestmark = [
    pytest.mark.filterwarnings("ignore:overflow encountered in:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:invalid value encountered in:RuntimeWarning"),
]
LENGTHS = (3, 10)  # of prompts; a step has 8 tokens
TOKENS = 3


@pytest.fixture
def as_on_cuda(monkeypatch):
    command_of = rank_processes.command_of
    monkeypatch.setattr(
        rank_processes,
        "command_of",
        lambda module, *arguments: command_of("tests.kernels.triton.dry_rank", *arguments),
    )
    monkeypatch.setitem(PLATFORMS, "cpu", DryCuda)
    stand_in(monkeypatch.setattr, 32 * MEMORY)


@pytest.mark.full
@pytest.mark.timeout(300)
def test_two_ranks_give_transformers_tokens(tmp_path, as_on_cuda):
    """Prompts in chunks and beside rows that decode, replayed and not, each step launched before
    the tokens of the one before are known; then a rank dies."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MODELS["qwen3"]).float()
    model.save_pretrained(tmp_path)
    prompts = [list(range(first, first + length)) for first, length in zip(range(5), LENGTHS)]
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, min_new_tokens=TOKENS,
            do_sample=False, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        expected.append([made[0, len(prompt) :].tolist()])
    params = [
        SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True, prompt_logprobs=wanted)
        for wanted in (None, 1)
    ]
    options = {
        "block_size": 4,
        "max_num_seqs": 2,
        "max_num_batched_tokens": 8,
        "max_model_len": 16,
    }
    with TokenEngine(
        tmp_path, launches_ahead=True, level="full", tensor_parallel_size=2, **options
    ) as on_tokens:
        runner = on_tokens.core.executor
        try:
            assert on_tokens.run(prompts, params) == expected
            [divided] = on_tokens.recorded(EngineDivided)
            [sized] = on_tokens.recorded(EngineKvSized)
            replayed = on_tokens.recorded(GraphReplayed)
            joined = {(e.name, e.backend) for e in on_tokens.recorded(KernelLaunched)}
            warned = [event.message for event in on_tokens.recorded(EngineWarning)]
            assert [len(divided.ranks), divided.num_heads, divided.num_kv_heads] == [2, 2, 1]
            assert "rank 1 of 2 has the least" in sized.why and "on each of 2 devices" in sized.why
            assert 4 <= sized.num_blocks < 8  # for two sequences of 16 tokens
            assert {bool(event.num_tokens) for event in replayed} == {True, False}
            assert {(f"{what}_of_ranks", "gloo") for what in ("sum", "gather")} <= joined
            assert any("never run on several GPUs" in message for message in warned)

            os.kill(divided.ranks[1].pid, signal.SIGKILL)
            with pytest.raises(RankLost, match=r"rank 1 of 2, .* was killed by SIGKILL"):
                on_tokens.run(prompts[:1], params[:1])
        finally:
            runner.close()
