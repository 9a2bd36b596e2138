"""Hold what natively computed models have in common: embedding, blocks and head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

from engine.kernels.batch import LayerKV
from engine.layers.attention import Attention
from engine.layers.kinds import Layers
from engine.layers.slot import Target

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class HasAttention(Protocol):
    """State what is asked of every block, whatever else it computes."""

    attention: Attention


class NativeModel(nn.Module):
    """Make the embedding and the head, which may share its table; a subclass makes `layers`."""

    implementation = "native"
    divides = False
    """Whether its layers say how ranks divide them."""
    layers: Sequence[HasAttention]
    max_model_len: int

    def __init__(self, config: PretrainedConfig, layers: Layers, width: int) -> None:
        """Begin a model whose embeddings have `width` numbers."""
        super().__init__()
        self.architecture = (config.architectures or [config.model_type])[0]
        self.vocab_size = config.vocab_size
        self.embed_tokens = layers.embedding(config.vocab_size, width)
        self.ties_head = bool(config.tie_word_embeddings)  # as config.json says
        tied = self.embed_tokens if self.ties_head else None
        self.lm_head = layers.head(config.vocab_size, width, tied)

    @property
    def kv_spec(self) -> list[LayerKV]:
        return [block.attention.kv for block in self.layers]

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Compute logits. hidden: [n, width of forward's result] → [n, vocabulary], in fp32."""
        return self.lm_head(hidden)

    def weight_targets(self) -> Iterator[tuple[str, Target]]:
        """Yield (name in the checkpoint, where it goes) of every weight."""
        raise NotImplementedError
