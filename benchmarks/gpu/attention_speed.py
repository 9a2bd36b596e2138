"""Measure attention: decoding against the bandwidth, prompts by Triton and by torch's SDPA.

The times are of CUDA graphs, so a slow host doesn't count.
"""

from __future__ import annotations

import sys
from functools import partial

import torch

from benchmarks.gpu.graph_time import graph_seconds
from benchmarks.gpu.kernel_checks import on_device
from benchmarks.gpu.limits import Limits
from benchmarks.gpu.paged_step import decode_step, finite, make_step
from engine.kernels import Kernels
from engine.kernels.batch import AttentionSpec, LayerCache
from engine.kernels.fp8_cache import stored_as

SPEC = AttentionSpec(32, 8, 128, 128**-0.5)


def decode_attention(
    kernels: Kernels,
    device: torch.device,
    limits: Limits,
    rows: int,
    context: int,
    stored: torch.dtype | None = None,
) -> dict:
    """Compare bytes of keys and values over time with the bandwidth.

    rows: each of `context` tokens. stored: dtype of the cache, where it isn't float16.
    """
    contexts = torch.full((rows,), context, dtype=torch.int32)
    cache, batch = decode_step(contexts, SPEC.num_kv_heads, SPEC.head_dim, torch.float16, device)
    if stored is not None:
        cache = LayerCache(stored_as(cache.k, stored), stored_as(cache.v, stored))
    q = torch.randn(rows, SPEC.num_heads, SPEC.head_dim, device=device).half()
    call = partial(kernels.paged_attention, q, cache, batch, SPEC)
    taken = graph_seconds(call, device, _tries(device))
    moved = 2 * rows * context * SPEC.num_kv_heads * SPEC.head_dim * cache.k.element_size()
    return {
        "rows": rows,
        "context": context,
        "cache": str(cache.k.dtype).removeprefix("torch."),
        "us": taken * 1e6,
        "gb_s": moved / taken / 1e9,
        "share_of_limit": moved / taken / 1e9 / limits.copy_gb_s,
    }


def prompt_attention(kernels: Kernels, device: torch.device, lengths: list[int]) -> dict:
    """Return microseconds of one whole prompt both ways, and the length from which SDPA was faster.

    `SDPA_FROM` in engine/kernels/triton/paged_attention.py should be that length.
    """
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    rows = []
    for length in lengths:
        cache, batch = make_step([(0, length)], 8, 128, 16, dtype)
        cache, batch = on_device(finite(cache), batch, device)
        q = torch.randn(length, 32, 128, device=device).to(dtype)
        ways = {}
        for way, sdpa_from in (("triton", sys.maxsize), ("torch", 1)):
            call = partial(kernels.paged_attention, q, cache, batch, SPEC, sdpa_from=sdpa_from)
            ways[f"{way}_us"] = 1e6 * graph_seconds(call, device, _tries(device))
        rows.append({"tokens": length, **ways})
    return {"prompts": rows, "sdpa_from": faster_from(rows)}


def _tries(device: torch.device) -> int:
    """Return the tries of each measurement: many on a GPU, one in the interpreter."""
    return 20 if device.type == "cuda" else 1


def faster_from(rows: list[dict]) -> int | None:
    """Return the shortest length at which, and above which, torch was always faster."""
    found = None
    for row in sorted(rows, key=lambda row: -row["tokens"]):
        if row["torch_us"] >= row["triton_us"]:
            break
        found = row["tokens"]
    return found
