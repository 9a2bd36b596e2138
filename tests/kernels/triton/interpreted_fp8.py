"""The kernels on a cache of 8-bit floats, in Triton's interpreter, against plain torch.

Triton 3.7's interpreter rounds wrongly to 8-bit floats (a carry out of the fraction is lost: 500
becomes 256) and makes numbers of NaN. So torch's cast stands in for that one step here; the
compiler's own is compared with torch's on a GPU, by `make gpu`. Reading is the interpreter's.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton.language as tl
import triton.runtime.interpreter as interpreter
from transformers import AutoModelForCausalLM

from benchmarks.gpu.paged_step import finite, make_step
from engine.kernels import TORCH, on_cuda, torch_attention, torch_ops
from engine.kernels.batch import AttentionSpec, LayerCache
from engine.kernels.fp8_cache import LARGEST, stored_as
from engine.kernels.triton import rotary
from engine.kernels.triton.paged_attention import paged_attention
from engine.sampling_params import SamplingParams
from engine.trace.events import KernelLaunched
from tests.kernels.triton.interpreted_engine import MODELS, make_engine
from tests.support.cases import pairs

FP8 = {tl.float8e4nv: torch.float8_e4m3fn, tl.float8e5: torch.float8_e5m2}
NEAR = {torch.float32: {"rtol": 0, "atol": 2e-6}, torch.float16: {"rtol": 0, "atol": 4e-3}}


@pytest.fixture(autouse=True)
def torchs_cast(monkeypatch):
    theirs = interpreter._convert_float

    def convert(data, source, target, rounding):
        if target not in FP8:
            return theirs(data, source, target, rounding)
        assert source == tl.float32  # the kernels turn all else to fp32 before
        x = torch.from_numpy(np.frombuffer(data.tobytes(), np.float32).copy())
        return x.to(FP8[target]).view(torch.uint8).numpy().reshape(data.shape)

    monkeypatch.setattr(interpreter, "_convert_float", convert)


def make_cache(rows, kv_heads, head_dim, dtype):
    cache, batch = make_step(rows, kv_heads, head_dim, 4, torch.float32)
    cache = finite(cache)
    return LayerCache(stored_as(cache.k, dtype), stored_as(cache.v, dtype)), batch


@pytest.mark.parametrize(("dtype", "computed"), pairs(list(LARGEST), list(NEAR), every=2))
def test_attention_reads_what_is_stored(dtype, computed):
    torch.manual_seed(0)
    for rows in ([(100, 1), (0, 1), (30, 25)], [(1100, 1)]):  # the second one in segments
        cache, batch = make_cache(rows, 2, 64, dtype)
        spec = AttentionSpec(6, 2, 64, 0.125)
        q = torch.randn(len(batch.positions), 6, 64).to(computed)
        exact = LayerCache(cache.k.double(), cache.v.double())
        expected = torch_attention.paged_attention(q.double(), exact, batch, spec)
        found = paged_attention(q, cache, batch, spec)
        assert found.dtype == computed
        torch.testing.assert_close(found.double(), expected, **NEAR[computed])


@pytest.mark.parametrize("dtype", LARGEST)
def test_every_number_is_read_right(dtype):
    """One token that sees itself alone: its value is the result."""
    codes = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    codes = codes[codes.isfinite()]
    for values in codes.split(64):
        values = torch.nn.functional.pad(values, (0, 64 - len(values)))
        cache, batch = make_cache([(0, 1)], 1, 64, dtype)
        cache.v.view(-1, 64)[batch.slot_mapping[0]] = values.to(dtype)
        found = paged_attention(torch.zeros(1, 1, 64), cache, batch, AttentionSpec(1, 1, 64, 1.0))
        assert torch.equal(found.flatten(), values)


@pytest.mark.parametrize(("dtype", "computed"), pairs(list(LARGEST), list(NEAR), every=2))
def test_what_is_written_is_torchs(dtype, computed):
    """Numbers that are too large become the largest."""
    torch.manual_seed(0)
    cache, batch = make_cache([(9, 1), (4, 7)], 2, 16, dtype)
    other = LayerCache(cache.k.clone(), cache.v.clone())
    qkv = (torch.randn(8, 8 * 16) * 40).to(computed)
    qkv[:, 16 * 4 : 16 * 4 + 3] = torch.tensor([6e4, -6e4, 300.0])
    angles = tuple(torch.rand(8, 1, 16) for _ in range(2))
    spec = AttentionSpec(4, 2, 16, 1e-3)
    torch_attention.qkv_attention(qkv, angles, None, other, batch, spec)
    found = rotary.qkv_attention(qkv, angles, None, cache, batch, spec)
    assert found.dtype == computed
    steps = cache.k.view(torch.uint8).int() - other.k.view(torch.uint8).int()
    assert steps.abs().max() <= 1 and (steps != 0).float().mean() < 0.01  # a product's last bit
    assert torch.equal(cache.v.view(torch.uint8), other.v.view(torch.uint8))
    q, k, v = qkv.view(8, 8, 16).split((4, 2, 2), 1)
    turned = torch_ops.rotate(q, *angles).to(computed)
    expected = torch_attention.paged_attention(turned, cache, batch, spec).flatten(1)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=0.1)  # values of up to 448
    for write, pages in ((rotary.write_kv, cache), (torch_attention.write_kv, other)):
        write(k, v, pages, batch.slot_mapping)
    assert torch.equal(cache.k.view(torch.uint8), other.k.view(torch.uint8))
    assert float(cache.k.float().max()) == LARGEST[dtype]


@pytest.mark.full
@pytest.mark.parametrize("name", ["fp8", "fp8_e5m2"])
def test_the_same_tokens_as_plain_torch(name, tmp_path, monkeypatch):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(MODELS["qwen3"]).float().save_pretrained(tmp_path)
    params = [SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)] * 2
    tokens, launched = [], []
    for kernels in (TORCH, on_cuda()):
        with make_engine(tmp_path, monkeypatch, kernels, kv_cache_dtype=name) as on_tokens:
            on_tokens.recorder.full = True
            tokens.append(on_tokens.run([[5, 6, 7, 8, 9, 10, 11], [3, 4]], params))
            launched = [event.name for event in on_tokens.recorded(KernelLaunched)]
    assert tokens[0] == tokens[1]
    assert {"paged_attention", "rotate_and_write"} <= set(launched)
