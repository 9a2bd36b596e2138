"""LLM from end to end: a small random model, the real worker, against transformers."""

from __future__ import annotations

import asyncio
import shutil

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from engine import LLM, AsyncLLM, SamplingParams
from engine.trace.events import (
    KernelLaunched,
    RequestPreempted,
    SampleDrawn,
    StepFinished,
    TextTokens,
)
from engine.trace.replay import Replay
from engine.worker.sampling.sample_step import SampleStep
from tests.text.tiny_tokenizers import byte_level_hf

PROMPTS = ["hello the engine", "Привет, мир!", "x", "tokens tokens 😀 tokens café 你好"]
NUM_TOKENS = 24


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """(folder, model, tokenizer)"""
    folder = tmp_path_factory.mktemp("tiny-llama")
    hf = byte_level_hf()
    torch.manual_seed(11)
    config = LlamaConfig(
        vocab_size=len(hf),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        eos_token_id=2,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    hf.save_pretrained(folder)
    return folder, model, hf


@pytest.fixture(scope="module", params=["plain", "overlapped", "small"])
def llm(reference, request):
    """Both loops, and a cache so small that requests are preempted."""
    options = {"dtype": "float32", "device": "cpu", "block_size": 8, "cpu_threads": 1}
    options["async_scheduling"] = request.param == "overlapped"
    options["num_gpu_blocks_override"] = 14 if request.param == "small" else 64
    with LLM(str(reference[0]), **options) as llm:
        yield llm
        preempted = any(isinstance(event, RequestPreempted) for event in llm.record())
        assert preempted == (request.param == "small")


def test_greedy_text_is_that_of_transformers(llm, reference):
    _, model, hf = reference
    params = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS)
    for output in llm.generate(PROMPTS, params, use_tqdm=False):
        ids = hf(output.prompt, return_tensors="pt")["input_ids"]
        assert output.prompt_token_ids == ids[0].tolist()
        whole = model.generate(ids, do_sample=False, max_new_tokens=NUM_TOKENS)[0].tolist()
        (answer,) = output.outputs
        assert output.prompt_token_ids + answer.token_ids == whole
        ended = whole[-1] == 2
        assert answer.finish_reason == ("stop" if ended else "length")
        assert answer.text == hf.decode(answer.token_ids, skip_special_tokens=True)


@pytest.mark.parametrize("overlapped", [False, True])
def test_on_a_thread_it_is_the_same_text(reference, llm, overlapped):
    params = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS)
    expected = llm.generate(PROMPTS, params, use_tqdm=False)
    options = {"dtype": "float32", "device": "cpu", "cpu_threads": 1, "num_gpu_blocks_override": 64}

    async def last(outputs):
        async for output in outputs:
            found = output
        return found

    async def run():
        async with AsyncLLM(
            str(reference[0]), block_size=8, async_scheduling=overlapped, **options
        ) as on_a_thread:
            outputs = [on_a_thread.generate(prompt, params) for prompt in PROMPTS]
            return await asyncio.gather(*map(last, outputs))

    for found, one in zip(asyncio.run(run()), expected):
        assert [answer.token_ids for answer in found.outputs] == [one.outputs[0].token_ids]
        assert found.outputs[0].text == one.outputs[0].text


def test_an_end_of_sequence_that_the_model_does_not_have(reference, tmp_path):
    """Files may disagree about the end of sequence: with min_tokens, such a token crashed the
    engine."""
    folder = shutil.copytree(reference[0], tmp_path / "model")
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 1000000, -1]}')
    options = {"dtype": "float32", "device": "cpu", "cpu_threads": 1, "num_gpu_blocks_override": 64}
    with LLM(str(folder), **options) as llm:
        params = SamplingParams(temperature=0.0, max_tokens=6, min_tokens=6)
        (output,) = llm.generate(PROMPTS[0], params, use_tqdm=False)
        assert len(output.outputs[0].token_ids) == 6


def test_a_stop_string_cuts_the_same_text(llm):
    params = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS)
    whole = llm.generate(PROMPTS[0], params, use_tqdm=False)[0].outputs[0].text
    stop = whole[len(whole) // 2 :][:3]
    params = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, stop=[stop])
    (answer,) = llm.generate(PROMPTS[0], params, use_tqdm=False)[0].outputs
    assert answer.text == whole[: whole.index(stop)]
    assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)


def test_log_probabilities_are_those_of_transformers(llm, reference):
    _, model, _ = reference
    params = SamplingParams(temperature=0.0, max_tokens=4, logprobs=3, prompt_logprobs=0)
    (output,) = llm.generate(PROMPTS[3], params, use_tqdm=False)
    (answer,) = output.outputs
    ids = output.prompt_token_ids + answer.token_ids
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    assert output.prompt_logprobs[0] is None
    positions = output.prompt_logprobs[1:] + answer.logprobs
    assert len(positions) == len(ids) - 1
    for place, position in enumerate(positions):
        assert ids[place + 1] in position
        for token_id, entry in position.items():
            assert entry.logprob == pytest.approx(expected[place, token_id].item(), abs=1e-4)
    total = sum(expected[len(output.prompt_token_ids) - 1 + k, t].item()
                for k, t in enumerate(answer.token_ids))  # fmt: skip
    assert answer.cumulative_logprob == pytest.approx(total, abs=1e-4)


def test_a_seed_gives_the_same_answers_again(llm):
    params = SamplingParams(n=3, seed=5, max_tokens=8, temperature=1.0)
    first, second = (
        [answer.token_ids for answer in llm.generate(PROMPTS[0], params, use_tqdm=False)[0].outputs]
        for _ in range(2)
    )
    assert first == second
    assert len({tuple(ids) for ids in first}) == 3
    assert llm.core.stats().blocks_used == 0


def test_a_sample_step_of_ones_own_draws(reference):
    class Last(SampleStep):
        def run(self, inputs, drawing, logits, details, greatest=None):
            logits[:, -1] = 1e4
            return super().run(inputs, drawing, logits, details)

    answers = []
    for options in ({}, {"sample_step": Last}):
        options |= {"device": "cpu", "num_gpu_blocks_override": 32, "cpu_threads": 1}
        with LLM(str(reference[0]), **options) as llm:
            (output,) = llm.generate(PROMPTS[0], SamplingParams(max_tokens=4), use_tqdm=False)
        answers.append(output.outputs[0].token_ids)
    last = len(reference[2]) - 1
    assert answers[0] != answers[1] == [last] * 4


def test_a_profile_times_each_kernel_and_the_record_reads_as_text(reference):
    """In this process core and texts share one numbering: the texts must leave no gap in it."""
    options = {"dtype": "float32", "device": "cpu", "num_gpu_blocks_override": 32}
    with LLM(str(reference[0]), trace="profile", cpu_threads=1, **options) as llm:
        params = SamplingParams(temperature=0.0, max_tokens=4)
        (output,) = llm.generate(PROMPTS[0], params, use_tqdm=False)
        record = llm.record()
    for event in record:
        if isinstance(event, StepFinished):  # the worker told when it was done
            parts = event.schedule_us + event.prepare_us + event.forward_us + event.sample_us
            assert 0 < event.ready_us <= event.total_us - parts - event.update_us + 1
    launched = [e for e in record if isinstance(e, KernelLaunched) and e.step]
    assert {e.step for e in launched} >= {1, 2, 3, 4}
    assert all(e.duration_us > 0 and e.share_of_limit > 0 for e in launched if e.num_bytes)
    texts: dict[int, str] = {}
    drawn = []
    for event in record:
        if isinstance(event, TextTokens):
            texts |= event.texts
        elif isinstance(event, SampleDrawn):
            assert {c.token_id for c in event.candidates} <= texts.keys()
            drawn.append(event.token_id)
    assert drawn == output.outputs[0].token_ids and set(drawn) <= texts.keys()
    assert set(output.prompt_token_ids) <= texts.keys()
    replay = Replay.of(record)
    replay.check()
    assert not replay.state.lost


def test_an_answer_without_finite_logits_says_so_and_others_are_whole(reference, tmp_path):
    _, model, hf = reference
    [letter] = hf.encode("ж", add_special_tokens=False)[-1:]
    weight = model.get_input_embeddings().weight
    before = weight[letter].clone()
    params = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    try:
        with torch.no_grad():
            weight[letter] = float("nan")
        model.save_pretrained(tmp_path)
    finally:
        with torch.no_grad():
            weight[letter] = before
    hf.save_pretrained(tmp_path)
    with (
        LLM(str(tmp_path), dtype="float32", num_gpu_blocks_override=64) as llm,
        pytest.warns(UserWarning, match="no finite logits for position"),
    ):
        sick, healthy = llm.generate(["жж", "hello"], params, use_tqdm=False)
    assert sick.outputs[0].finish_reason == "error" and sick.outputs[0].token_ids == []
    assert "no finite logits for position" in sick.error
    assert healthy.outputs[0].finish_reason == "length" and len(healthy.outputs[0].token_ids) == 6
    assert healthy.error == ""


def test_log_probabilities_of_named_tokens(llm, reference):
    _, model, _ = reference
    named = [11, 5, 300]
    params = SamplingParams(temperature=0.0, max_tokens=3, logprob_token_ids=named)
    (output,) = llm.generate(PROMPTS[3], params, use_tqdm=False)
    (answer,) = output.outputs
    ids = output.prompt_token_ids + answer.token_ids
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    for place, position in enumerate(answer.logprobs, start=len(output.prompt_token_ids) - 1):
        drawn = ids[place + 1]
        assert list(position) == [drawn, *(i for i in named if i != drawn)]
        assert position[drawn].rank == 1
        for token_id, entry in position.items():
            assert entry.logprob == pytest.approx(expected[place, token_id].item(), abs=1e-4)
            assert token_id == drawn or entry.rank is None
