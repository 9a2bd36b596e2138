"""Every model kind gives transformers' logits, however the text is cut, mixed and paged."""

from __future__ import annotations

import pytest
import torch

from engine.config import EngineConfig
from engine.models.loader import load_model
from tests.models.paged_harness import PagedModel, Sequence, compare_with_transformers
from tests.models.tiny_models import ADAPTED, NATIVE, VOCAB, save

CPU = torch.device("cpu")


def load(folder, **options):
    return load_model(EngineConfig(model=str(folder), **options), CPU)


@pytest.mark.parametrize("kind", NATIVE)
def test_native_model_equals_transformers(kind, backend, tmp_path):
    reference = save(NATIVE[kind](), tmp_path)
    model = load(tmp_path)
    assert model.implementation == "native"
    compare_with_transformers(PagedModel(model), reference, VOCAB)


@pytest.mark.parametrize("kind", ADAPTED)
def test_adapted_model_equals_transformers(kind, backend, tmp_path):
    reference = save(ADAPTED[kind](), tmp_path)
    model = load(tmp_path)
    assert model.implementation == "transformers adapter"
    compare_with_transformers(PagedModel(model), reference, VOCAB)


@pytest.mark.parametrize("kind", ["llama", "mistral", "opt", "gemma2"])
@pytest.mark.parametrize("cache_dtype", [torch.bfloat16, torch.float32])
def test_bf16_stays_near_fp32(kind, cache_dtype, backend, tmp_path):
    reference = save({**NATIVE, **ADAPTED}[kind](), tmp_path)
    model = load(tmp_path, dtype="bfloat16")
    text = torch.randint(3, VOCAB, (29,), generator=torch.Generator().manual_seed(1)).tolist()
    paged = PagedModel(model, cache_dtype=cache_dtype)
    found = paged.run(Sequence(text), [7, 1, 13, 1, 1, 6])
    with torch.inference_mode():
        expected = reference(torch.tensor([text])).logits[0]
    assert float((found - expected).abs().mean() / expected.std()) < 0.05


WINDOWS = {"mistral": [8, 8], "qwen2-windows": [None, 8], "gemma3": [8, None, 8]}


@pytest.mark.parametrize("kind", WINDOWS)
def test_each_layer_reports_its_window(kind, tmp_path):
    save({**NATIVE, **ADAPTED}[kind](), tmp_path)
    assert [kv.sliding_window for kv in load(tmp_path).kv_spec] == WINDOWS[kind]
