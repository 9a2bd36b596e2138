"""Write this step's keys and values to the pages, then attend to all tokens before them."""

from __future__ import annotations

import torch
from torch import nn

from engine.kernels import kernels_for
from engine.kernels.batch import AttentionBatch, AttentionSpec, LayerCache, LayerKV, QKNorms


class Attention(nn.Module):
    """Compute causal attention of one layer. It has no weights: projections belong to the model."""

    def __init__(
        self,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        scale: float,
        layer_index: int,
        sliding_window: int | None = None,
        soft_cap: float | None = None,
        sinks: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.layer_index = layer_index
        self.spec = AttentionSpec(
            num_heads, num_kv_heads, head_dim, scale, sliding_window, soft_cap, sinks
        )

    @property
    def kv(self) -> LayerKV:
        return LayerKV(self.spec.num_kv_heads, self.spec.head_dim, self.spec.sliding_window)

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cache: LayerCache,
        batch: AttentionBatch,
    ) -> torch.Tensor:
        """Attend.

        q: [tokens, heads, D], k, v: [tokens, kv_heads, D] → [tokens, heads, D] in v's dtype.

        q and k may be wider than v (fp32 beside bf16): they come from the rotary embedding.
        """
        kernels = kernels_for(q.device)
        kernels.write_kv(k, v, cache, batch.slot_mapping)
        return kernels.paged_attention(q, cache, batch, self.spec).to(v.dtype)

    def from_qkv(
        self,
        qkv: torch.Tensor,
        angles: tuple[torch.Tensor, torch.Tensor] | None,
        cache: LayerCache,
        batch: AttentionBatch,
        norms: QKNorms | None = None,
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """Attend from the merged projection, in as few passes as the device's kernels need.

        qkv: [tokens, (heads + 2 kv_heads) * D] → [tokens, heads * D] in `dtype` (None: qkv's, which
        may be wider than the model's: norms and rotation come before its only rounding).
        """
        kernels = kernels_for(qkv.device)
        return kernels.qkv_attention(qkv, angles, norms, cache, batch, self.spec, dtype)
