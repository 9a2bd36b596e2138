"""Compute OPT (Zhang et al., 2022), 125m to 66b: LayerNorm, learned positions, ReLU, biases.

All sizes normalise before attention and feed-forward, except 350m, which normalises after them and
has embeddings narrower than its hidden states (`project_in`, `project_out`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from engine.kernels.batch import AttentionBatch, LayerCache
from engine.layers.attention import Attention
from engine.layers.embedding import Embedding
from engine.layers.kinds import PLAIN, Layers
from engine.layers.linear import LinearFactory, linear_relu
from engine.layers.norm import LayerNorm
from engine.layers.slot import Target
from engine.models.native import NativeModel

if TYPE_CHECKING:
    from transformers import PretrainedConfig

POSITION_OFFSET = 2  # the checkpoint's first two position vectors belong to no position


class OPTModel(NativeModel):
    """Compute OPTForCausalLM."""

    layers: list[_Block]

    def __init__(self, config: PretrainedConfig, layers: Layers = PLAIN) -> None:
        width, hidden = config.word_embed_proj_dim, config.hidden_size
        super().__init__(config, layers, width)
        self.max_model_len = config.max_position_embeddings
        self.pre_norm = config.do_layer_norm_before
        self.embed_positions = Embedding(self.max_model_len + POSITION_OFFSET, hidden)
        narrow = width != hidden
        self.project_in = layers.linear(width, {"project_in": hidden}, False) if narrow else None
        self.project_out = layers.linear(hidden, {"project_out": width}, False) if narrow else None
        blocks = [_Block(config, index, layers.linear) for index in range(config.num_hidden_layers)]
        self.layers = cast("list[_Block]", nn.ModuleList(blocks))
        final = self.pre_norm and not config._remove_final_layer_norm
        affine = config.layer_norm_elementwise_affine
        self.final_norm = LayerNorm(hidden, affine=affine) if final else None

    @staticmethod
    def supports(config: PretrainedConfig) -> bool:
        """Return whether this class computes the model exactly; if not, the adapter serves it."""
        return config.activation_function == "relu"

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        caches: list[LayerCache],
        batch: AttentionBatch,
    ) -> torch.Tensor:
        """Compute hidden states for `compute_logits`. input_ids, positions: int64 [tokens]."""
        places = self.embed_positions.weight[POSITION_OFFSET:]
        if self.project_in is None:
            x = self.embed_tokens(input_ids, positions, places)
        else:
            x = self.project_in(self.embed_tokens(input_ids).to(places.dtype))
            x = x + self.embed_positions(positions + POSITION_OFFSET)
        x = self._pre_norm(x, caches, batch) if self.pre_norm else self._post_norm(x, caches, batch)
        return x if self.project_out is None else self.project_out(x)

    def _pre_norm(
        self, residual: torch.Tensor, caches: list[LayerCache], batch: AttentionBatch
    ) -> torch.Tensor:
        """Compute x += attention(norm(x)); x += feed_forward(norm(x)).

        Each sum is fused with a norm. residual: fp32 [tokens, hidden].
        """
        x = self.layers[0].attention_norm(residual)
        for index, block in enumerate(self.layers):
            x = block.attend(x, caches[index], batch)
            x, residual = block.feed_forward_norm.add(x, residual)
            x = block.feed_forward(x)
            if index + 1 < len(self.layers):
                x, residual = self.layers[index + 1].attention_norm.add(x, residual)
        if self.final_norm is None:
            return (residual + x).to(self.embed_positions.weight.dtype)
        return self.final_norm.add(x, residual)[0]

    def _post_norm(
        self, x: torch.Tensor, caches: list[LayerCache], batch: AttentionBatch
    ) -> torch.Tensor:
        """Compute x = norm(x + attention(x)); x = norm(x + feed_forward(x)).

        Nothing is carried from block to block but norms' results, in the model's dtype.
        """
        x = x.to(self.embed_positions.weight.dtype)
        for index, block in enumerate(self.layers):
            x, _ = block.attention_norm.add(block.attend(x, caches[index], batch), x)
            x, _ = block.feed_forward_norm.add(block.feed_forward(x), x)
        return x

    def weight_targets(self) -> Iterator[tuple[str, Target]]:
        """Yield (name in the checkpoint, where it goes) of every weight."""
        decoder = "model.decoder"
        yield from self.embed_tokens.weight_targets(f"{decoder}.embed_tokens")
        yield from self.embed_positions.weight_targets(f"{decoder}.embed_positions")
        if self.project_in is not None and self.project_out is not None:
            yield from self.project_in.weight_targets(decoder)
            yield from self.project_out.weight_targets(decoder)
        for index, block in enumerate(self.layers):
            yield from block.weight_targets(f"{decoder}.layers.{index}")
        if self.final_norm is not None:
            yield from self.final_norm.weight_targets(f"{decoder}.final_layer_norm")
        yield from self.lm_head.weight_targets("lm_head")


class _Block(nn.Module):
    """Hold the weights of one layer and compute its halves; the model places the norms."""

    def __init__(self, config: PretrainedConfig, index: int, linear: LinearFactory) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.ffn_dim
        bias, affine = config.enable_bias, config.layer_norm_elementwise_affine
        self.heads = config.num_attention_heads
        self.head_dim = hidden // self.heads
        self.attention_norm = LayerNorm(hidden, affine=affine)
        self.qkv = linear(hidden, {"q_proj": hidden, "k_proj": hidden, "v_proj": hidden}, bias)
        self.attention = Attention(
            self.heads, self.heads, self.head_dim, self.head_dim**-0.5, index
        )
        self.output = linear(hidden, {"out_proj": hidden}, bias)
        self.feed_forward_norm = LayerNorm(hidden, affine=affine)
        self.fc1 = linear(hidden, {"fc1": inner}, bias)
        self.fc2 = linear(inner, {"fc2": hidden}, bias)

    def attend(self, x: torch.Tensor, cache: LayerCache, batch: AttentionBatch) -> torch.Tensor:
        """Return what attention adds to the residual stream. x: [tokens, hidden]."""
        mixed = self.attention.from_qkv(self.qkv(x), None, cache, batch)
        return self.output(mixed, wide=True)

    def feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the feed-forward adds to the residual stream. x: [tokens, hidden]."""
        return self.fc2(linear_relu(self.fc1, x), wide=True)

    def weight_targets(self, prefix: str) -> Iterator[tuple[str, Target]]:
        yield from self.attention_norm.weight_targets(f"{prefix}.self_attn_layer_norm")
        yield from self.qkv.weight_targets(f"{prefix}.self_attn")
        yield from self.output.weight_targets(f"{prefix}.self_attn")
        yield from self.feed_forward_norm.weight_targets(f"{prefix}.final_layer_norm")
        yield from self.fc1.weight_targets(prefix)
        yield from self.fc2.weight_targets(prefix)
