"""Each kernel against float64 on fresh random inputs, its outputs poisoned first."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.gpu.paged_step import finite, make_step
from engine.kernels import Kernels, torch_attention, torch_ops
from engine.layers.attention_batch import AttentionBatch, AttentionSpec, LayerCache
from engine.worker import draw as definition

ALLOWED = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 1e-2}
"""Relative error: of the greatest difference to the greatest exact value."""
STEPS = {
    "decode": [(0, 1), (100, 1), (1030, 1)],
    "long decode": [(2100, 1)],
    "mixed": [(77, 1), (0, 50), (33, 20)],
}
EXTRAS = {
    "": {},
    " window": {"sliding_window": 50},
    " cap, sinks": {"soft_cap": 10.0, "sinks": torch.tensor([1.0, -2.0, 3.0, 0.0])},
}


def checks(
    kernels: Kernels, device: torch.device, dtypes: list[torch.dtype], head_dims: list[int]
) -> Iterator[dict]:
    """One result for each kernel and kind of input: {kernel, dtype, error, allowed}."""
    for dtype in dtypes:
        for name, error in _of_dtype(kernels, device, dtype, head_dims):
            short = str(dtype).removeprefix("torch.")
            yield {"kernel": name, "dtype": short, "error": error, "allowed": ALLOWED[dtype]}
    yield {"kernel": "draw", "dtype": "float32", "error": _draw(kernels, device), "allowed": 0.0}


def _of_dtype(
    kernels: Kernels, device: torch.device, dtype: torch.dtype, head_dims: list[int]
) -> Iterator[tuple[str, float]]:
    x, residual = (torch.randn(5, 2 * 700, device=device).to(dtype) for _ in range(2))
    weight, bias = (torch.randn(2 * 700, device=device).to(dtype) for _ in range(2))
    poison(x)
    total = (x + residual).double()
    yield (
        "rms_norm",
        _error(
            kernels.rms_norm(x, weight, 1e-5), torch_ops.rms_norm(x.double(), weight.double(), 1e-5)
        ),
    )
    yield (
        "add_rms_norm",
        _error(
            kernels.add_rms_norm(x, residual, weight, 1e-5)[0],
            torch_ops.rms_norm(total, weight.double(), 1e-5),
        ),
    )
    yield (
        "add_layer_norm",
        _error(
            kernels.add_layer_norm(x, residual, weight, bias, 1e-5)[0],
            torch_ops.layer_norm(total, weight.double(), bias.double(), 1e-5),
        ),
    )
    yield "silu_and_mul", _error(kernels.silu_and_mul(x), torch_ops.silu_and_mul(x.double()))
    for head_dim in head_dims:
        for step, rows in STEPS.items():
            for extra, options in EXTRAS.items():
                error = _attention(kernels, device, dtype, head_dim, rows, options)
                yield f"qkv_attention {step}{extra} d{head_dim}", error


def _attention(
    kernels: Kernels,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    rows: list[tuple[int, int]],
    options: dict,
) -> float:
    cache, batch = make_step(rows, 2, head_dim, 16, dtype)
    cache, batch = on_device(finite(cache), batch, device)
    exact = LayerCache(cache.k.double(), cache.v.double())
    options = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    spec = AttentionSpec(4, 2, head_dim, head_dim**-0.5, **options)
    tokens = len(batch.positions)
    qkv = torch.randn(tokens, 8 * head_dim, device=device).to(dtype)
    angles = tuple(torch.rand(tokens, 1, head_dim, device=device) for _ in range(2))
    poison(qkv)
    found = kernels.qkv_attention(qkv, angles, None, cache, batch, spec)
    return _error(
        found, torch_attention.qkv_attention(qkv.double(), angles, None, exact, batch, spec)
    )


def _draw(kernels: Kernels, device: torch.device) -> float:
    """The share of tokens that differ from the CPU's."""
    if kernels.draw is None:
        raise RuntimeError("these kernels draw no tokens: Triton isn't installed")
    rows, vocab = (4, 1000) if device.type == "cpu" else (256, 32000)
    logits, words = torch.randn(rows, vocab) * 3, torch.randint(0, 2**32, (rows,))
    top_p = torch.tensor([1.0, 0.9] * (rows // 2), dtype=torch.float64)
    cuts = definition.Cuts(torch.tensor([vocab, 50] * (rows // 2)), top_p, top_p * 0.01)
    expected = definition.cut_and_draw(definition.integer_weights(logits), cuts, words)
    there = (part.to(device) for part in cuts)
    found = kernels.draw(logits.to(device), *there, words.to(device)).cpu()
    return float((found != expected).float().mean())


def poison(like: torch.Tensor) -> None:
    """Fill freed memory with NaN: what a kernel leaves unwritten in its result is then found."""
    for _ in range(4):
        like.new_full((like.numel() * 4,), float("nan"))


def on_device(
    cache: LayerCache, batch: AttentionBatch, device: torch.device
) -> tuple[LayerCache, AttentionBatch]:
    for name in ("positions", "slot_mapping", "block_tables", "query_start", "context_lens"):
        setattr(batch, name, getattr(batch, name).to(device))
    return LayerCache(cache.k.to(device), cache.v.to(device)), batch


def _error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """NaN, which is greater than nothing, becomes infinity."""
    error = float((found.double() - exact).abs().max() / exact.abs().max())
    return error if error == error else float("inf")
