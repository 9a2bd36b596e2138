"""A head and embeddings that a checkpoint quantizes are served, whatever config.json ties."""

from __future__ import annotations

import pytest
import torch

from engine.config import EngineConfig
from engine.kernels import cpu
from engine.layers.quantized import QuantizedHead
from engine.models.loader import load_model
from engine.trace.events import EngineModelLoaded, EngineWarning, GraphCaptured
from engine.trace.recorder import Recorder
from engine.worker.graphs import cpu_tapes
from tests.models.quantized_files import FORMATS, gptq, save
from tests.models.test_gguf_served import answers_of
from tests.models.test_loader import rewrite
from tests.models.test_quantized_formats import PROMPTS, change_config, refused
from tests.support.engine_on_tokens import TokenEngine

VOCABULARY = 104  # AWQ has words of 8 outputs
HEAD = ("proj.weight", "lm_head.weight")
TABLE = ("proj.weight", "embed_tokens.weight")


def served(folder, **options):
    """Greedy answers, and what was warned of while loading."""
    with TokenEngine(folder, block_size=4, **options) as engine:
        answers = engine.run(PROMPTS, temperature=0.0, max_tokens=12)
        return answers, [event.message for event in engine.recorded(EngineWarning)]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "form",
    [
        "gptq",
        "gptq asymmetric, act-order",
        "gptq 8 bits v2, asymmetric",
        "awq",
        "compressed-tensors W4A16",
        "compressed-tensors W4A16 asymmetric",
        "compressed-tensors W8",
        "compressed-tensors FP8",
        "squeezellm with outliers",
        "fp8 blocks",
        "nf4",
        "bitsandbytes int8",
        "mxfp4",
    ],
)
def test_a_quantized_head_is_the_head(form, tied, tmp_path):
    """Where config.json ties it, too: the embeddings stay what they are."""
    reference = save(FORMATS[form], tmp_path, ends=HEAD, tied=tied, vocab_size=VOCABULARY)
    due = answers_of(reference, PROMPTS)
    for options in ({}, {"quantization": "none"}):  # by codes, and expanded
        found, warnings = served(tmp_path, **options)
        assert found == due
        assert any("another lm_head: it is used" in said for said in warnings) == tied


def test_the_codes_of_a_tied_head_multiply(tmp_path):
    """Expanded, it would be the same numbers and read four times the bytes."""
    save(gptq(), tmp_path, ends=HEAD, tied=True, vocab_size=VOCABULARY)
    recorder, events = Recorder("steps"), []
    recorder.subscribe(events.extend)
    config = EngineConfig(model=str(tmp_path), device="cpu")
    model = load_model(config, torch.device("cpu"), recorder=recorder)
    recorder.close()
    assert isinstance(model.lm_head, QuantizedHead)
    assert not isinstance(model.lm_head.own_runs[0].weight, torch.Tensor)
    assert model.embed_tokens.weight.dtype is torch.float32
    [loaded] = [event for event in events if isinstance(event, EngineModelLoaded)]
    tables, matrices = VOCABULARY * 64, 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 96)
    assert loaded.num_parameters == 2 * tables + matrices + 5 * 64


@pytest.mark.skipif(not cpu.available(), reason=cpu.why())
@pytest.mark.parametrize("form", ["gptq", "awq", "compressed-tensors W8"])
def test_a_decode_step_with_it_is_one_run_of_native_kernels(form, tmp_path, monkeypatch):
    """As many of them as with a plain head, and no operation of torch between them."""
    monkeypatch.setattr(cpu_tapes, "TORCH_OPERATIONS", 0)
    taped = []
    for ends in (HEAD[:1], HEAD):
        save(FORMATS[form], tmp_path, ends=ends, vocab_size=VOCABULARY)
        with TokenEngine(tmp_path, block_size=4, dtype="bfloat16") as engine:
            engine.run(PROMPTS, temperature=0.0, max_tokens=4)
            taped.append([one.num_kernels for one in engine.recorded(GraphCaptured)])
    assert taped[0] == taped[1] != []


def test_a_head_of_other_bits_than_the_layers_is_served(tmp_path):
    """As GPTQModel writes what its `dynamic` asks for."""
    reference = save(
        gptq(), tmp_path, ends=HEAD, head=gptq(8, group=16), tied=True, vocab_size=VOCABULARY
    )
    change_config(tmp_path, dynamic={"+:lm_head": {"bits": 8, "group_size": 16}})
    assert served(tmp_path)[0] == answers_of(reference, PROMPTS)


@pytest.mark.parametrize(
    "form",
    ["gptq", "awq", "compressed-tensors W4A16", "squeezellm with outliers", "fp8 blocks", "nf4"],
)
def test_quantized_embeddings_are_the_tied_head(form, tmp_path):
    reference = save(FORMATS[form], tmp_path, ends=TABLE, tied=True, vocab_size=VOCABULARY)
    rewrite(tmp_path, lambda tensors: tensors.pop("lm_head.weight"))
    reference.lm_head.weight.data.copy_(reference.model.embed_tokens.weight)
    for options in ({}, {"quantization": "none"}):
        found, warnings = served(tmp_path, **options)
        assert found == answers_of(reference, PROMPTS)
        assert not any("lm_head" in said for said in warnings)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("head", [True, False])
def test_quantized_embeddings_beside_a_head_of_its_own(head, tied, tmp_path):
    """The head quantized, or plain numbers."""
    ends = (*TABLE, "lm_head.weight") if head else TABLE
    reference = save(gptq(), tmp_path, ends=ends, tied=tied, vocab_size=VOCABULARY)
    for options in ({}, {"quantization": "none"}):
        found, warnings = served(tmp_path, **options)
        assert found == answers_of(reference, PROMPTS)
        assert any("another lm_head: it is used" in said for said in warnings) == tied


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["gptq", "awq", "squeezellm with outliers", "nf4"])
def test_a_plain_head_equal_to_quantized_embeddings_is_no_other_one(form, dtype, tmp_path):
    """Then the embeddings' codes multiply, and nobody is told of another head."""
    reference = save(FORMATS[form], tmp_path, ends=TABLE, tied=True, vocab_size=VOCABULARY)
    table = reference.model.embed_tokens.weight.data
    rewrite(tmp_path, lambda tensors: tensors.update({"lm_head.weight": table.to(dtype).clone()}))
    reference.lm_head.weight.data.copy_(table)
    found, warnings = served(tmp_path)
    assert found == answers_of(reference, PROMPTS)
    assert not any("lm_head" in said for said in warnings)
    rewrite(tmp_path, lambda tensors: tensors["lm_head.weight"][-1].add_(0.5))
    reference.lm_head.weight.data.copy_(table.to(dtype))
    reference.lm_head.weight.data[-1].add_(0.5)
    found, warnings = served(tmp_path)
    assert any("another lm_head: it is used" in said for said in warnings)


def test_a_quantized_head_equal_to_quantized_embeddings_is_no_other_one(tmp_path):
    """It is kept once."""
    reference = save(gptq(), tmp_path, ends=(*TABLE, "lm_head.weight"), tied=True, vocab_size=104)

    def copy(tensors) -> None:
        for part in ("qweight", "qzeros", "scales", "g_idx"):
            tensors[f"lm_head.{part}"] = tensors[f"model.embed_tokens.{part}"].clone()

    rewrite(tmp_path, copy)
    reference.lm_head.weight.data.copy_(reference.model.embed_tokens.weight)
    due = answers_of(reference, PROMPTS)
    for options in ({}, {"quantization": "none"}, {"quantized_activations": True}):
        found, warnings = served(tmp_path, **options)
        assert found == due or "quantized_activations" in options
        assert not any("another lm_head" in said for said in warnings)
    model = load_model(EngineConfig(model=str(tmp_path)), torch.device("cpu"))
    assert model.lm_head.tied_to is model.embed_tokens and not model.lm_head.own_runs


@pytest.mark.parametrize("quantization", [None, "none"])
@pytest.mark.parametrize("ends", [HEAD, TABLE, HEAD[:1]], ids=["head", "embeddings", "layers"])
@pytest.mark.parametrize("tied", [True, False])
def test_zeros_as_the_bias_of_a_head_are_none(tied, ends, quantization, tmp_path):
    """As quantizing tools write them; one that isn't zeros has no place, and is named."""
    reference = save(gptq(), tmp_path, ends=ends, tied=tied, vocab_size=VOCABULARY)
    bias = torch.zeros(VOCABULARY, dtype=torch.float16)
    rewrite(tmp_path, lambda tensors: tensors.update({"lm_head.bias": bias}))
    assert served(tmp_path, quantization=quantization)[0] == answers_of(reference, PROMPTS)
    rewrite(tmp_path, lambda tensors: tensors["lm_head.bias"][-1].fill_(0.5))
    refused(tmp_path, r"has no place for: lm_head\.bias", quantization=quantization)


def test_a_quantized_head_without_embeddings_is_refused_in_one_line(tmp_path):
    save(gptq(), tmp_path, ends=HEAD, tied=True, vocab_size=VOCABULARY)
    rewrite(tmp_path, lambda tensors: tensors.pop("model.embed_tokens.weight"))
    refused(tmp_path, r"lacks model\.embed_tokens\.weight")


@pytest.mark.parametrize("quantization", [None, "none"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_damaged_head_is_refused_in_one_line_that_names_it(tied, quantization, tmp_path):
    save(gptq(), tmp_path, ends=HEAD, tied=tied, vocab_size=VOCABULARY)
    rewrite(tmp_path, lambda tensors: tensors["lm_head.scales"].fill_(torch.inf))
    refused(tmp_path, "lm_head.* aren't finite", quantization=quantization)
