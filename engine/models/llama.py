"""Compute the Llama family: Llama 2 and 3, SmolLM, Mistral, Qwen2, Qwen3.

One block: RMSNorm → grouped-query attention with rotary positions → RMSNorm → gated feed-forward,
with a residual stream around both, in fp32 whatever the weights have. The members differ in
biases, in Qwen3's norms on q and k, and in which layers have a sliding window; `_Shape` reads
these from config.json. Weights: q, k, v are one matrix here, gate and up another.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from engine.kernels.batch import AttentionBatch, LayerCache, QKNorms
from engine.kernels.few_rows import FewRows
from engine.layers.attention import Attention
from engine.layers.kinds import PLAIN, Layers
from engine.layers.linear import Dense, LinearLayer, few_rows
from engine.layers.norm import RMSNorm
from engine.layers.rotary import EXACT_TYPES, Rotary
from engine.layers.slot import Target
from engine.models.length import max_model_len
from engine.models.native import NativeModel

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class LlamaModel(NativeModel):
    """Compute a causal language model of the family, for all members' architectures."""

    layers: list[_Block]
    divides = True

    def __init__(self, config: PretrainedConfig, layers: Layers = PLAIN) -> None:
        super().__init__(config, layers, config.hidden_size)
        self.max_model_len = max_model_len(config)
        shapes = [_Shape.of(config, index) for index in range(config.num_hidden_layers)]
        self.rotary = Rotary(config, shapes[0].head_dim)
        blocks = [_Block(config, shape, index, layers) for index, shape in enumerate(shapes)]
        self.layers = cast("list[_Block]", nn.ModuleList(blocks))
        self.dense = all(layer.dense for block in blocks for layer in block.linears())
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    @staticmethod
    def supports(config: PretrainedConfig) -> bool:
        """Return whether this class computes the model exactly; if not, the adapter serves it."""
        rope = getattr(config, "rope_parameters", None) or {}
        return (
            config.hidden_act == "silu"
            and rope.get("rope_type") in EXACT_TYPES
            and rope.get("partial_rotary_factor", 1.0) == 1.0
        )

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        caches: list[LayerCache],
        batch: AttentionBatch,
    ) -> torch.Tensor:
        """Compute normalised hidden states.

        input_ids, positions: int64 [tokens] → [tokens, hidden].
        """
        cos, sin = self.rotary(positions)
        residual = self.embed_tokens(input_ids)
        few = few_rows(residual) if self.dense else None
        if few is not None:
            for index, block in enumerate(self.layers):
                residual = block.in_few_kernels(few, residual, cos, sin, caches[index], batch)
            return self.norm(residual)
        # a block's last sum is fused with the norm that follows it: the next block's, or the last
        # one
        norms = [*(block.input_norm for block in self.layers), self.norm]
        x = norms[0](residual)
        for index, block in enumerate(self.layers):
            x = block.attend(x, cos, sin, caches[index], batch)
            x, residual = block.post_norm.add(x, residual)
            x, residual = norms[index + 1].add(block.feed_forward(x), residual)
        return x

    def weight_targets(self) -> Iterator[tuple[str, Target]]:
        """Yield (name in the checkpoint, where it goes) of every weight."""
        yield from self.embed_tokens.weight_targets("model.embed_tokens")
        for index, block in enumerate(self.layers):
            yield from block.weight_targets(f"model.layers.{index}")
        yield from self.norm.weight_targets("model.norm")
        yield from self.lm_head.weight_targets("lm_head")


@dataclass(frozen=True)
class _Shape:
    """Hold what differs between members of the family, for one layer."""

    head_dim: int
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    sliding_window: int | None

    @classmethod
    def of(cls, config: PretrainedConfig, index: int) -> _Shape:
        kind = config.model_type
        bias = bool(getattr(config, "attention_bias", False))
        window = getattr(config, "sliding_window", None)
        layer_types = getattr(config, "layer_types", None)
        if kind == "llama" or (layer_types and layer_types[index] != "sliding_attention"):
            window = None
        return cls(
            head_dim=getattr(config, "head_dim", None)
            or config.hidden_size // config.num_attention_heads,
            qkv_bias=bias or kind == "qwen2",
            output_bias=bias,
            mlp_bias=bool(getattr(config, "mlp_bias", False)),
            qk_norm=kind == "qwen3",
            sliding_window=window,
        )


class _Block(nn.Module):
    """Hold the weights of one layer and compute its halves; the model adds the residual stream."""

    def __init__(self, config: PretrainedConfig, shape: _Shape, index: int, layers: Layers) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        heads, kv_heads, self.head_dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            shape.head_dim,
        )
        # this rank's: where there are fewer than ranks, several have the same key and value head
        self.heads, self.kv_heads = heads // layers.num_ranks, max(1, kv_heads // layers.num_ranks)
        q_size, kv_size = heads * self.head_dim, kv_heads * self.head_dim
        self.input_norm = RMSNorm(hidden, config.rms_norm_eps)
        self.qkv = layers.linear(
            hidden, {"q_proj": q_size, "k_proj": kv_size, "v_proj": kv_size}, shape.qkv_bias
        )
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps) if shape.qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps) if shape.qk_norm else None
        self.attention = Attention(
            self.heads,
            self.kv_heads,
            self.head_dim,
            self.head_dim**-0.5,
            index,
            shape.sliding_window,
        )
        self.output = layers.row_linear(q_size, {"o_proj": hidden}, shape.output_bias)
        self.post_norm = RMSNorm(hidden, config.rms_norm_eps)
        self.gate_up = layers.gated(hidden, {"gate_proj": inner, "up_proj": inner}, shape.mlp_bias)
        self.down = layers.row_linear(inner, {"down_proj": hidden}, shape.mlp_bias)

    def attend(
        self,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        cache: LayerCache,
        batch: AttentionBatch,
    ) -> torch.Tensor:
        """Return what attention adds to the residual stream. x: [tokens, hidden], normalised."""
        qkv = self.qkv(x, wide=True)
        norms = self._head_norms()
        mixed = self.attention.from_qkv(qkv, (cos, sin), cache, batch, norms, x.dtype)
        return self.output(mixed, wide=True)

    def feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the feed-forward adds to the residual stream.

        x: [tokens, hidden], normalised.
        """
        return self.down(self.gate_up(x), wide=True)

    def in_few_kernels(
        self,
        few: FewRows,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        cache: LayerCache,
        batch: AttentionBatch,
    ) -> torch.Tensor:
        """Compute the whole block in four products and attention, if all its layers are dense.

        x: fp32 [tokens, hidden], the residual stream before it → the same after it.
        """
        qkv, output, gate_up, down = (cast(Dense, layer.dense) for layer in self.linears())
        norm = self.input_norm
        projected = few.norm_linear(x, norm.weight, norm.eps, qkv.weight, qkv.bias)
        norms, dtype = self._head_norms(), qkv.weight.dtype
        mixed = self.attention.from_qkv(projected, (cos, sin), cache, batch, norms, dtype)
        x = few.linear_add(mixed, output.weight, output.bias, x)
        norm = self.post_norm
        inner = few.norm_gated(x, norm.weight, norm.eps, gate_up.weight, gate_up.bias)
        return few.linear_add(inner, down.weight, down.bias, x)

    def linears(self) -> tuple[LinearLayer, ...]:
        return self.qkv, self.output, self.gate_up, self.down

    def _head_norms(self) -> QKNorms | None:
        """Return Qwen3's norms on q and k."""
        if self.q_norm is None or self.k_norm is None:
            return None
        return QKNorms(self.q_norm.weight, self.k_norm.weight, self.q_norm.eps)

    def weight_targets(self, prefix: str) -> Iterator[tuple[str, Target]]:
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        yield from self.input_norm.weight_targets(f"{prefix}.input_layernorm")
        yield from self.qkv.weight_targets(attention)
        if self.q_norm is not None and self.k_norm is not None:
            yield from self.q_norm.weight_targets(f"{attention}.q_norm")
            yield from self.k_norm.weight_targets(f"{attention}.k_norm")
        yield from self.output.weight_targets(attention)
        yield from self.post_norm.weight_targets(f"{prefix}.post_attention_layernorm")
        yield from self.gate_up.weight_targets(mlp)
        yield from self.down.weight_targets(mlp)
