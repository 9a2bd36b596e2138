"""Keys and values in 8 bits: what is stored, what attention makes of it, where it is refused."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer

from benchmarks.gpu.paged_step import finite, make_step
from engine.config import POCKET_MODEL, ConfigError
from engine.kernels import TORCH, kernels_for
from engine.kernels.batch import AttentionSpec, LayerCache
from engine.kernels.fp8_cache import LARGEST, stored_as
from engine.trace.events import EngineKvSized
from engine.worker.memory import kv_dtype
from engine.worker.memory.kv_dtype import chosen_kv_dtype
from tests.support.engine_on_tokens import TokenEngine

FORMATS = {"fp8": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("dtype", LARGEST)
def test_rounded_to_the_nearest_and_never_infinite(dtype):
    every = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    every = every[every.isfinite()].unique()  # sorted
    x = torch.cat((torch.randn(500) * 10, torch.randn(200) * 1e-3, torch.tensor([1e9, -1e9])))
    nearest = every[(x[:, None] - every).abs().argmin(1)]
    found = stored_as(x, dtype).float()
    assert torch.equal((found - x).abs(), (nearest - x).abs())  # of two as near, either
    assert float(found.max()) == LARGEST[dtype] == float(every.max())
    assert stored_as(torch.tensor([float("nan")]), dtype).float().isnan().all()  # not hidden


@pytest.mark.parametrize("dtype", LARGEST)
@pytest.mark.parametrize("model", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernels", [TORCH, kernels_for(CPU)], ids=["torch", "native"])
def test_attention_computes_on_what_was_stored(dtype, model, kernels):
    """The same as on a cache of the model's dtype that holds the rounded numbers."""
    torch.manual_seed(0)
    cache, batch = make_step([(30, 1), (3, 1), (9, 12)], 2, 16, 4, torch.float32)
    stored = LayerCache(*(stored_as(x, dtype) for x in vars(finite(cache)).values()))
    plain = LayerCache(stored.k.to(model), stored.v.to(model))
    spec = AttentionSpec(4, 2, 16, 0.25)
    qkv = torch.randn(14, 8 * 16).to(model)
    new_k, new_v = (stored_as(x, dtype) for x in qkv.view(14, 8, 16).split((4, 2, 2), 1)[1:])
    rounded = qkv.clone()
    rounded.view(14, 8, 16)[:, 4:6], rounded.view(14, 8, 16)[:, 6:] = (
        new_k.to(model),
        new_v.to(model),
    )
    expected = TORCH.qkv_attention(rounded, None, None, plain, batch, spec)
    found = kernels.qkv_attention(qkv, None, None, stored, batch, spec)
    assert found.dtype == model
    assert torch.equal(found, expected)
    assert torch.equal(stored.k.to(model), plain.k)
    q, k, v = qkv.view(14, 8, 16).split((4, 2, 2), 1)
    kernels.write_kv(k, v, stored, batch.slot_mapping)
    assert torch.equal(kernels.paged_attention(q, stored, batch, spec).flatten(1), expected)


TEXT = (
    "A block holds the keys and values of 16 tokens. A sequence has a table of blocks, and a block"
    " that nobody uses can be taken by anybody."
)


def logprobs(**options) -> tuple[torch.Tensor, EngineKvSized]:
    """Of TEXT's tokens, by the pocket model in an engine with these options."""
    prompt = Tokenizer.from_file(f"{POCKET_MODEL}/tokenizer.json").encode(TEXT).ids
    with TokenEngine(POCKET_MODEL, num_gpu_blocks_override=8, **options) as on_tokens:
        on_tokens.run([prompt], prompt_logprobs=0, max_tokens=2, temperature=0.0)
        [sized] = on_tokens.recorded(EngineKvSized)
        found = [
            entry for output in on_tokens.outputs["r0"] for entry in output.prompt_logprobs or ()
        ]
    return torch.tensor([entry.logprob for entry in found if entry is not None]), sized


@pytest.mark.parametrize(("name", "allowed"), [("fp8", 0.25), ("fp8_e5m2", 0.5)])
def test_an_engine_is_near_the_one_without(name, allowed):
    """A bit less behind the point is twice the error. Pages that are not read as they were written
    give errors of several nats."""
    plain, before = logprobs()
    found, after = logprobs(kv_cache_dtype=name)
    assert len(found) == len(plain) > 20
    error = (found - plain).abs()
    assert 0 < float(error.mean()) < allowed
    assert before.kv_dtype == "float32"
    assert f"torch.{after.kv_dtype}" == str(FORMATS[name])
    assert before.bytes_per_block == 4 * after.bytes_per_block


@pytest.mark.parametrize("name", ["auto", *FORMATS])
def test_chosen_on_a_cpu(name):
    assert chosen_kv_dtype(name, CPU) == FORMATS.get(name)


@pytest.mark.parametrize(
    ("capability", "name", "refused"),
    [((8, 6), "fp8", True), ((8, 6), "fp8_e5m2", False), ((8, 9), "fp8", False)],
)
def test_a_gpu_that_cannot_convert_it_is_refused(capability, name, refused, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    if not refused:
        assert chosen_kv_dtype(name, CUDA) == FORMATS[name]
        return
    with pytest.raises(ConfigError, match=r"fp8 needs .* 8\.9 .* a card has 8\.6: use fp8_e5m2"):
        chosen_kv_dtype(name, CUDA)
    monkeypatch.setattr(kv_dtype, "kernels_for", lambda device: TORCH)  # casts in software
    assert chosen_kv_dtype(name, CUDA) == FORMATS[name]
