"""The whole engine on Triton's kernels, in the interpreter: the same tokens as on plain torch."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, OPTConfig, Qwen3Config

import engine.kernels
from engine.kernels import Backend, Kernels
from engine.sampling_params import SamplingParams
from engine.trace.events import (
    GraphCaptured,
    GraphReplayed,
    KernelLaunched,
    RequestFinished,
    StepFinished,
)
from engine.trace.recorder import Recorder
from engine.worker.graphs.cuda_graphs import CudaGraphs, sample_memory
from engine.worker.graphs.graph_capture import GraphCapture
from engine.worker.model_runner import ModelRunner
from engine.worker.platforms.cuda import CudaPlatform
from tests.support.cases import mostly
from tests.support.engine_on_tokens import TokenEngine

# Padded rows compute on what lies in fresh memory; nobody reads them, but numpy warns.
pytestmark = [
    pytest.mark.filterwarnings("ignore:overflow encountered in:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:invalid value encountered in:RuntimeWarning"),
]

MODELS = {
    "qwen3": Qwen3Config(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=64,
    ),
    "opt": OPTConfig(
        vocab_size=97,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=64,
    ),
}
LENGTHS = (7, 1, 31, 12, 25)  # of prompts, more than there are seats
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [3], [20, 21, 22, 23, 24]]


PARAMS = [
    SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True),
    SamplingParams(temperature=1.5, max_tokens=2, ignore_eos=True, seed=7),
    SamplingParams(temperature=0.8, top_p=0.9, top_k=50, max_tokens=3, ignore_eos=True, seed=3),
]


def make_engine(folder, monkeypatch, kernels: Kernels, budget: int = 9, **more) -> TokenEngine:
    # blocks are copied by addresses, which the interpreter can't follow
    backend = Backend(lambda: replace(kernels, copy_blocks=None), asynchronous=False)
    monkeypatch.setitem(engine.kernels.BACKENDS, "cpu", backend)
    options = {"block_size": 4, "num_gpu_blocks_override": 24, "max_num_batched_tokens": budget}
    return TokenEngine(folder, max_num_seqs=4, **{**options, **more})


def cuda_graphs(
    runner: ModelRunner, recorder: Recorder, sizes: list[int] | None = None
) -> CudaGraphs:
    """Make a runner use CUDA's graphs on the CPU: all code but the device's own is the same."""
    return CudaPlatform(runner.device).graphs(runner.graph_shape(), recorder, sizes)


def answers(folder, monkeypatch, kernels: Kernels) -> tuple[list, Counter]:
    """(tokens of each prompt, launches by name and backend)"""
    with make_engine(folder, monkeypatch, kernels) as on_tokens:
        on_tokens.recorder.full = True
        tokens = on_tokens.run(PROMPTS, PARAMS)
        launched = on_tokens.recorded(KernelLaunched)
    return tokens, Counter((event.name, event.backend) for event in launched)


@pytest.mark.parametrize("name", mostly(list(MODELS), "qwen3"))
def test_the_same_tokens_as_plain_torch(name, tmp_path, monkeypatch):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(MODELS[name]).float().save_pretrained(tmp_path)
    expected, none = answers(tmp_path, monkeypatch, engine.kernels.TORCH)
    found, launched = answers(tmp_path, monkeypatch, engine.kernels.on_cuda())
    assert found == expected
    assert not none
    wanted = {"embed", "paged_attention", "rotate_and_write", "greatest_of_rows", "linear"}
    wanted |= {"draw_exponentials", "draw_weights", "draw_top_k", "draw_top_p", "draw_narrow"}
    of_model = {  # the first step has nine tokens, others have three
        "qwen3": {"angles", "rms_norm", "add_rms_norm", "silu_and_mul"}
        | {"norm_linear", "norm_gated", "linear_add"},
        "opt": {"layer_norm", "linear_relu"},
    }
    wanted |= {"draw"} | of_model[name]
    assert wanted <= {kernel for kernel, backend in launched if backend == "triton"}
    assert launched["linear", "torch"]


def test_a_step_of_one_token_has_few_kernels(tmp_path, monkeypatch):
    """A block of Llama's is four products, the cache's kernel and attention's."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(MODELS["qwen3"]).float().save_pretrained(tmp_path)
    with make_engine(tmp_path, monkeypatch, engine.kernels.on_cuda()) as on_tokens:
        on_tokens.recorder.full = True
        on_tokens.run([[3]], PARAMS[:1])
        launched = on_tokens.recorded(KernelLaunched)
    by_step: dict[int, list[str]] = {}
    for event in launched:
        by_step.setdefault(event.step, []).append(event.name)
    block = ["norm_linear", "rotate_and_write", "paged_attention"]
    block += ["linear_add", "norm_gated", "linear_add"]
    greedy = ["linear", "greatest_of_pieces", "greatest_of_rows"]
    for names in by_step.values():
        assert names[2:] == [*block, "rms_norm", *greedy]
        assert set(names[:2]) == {"angles", "embed"}


@pytest.fixture
def graphs(monkeypatch):
    """All of `cuda_graphs.py` but the capture itself, for which there is no device: a "replay" here
    runs the same function again and writes into the tensors of the first run, as a graph would.
    """

    def record(self, forward):
        outputs = forward()

        def replay():
            for old, new in zip(outputs, forward()):
                old.copy_(new)

        return replay, outputs

    monkeypatch.setattr(GraphCapture, "_record", record)


@pytest.mark.full
def test_decode_steps_are_replayed_with_padding(tmp_path, monkeypatch, graphs):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(MODELS["qwen3"]).float().save_pretrained(tmp_path)
    expected, _ = answers(tmp_path, monkeypatch, engine.kernels.TORCH)
    with make_engine(tmp_path, monkeypatch, engine.kernels.on_cuda(), budget=16) as on_tokens:
        on_tokens.recorder.full = True
        runner = on_tokens.core.executor
        with torch.inference_mode():
            make = lambda sizes: cuda_graphs(runner, Recorder("off"), sizes)  # noqa: E731
            taken, _ = sample_memory(make, 4, lambda: 0)  # of graphs for 4, 2 and 1 rows
            # hidden states, logits and the greatest's places of the two others; the only one with
            # prompts was captured
            assert taken == (2 + 1) * (4 * (32 + 97) + 8)
            runner.graphs = cuda_graphs(runner, runner.recorder)
        before = [(layer.k[-1].clone(), layer.v[-1].clone()) for layer in runner.cache.layers]
        assert on_tokens.run(PROMPTS, PARAMS) == expected
        captured = on_tokens.recorded(GraphCaptured)
        replayed = on_tokens.recorded(GraphReplayed)
    sizes = [(event.batch_size, event.num_tokens) for event in captured]
    assert sizes == [(4, 0), (2, 0), (1, 0), (4, 16)]
    assert all(event.num_kernels > 5 for event in captured)
    by_size = dict(zip(sizes, captured))
    decoded = [event for event in replayed if not event.num_tokens]
    assert {event.num_rows for event in decoded} >= {2, 3}  # three rows in a graph for four
    for event in replayed:
        assert event.captured_seq == by_size[event.batch_size, event.num_tokens].seq
    for (k, v), layer in zip(before, runner.cache.layers):  # padding wrote nothing, not even at −1
        assert torch.equal(k, layer.k[-1])
        assert torch.equal(v, layer.v[-1])


@pytest.mark.full
@pytest.mark.parametrize(("name", "ahead"), [("qwen3", True), ("opt", False)])
def test_steps_with_prompts_are_replayed(name, ahead, tmp_path, monkeypatch, graphs):
    """Long prompts in chunks, short ones beside rows that decode, tokens that the host doesn't know
    yet among them: what a step shares out differently from the captured one comes out the same."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(MODELS[name]).float().save_pretrained(tmp_path)
    prompts = [list(range(first, first + length)) for first, length in zip(range(5), LENGTHS)]
    params = [SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True)] * len(prompts)
    with make_engine(tmp_path, monkeypatch, engine.kernels.TORCH) as on_tokens:
        expected = on_tokens.run(prompts, params)
    options = {"async_scheduling": ahead, "launches_ahead": ahead}
    kernels = engine.kernels.on_cuda()
    with make_engine(tmp_path, monkeypatch, kernels, budget=20, **options) as on_tokens:
        on_tokens.recorder.full = True
        runner = on_tokens.core.executor
        with torch.inference_mode():
            runner.graphs = cuda_graphs(runner, runner.recorder)
        before = [(layer.k[-1].clone(), layer.v[-1].clone()) for layer in runner.cache.layers]
        assert on_tokens.run(prompts, params) == expected
        replayed = [e for e in on_tokens.recorded(GraphReplayed) if e.num_tokens]
        steps = {event.step: event for event in on_tokens.recorded(StepFinished)}
        launched = {event.step for event in on_tokens.recorded(KernelLaunched)}
    assert {event.num_tokens for event in replayed} == {16, 32}
    mixed = [steps[event.step] for event in replayed if steps[event.step].num_decode_tokens]
    assert mixed  # prompts beside rows that decode
    assert {e.step for e in steps.values() if e.num_tokens > e.num_decode_tokens} <= launched
    for (k, v), layer in zip(before, runner.cache.layers):  # padding wrote nothing
        assert torch.equal(k, layer.k[-1])
        assert torch.equal(v, layer.v[-1])


@pytest.mark.full
def test_long_whole_prompts_are_not_replayed(tmp_path, monkeypatch, graphs):
    """torch's SDPA is faster with them, and must know their lengths."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(MODELS["qwen3"]).float().save_pretrained(tmp_path)
    with make_engine(tmp_path, monkeypatch, engine.kernels.TORCH) as on_tokens:
        expected = on_tokens.run([PROMPTS[0]], PARAMS[:1])
    monkeypatch.setattr("engine.kernels.triton.paged_attention.SDPA_FROM", 7)
    with make_engine(tmp_path, monkeypatch, engine.kernels.on_cuda(), budget=16) as on_tokens:
        on_tokens.recorder.full = True
        runner = on_tokens.core.executor
        with torch.inference_mode():
            runner.graphs = cuda_graphs(runner, Recorder("off"))
        assert on_tokens.run([PROMPTS[0]], PARAMS[:1]) == expected
        assert not [e for e in on_tokens.recorded(GraphReplayed) if e.num_tokens]
        attention = [e for e in on_tokens.recorded(KernelLaunched) if e.name == "paged_attention"]
    assert [event.backend for event in attention] == ["torch"]
    assert "SDPA" in attention[0].why


def test_greedy_tokens_come_with_the_replay(tmp_path, monkeypatch, graphs):
    """Nothing is launched after it: the graph has the places of the greatest logits."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(MODELS["qwen3"]).float().save_pretrained(tmp_path)
    greedy = [PARAMS[0]] * 3
    with make_engine(tmp_path, monkeypatch, engine.kernels.TORCH) as on_tokens:
        expected = on_tokens.run(PROMPTS, greedy)
    kernels, sampled = engine.kernels.on_cuda(), []

    def greatest(logits):
        sampled.append(len(logits))
        return kernels.greatest(logits)

    with make_engine(tmp_path, monkeypatch, kernels, budget=16) as on_tokens:
        counting = replace(kernels, greatest=greatest)
        monkeypatch.setattr("engine.worker.sampling.sampler.kernels_for", lambda device: counting)
        runner = on_tokens.core.executor
        with torch.inference_mode():
            runner.graphs = cuda_graphs(runner, Recorder("off"))
        assert on_tokens.run(PROMPTS, greedy) == expected
    assert sampled == [3]  # by the step of the prompts; the two that followed were replayed


@pytest.mark.full
@pytest.mark.parametrize("ahead", [False, True])
def test_a_request_without_finite_logits_ends_alone(tmp_path, monkeypatch, graphs, ahead):
    """Overlapped and replayed, as on CUDA: the second one's first token has an embedding of NaN."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MODELS["qwen3"]).float()
    model.save_pretrained(tmp_path / "sane")
    expected, _ = answers(tmp_path / "sane", monkeypatch, engine.kernels.TORCH)
    drawn = [[token] for [[token, *_]] in expected]
    assert drawn[1] not in (drawn[0], drawn[2])
    with torch.no_grad():
        model.get_input_embeddings().weight[drawn[1]] = float("nan")
    model.save_pretrained(tmp_path)
    kernels, options = (
        engine.kernels.on_cuda(),
        {"budget": 16, "async_scheduling": True, "launches_ahead": ahead},
    )
    with make_engine(tmp_path, monkeypatch, kernels, **options) as on_tokens:
        on_tokens.recorder.full = True
        runner = on_tokens.core.executor
        with torch.inference_mode():
            runner.graphs = cuda_graphs(runner, runner.recorder)
        assert on_tokens.run(PROMPTS, PARAMS) == [expected[0], [drawn[1]], expected[2]]
        assert on_tokens.recorded(GraphReplayed)
        [failed] = [e for e in on_tokens.recorded(RequestFinished) if e.reason == "error"]
    assert failed.request_id == "r1" and "position 2" in failed.why
