"""Attention over pages: write this step's keys and values, then attend to all before them."""

from __future__ import annotations

import torch
from torch import nn

from engine.kernels import kernels_for
from engine.layers.attention_batch import AttentionBatch, AttentionSpec, LayerCache, LayerKV


class Attention(nn.Module):
    """Causal attention of one layer. It has no weights: projections belong to the model."""

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
        """q: [tokens, heads, D], k, v: [tokens, kv_heads, D] → [tokens, heads, D] in v's dtype.

        q and k may be wider than v (fp32 beside bf16): they come from the rotary embedding.
        """
        kernels = kernels_for(q.device)
        kernels.write_kv(k, v, cache, batch.slot_mapping)
        return kernels.paged_attention(q, cache, batch, self.spec).to(v.dtype)
