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
