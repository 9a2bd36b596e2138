"""Compute a model's operations with kernels, each beside its plain-torch reference.

`kernels_for(device)` alone decides which implementation computes on a device. A backend is a
`Kernels` table: the plain-torch one below, with the entries that it does better replaced
(`dataclasses.replace(TORCH, paged_attention=…)`). The functions of the torch table are the
specification: arguments, shapes and results are the same in every backend.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import NamedTuple

import torch

from engine.kernels import cpu, quantized, torch_attention, torch_ops, triton
from engine.kernels import signatures as types
from engine.kernels.few_rows import FewRows


@dataclass(frozen=True)
class Kernels:
    """Hold one implementation of every operation that a model is made of. See `signatures`."""

    name: str
    write_kv: types.WriteKV
    paged_attention: types.PagedAttention
    qkv_attention: types.QKVAttention
    embed: types.Embed
    angles: types.Angles
    pack_weight: types.PackWeight
    linear: types.Linear
    logits: types.Logits
    rms_norm: types.RMSNorm
    add_rms_norm: types.AddRMSNorm
    layer_norm: types.LayerNorm
    add_layer_norm: types.AddLayerNorm
    silu_and_mul: types.OfOne
    relu: types.OfOne
    greatest: types.OfOne
    rotate: types.Rotate
    pack_quantized: types.PackQuantized = quantized.pack_quantized
    quantized_linear: types.QuantizedLinear = quantized.quantized_linear
    quantized_embed: types.QuantizedEmbed = quantized.quantized_embed
    mask_logits: types.MaskLogits = torch_ops.mask_logits
    take_drawn: types.TakeDrawn = torch_ops.take_drawn
    take_inputs: types.TakeInputs = torch_ops.take_inputs
    hand_out: types.HandOut = torch_ops.hand_out
    reads_lengths: types.ReadsLengths = lambda head_dim: False
    """Say whether attention to heads of that size takes a batch with `lengths_on_device`."""
    wants_lengths: types.WantsLengths = lambda lengths, contexts: False
    """Say whether attention is faster when the host knows lengths: tokens to compute, and all
    tokens, of a step's prompts, each [prompts]."""
    why: str = ""
    """Why this implementation was chosen, where there was a choice, for the log."""
    few_rows: FewRows | None = None
    """None: models call the operations above one after another, however few tokens there are."""
    pack_gated: types.PackGated | None = None
    linear_gated: types.LinearGated | None = None
    """silu_and_mul of a product, whose sums aren't rounded between, with the weight and bias that
    `pack_gated` returns for gate's rows above up's. None: models call one after the other."""
    pack_quantized_gated: types.PackQuantizedGated | None = None
    """With what it returns `quantized_linear` computes that for a quantized weight. None: none."""
    keeps_sums: bool = False
    """Whether `linear` returns fp32 of 16-bit numbers if asked, where that costs no launch."""
    draw: types.Draw | None = None
    """None: `worker/sampling/exact_draw.py` draws, in plain torch."""
    draw_allowed: types.DrawAllowed | None = None
    """None: logits are masked, and tokens drawn as above."""
    copy_blocks: types.CopyBlocks | None = None
    """None: `KVCache` moves blocks in plain torch."""


TORCH = Kernels(
    name="torch",
    write_kv=torch_attention.write_kv,
    paged_attention=torch_attention.paged_attention,
    qkv_attention=torch_attention.qkv_attention,
    embed=torch_ops.embed,
    angles=torch_ops.angles,
    pack_weight=torch_ops.pack_weight,
    linear=torch_ops.linear,
    logits=torch_ops.logits,
    rms_norm=torch_ops.rms_norm,
    add_rms_norm=torch_ops.add_rms_norm,
    layer_norm=torch_ops.layer_norm,
    add_layer_norm=torch_ops.add_layer_norm,
    silu_and_mul=torch_ops.silu_and_mul,
    relu=torch_ops.relu,
    greatest=torch_ops.greatest,
    rotate=torch_ops.rotate,
)


@lru_cache(maxsize=1)
def _on_cpu() -> Kernels:
    """Return our own kernels where they can be built (the first call may take some seconds)."""
    ops = cpu.native()
    if ops is None:
        return TORCH
    return Kernels(
        name=f"native {ops.variant}",
        why=cpu.why(),
        write_kv=ops.write_kv,
        paged_attention=ops.paged_attention,
        qkv_attention=ops.qkv_attention,
        embed=ops.embed,
        angles=ops.angles,
        pack_weight=ops.pack_weight,
        linear=ops.linear,
        pack_gated=ops.pack_gated,
        linear_gated=ops.linear_gated,
        keeps_sums=ops.keeps_sums,
        logits=ops.logits,
        pack_quantized=ops.pack_quantized,
        pack_quantized_gated=ops.pack_quantized_gated,
        quantized_linear=ops.quantized_linear,
        quantized_embed=ops.quantized_embed,
        rms_norm=ops.rms_norm,
        add_rms_norm=ops.add_rms_norm,
        layer_norm=ops.layer_norm,
        add_layer_norm=ops.add_layer_norm,
        silu_and_mul=ops.silu_and_mul,
        relu=ops.relu,
        greatest=ops.argmax,
        mask_logits=ops.mask_logits,
        draw_allowed=ops.draw_allowed,
        rotate=ops.rotate,
    )


@lru_cache(maxsize=2)
def on_cuda(batch_invariant: bool = False) -> Kernels:
    """Return Triton's kernels where Triton is installed; its interpreter runs them on a CPU too.

    batch_invariant: a row's results must not depend on the other rows of its step.
    """
    operations = triton.operations(batch_invariant)
    if operations is None:
        return TORCH
    why = "batch-invariant: one form of each kernel for any number of rows" * batch_invariant
    return replace(TORCH, name="triton", why=why, **operations)


class Backend(NamedTuple):
    """Describe a kind of device: its kernels, and whether it computes while the host goes on."""

    kernels: Callable[[], Kernels]
    asynchronous: bool


BACKENDS = {"cpu": Backend(_on_cpu, False), "cuda": Backend(on_cuda, True)}
"""By `torch.device.type`. A new kind is one entry here and one in `worker/platforms`."""


def make_batch_invariant() -> None:
    """Have this process use CUDA's kernels in which a row doesn't depend on the others."""
    BACKENDS["cuda"] = Backend(partial(on_cuda, True), True)


def kernels_for(device: torch.device) -> Kernels:
    """Return the fastest implementation that runs on this device. Called for every operation."""
    return BACKENDS[device.type].kernels()


def asynchronous(device: torch.device) -> bool:
    """Return whether kernels return before they are computed.

    If so, only pinned memory can be copied without waiting, and only events tell when a copy is
    done.
    """
    return BACKENDS[device.type].asynchronous


def forget() -> None:
    """Clear the choice of the CPU's kernels, so that the next call chooses again. For tests."""
    cpu.forget()
    _on_cpu.cache_clear()
