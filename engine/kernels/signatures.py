"""Declare what each operation of a backend takes and returns; mypy checks every backend.

What an operation computes, and the shapes, are stated at its plain-torch form in `torch_ops` and
`torch_attention`. A backend may take more arguments, if they have defaults.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypedDict

import torch
from torch import Tensor

from engine.kernels.batch import AttentionBatch, AttentionSpec, LayerCache, QKNorms
from engine.kernels.few_rows import FewRows
from engine.kernels.quantized_weight import QuantizedWeight

Pair = tuple[Tensor, Tensor]


class WriteKV(Protocol):
    def __call__(self, k: Tensor, v: Tensor, cache: LayerCache, slot_mapping: Tensor) -> None: ...


class PagedAttention(Protocol):
    def __call__(
        self, q: Tensor, cache: LayerCache, batch: AttentionBatch, spec: AttentionSpec
    ) -> Tensor: ...


class QKVAttention(Protocol):
    def __call__(
        self,
        qkv: Tensor,
        angles: Pair | None,
        norms: QKNorms | None,
        cache: LayerCache,
        batch: AttentionBatch,
        spec: AttentionSpec,
        dtype: torch.dtype | None = None,
    ) -> Tensor: ...


class Embed(Protocol):
    def __call__(
        self,
        ids: Tensor,
        table: Tensor,
        positions: Tensor | None = None,
        position_table: Tensor | None = None,
    ) -> Tensor: ...


class Angles(Protocol):
    def __call__(self, positions: Tensor, inv_freq: Tensor, scale: float) -> Pair: ...


class PackWeight(Protocol):
    def __call__(self, weight: Tensor) -> Tensor: ...


class PackGated(Protocol):
    def __call__(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]: ...


class LinearGated(Protocol):
    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor: ...


class Linear(Protocol):
    def __call__(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, wide: bool = False
    ) -> Tensor: ...


class Logits(Protocol):
    def __call__(self, x: Tensor, weight: Tensor) -> Tensor: ...


class PackedWeight(Protocol):
    """Hold a `QuantizedWeight` as one backend reads it."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def num_bytes(self) -> int: ...


class PackQuantized(Protocol):
    """Lay a weight out. dtype: of the rows that it will multiply."""

    def __call__(self, weight: QuantizedWeight, dtype: torch.dtype) -> PackedWeight: ...


class PackQuantizedGated(Protocol):
    """Lay a weight out for silu(first half of the outputs) * the others; None: not this one."""

    def __call__(self, weight: QuantizedWeight, dtype: torch.dtype) -> PackedWeight | None: ...


class QuantizedLinear(Protocol):
    """Take the weight that the same backend packed."""

    def __call__(
        self, x: Tensor, weight: Any, bias: Tensor | None, out: Tensor | None = None
    ) -> Tensor: ...


class QuantizedEmbed(Protocol):
    def __call__(self, ids: Tensor, table: Any) -> Tensor: ...


class RMSNorm(Protocol):
    def __call__(self, x: Tensor, weight: Tensor, eps: float) -> Tensor: ...


class AddRMSNorm(Protocol):
    def __call__(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Pair: ...


class LayerNorm(Protocol):
    def __call__(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Tensor: ...


class AddLayerNorm(Protocol):
    def __call__(
        self, x: Tensor, residual: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Pair: ...


class OfOne(Protocol):
    """Take one tensor and return one: an activation, or the greatest of each row."""

    def __call__(self, x: Tensor) -> Tensor: ...


class Rotate(Protocol):
    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor: ...


class TakeDrawn(Protocol):
    def __call__(self, token_ids: Tensor, drawn: Tensor, places: Tensor) -> None: ...


class TakeInputs(Protocol):
    def __call__(self, packed: Tensor, staged: Tensor, rows: int, drawn: Tensor | None) -> None: ...


class HandOut(Protocol):
    def __call__(self, tokens: Tensor, there: Tensor) -> None: ...


class ReadsLengths(Protocol):
    def __call__(self, head_dim: int) -> bool: ...


class WantsLengths(Protocol):
    def __call__(self, lengths: Sequence[int], contexts: Sequence[int]) -> bool: ...


class MaskLogits(Protocol):
    def __call__(self, logits: Tensor, masks: Tensor, rows: Tensor) -> None: ...


class Draw(Protocol):
    def __call__(
        self,
        logits: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        min_p: Tensor,
        words: Tensor,
        any_top_k: bool = True,
        any_top_p: bool = True,
    ) -> Tensor: ...


class DrawAllowed(Protocol):
    """Draw as `worker/sampling/exact_draw.py` defines it, among the tokens that masks allow.

    `logits`: fp32 [lines, vocab]. `draws`: int64 [6, draws]: of each its line, its sequence's seat,
    its seed, where its token will stand, the only token allowed (`NO_TOKEN`: see the mask), and the
    line of its mask (−1: all tokens are allowed). `masks`: int32 [*, words], token t is bit t % 32
    of word t // 32; None: no draw has one. By seat: `parameters`, fp64 [seats, n]: temperature (0:
    the greatest logit), top_p, min_p; `top_k`, int64 [seats]. Returns int64 [draws]; `NO_TOKEN`
    where logits of allowed tokens aren't finite.
    """

    def __call__(
        self, logits: Tensor, draws: Tensor, masks: Tensor | None, parameters: Tensor, top_k: Tensor
    ) -> Tensor: ...


class CopyBlocks(Protocol):
    def __call__(self, sources: Tensor, targets: Tensor, words: Tensor, pairs: Tensor) -> None: ...


class Replacements(TypedDict, total=False):
    """Hold the entries of `Kernels` that a backend does better than plain torch."""

    write_kv: WriteKV
    paged_attention: PagedAttention
    qkv_attention: QKVAttention
    embed: Embed
    angles: Angles
    pack_weight: PackWeight
    linear: Linear
    logits: Logits
    pack_quantized: PackQuantized
    quantized_linear: QuantizedLinear
    quantized_embed: QuantizedEmbed
    rms_norm: RMSNorm
    add_rms_norm: AddRMSNorm
    layer_norm: LayerNorm
    add_layer_norm: AddLayerNorm
    silu_and_mul: OfOne
    relu: OfOne
    greatest: OfOne
    rotate: Rotate
    mask_logits: MaskLogits
    take_drawn: TakeDrawn
    take_inputs: TakeInputs
    hand_out: HandOut
    reads_lengths: ReadsLengths
    wants_lengths: WantsLengths
    few_rows: FewRows | None
    pack_gated: PackGated | None
    linear_gated: LinearGated | None
    pack_quantized_gated: PackQuantizedGated | None
    keeps_sums: bool
    draw: Draw | None
    draw_allowed: DrawAllowed | None
    copy_blocks: CopyBlocks | None
