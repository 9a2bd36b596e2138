"""Token embeddings, and the way back: the head that turns hidden states into logits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from engine.kernels import kernels_for
from engine.layers.linear import packed


class Embedding(nn.Module):
    """A table of vectors. weight: [entries, width]."""

    def __init__(self, entries: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(entries, width), requires_grad=False)

    def forward(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor | None = None,
        position_table: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """ids: int64 [tokens] → [tokens, width]; plus position_table[positions] if given."""
        return kernels_for(ids.device).embed(ids, self.weight, positions, position_table)

    def weight_targets(self, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
        yield f"{prefix}.weight", self.weight


class LogitsHead(nn.Module):
    """hidden [n, width] → logits [n, vocabulary]. A tied head shares the embedding's table."""

    def __init__(self, vocab_size: int, width: int, tied_to: Embedding | None) -> None:
        super().__init__()
        self.tied_to = tied_to
        self.weight = (
            tied_to.weight
            if tied_to is not None
            else nn.Parameter(torch.empty(vocab_size, width), requires_grad=False)
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: [n, width] → [n, vocabulary] in fp32, whatever the weights are in."""
        return kernels_for(hidden.device).logits(hidden, self.weight)

    def weight_targets(self, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
        if self.tied_to is None:
            yield f"{prefix}.weight", self.weight

    def untie(self, weight: torch.Tensor) -> None:
        """Take a table of the head's own. weight: [vocabulary, width]."""
        self.tied_to = None
        self.weight = nn.Parameter(weight, requires_grad=False)

    def pack(self) -> None:
        """As `Linear.pack`; a tied embedding reads the packed table too."""
        self.weight = packed(self.weight)
        if self.tied_to is not None:
            self.tied_to.weight = self.weight
