"""Choose the classes of a model's linear layers, embedding and head: plain, or quantized."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from engine.layers.embedding import Embedding, LogitsHead
from engine.layers.linear import GatedLinear, Linear, LinearFactory
from engine.layers.quantized import QuantizedEmbedding, QuantizedHead


class TableFactory(Protocol):
    """Make an embedding: entries, width."""

    def __call__(self, entries: int, width: int) -> Embedding | QuantizedEmbedding: ...


class HeadFactory(Protocol):
    """Make a head: vocabulary, width, and the embedding whose table it shares, or None."""

    def __call__(self, vocab_size: int, width: int, tied_to: Any) -> LogitsHead | QuantizedHead: ...


class Layers(NamedTuple):
    """Hold the classes that a model makes its layers of."""

    linear: LinearFactory = Linear
    gated: LinearFactory = GatedLinear
    """Of two parts, of which the first gates the second: silu(x W₁ᵀ) * x W₂ᵀ."""
    row_linear: LinearFactory = Linear
    """Of the layers that read what a block's other layers made: ranks divide their inputs."""
    embedding: TableFactory = Embedding
    head: HeadFactory = LogitsHead
    num_ranks: int = 1
    """Processes that have a share of each layer; a model divides its heads by it."""


PLAIN = Layers()
