"""Attention alone: decoding against the bandwidth, prompts by Triton and by torch's SDPA."""

from __future__ import annotations

import torch

from benchmarks.gpu.kernel_checks import on_device
from benchmarks.gpu.limits import Limits, seconds
from benchmarks.gpu.paged_step import finite, make_step
from engine.kernels import Kernels
from engine.kernels.fp8 import stored_as
from engine.layers.attention_batch import AttentionSpec, LayerCache

SPEC = AttentionSpec(32, 8, 128, 128**-0.5)


def decode_attention(
    kernels: Kernels,
    device: torch.device,
    limits: Limits,
    rows: int,
    context: int,
    stored: torch.dtype | None = None,
) -> dict:
    """Bytes of keys and values over time, against bandwidth. stored: dtype of the cache, where it
    isn't float16."""
    tries = 20 if device.type == "cuda" else 1
    cache, batch = make_step([(context - 1, 1)] * rows, 8, 128, 16, torch.float16)
    cache = finite(cache)
    if stored is not None:
        cache = LayerCache(stored_as(cache.k, stored), stored_as(cache.v, stored))
    cache, batch = on_device(cache, batch, device)
    q = torch.randn(rows, 32, 128, device=device).half()
    taken = seconds(lambda: kernels.paged_attention(q, cache, batch, SPEC), device, tries)
    moved = 2 * rows * context * 8 * 128 * cache.k.element_size()
    return {
        "rows": rows,
        "context": context,
        "cache": str(cache.k.dtype).removeprefix("torch."),
        "us": taken * 1e6,
        "gb_s": moved / taken / 1e9,
        "share_of_limit": moved / taken / 1e9 / limits.copy_gb_s,
    }


def prompt_attention(kernels: Kernels, device: torch.device, lengths: list[int]) -> dict:
    """Microseconds of one whole prompt both ways at each length, and the length from which on
    SDPA was faster: what `SDPA_FROM` in engine/kernels/triton/paged_attention.py should be."""
    tries = 20 if device.type == "cuda" else 1
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    rows = []
    for length in lengths:
        cache, batch = make_step([(0, length)], 8, 128, 16, dtype)
        cache, batch = on_device(finite(cache), batch, device)
        q = torch.randn(length, 32, 128, device=device).to(dtype)
        ways = {}
        for way, sdpa_from in (("triton", None), ("torch", 1)):
            ways[f"{way}_us"] = 1e6 * seconds(
                lambda s=sdpa_from: kernels.paged_attention(q, cache, batch, SPEC, sdpa_from=s),  # noqa: B023
                device,
                tries,
            )
        rows.append({"tokens": length, **ways})
    return {"prompts": rows, "sdpa_from": faster_from(rows)}


def faster_from(rows: list[dict]) -> int | None:
    """The shortest length from which on torch was faster, at it and at all longer ones."""
    found = None
    for row in sorted(rows, key=lambda row: -row["tokens"]):
        if row["torch_us"] >= row["triton_us"]:
            break
        found = row["tokens"]
    return found
