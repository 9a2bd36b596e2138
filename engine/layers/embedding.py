"""Embed tokens, and turn hidden states back into logits (the head)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from engine.kernels import kernels_for
from engine.layers.linear import packed
from engine.layers.slot import Place, Target


class Embedding(nn.Module):
    """Look up vectors in a table. weight: [entries, width]."""

    def __init__(self, entries: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(entries, width), requires_grad=False)

    def forward(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor | None = None,
        position_table: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Look up ids: int64 [tokens] → [tokens, width] in fp32, where the residual stream begins.

        Adds position_table[positions] if given.
        """
        return kernels_for(ids.device).embed(ids, self.weight, positions, position_table)

    def weight_targets(self, prefix: str) -> Iterator[tuple[str, Target]]:
        yield f"{prefix}.weight", self.weight


class LogitsHead(nn.Module):
    """Compute logits: hidden [n, width] → [n, vocabulary].

    A tied head shares the embedding's table.
    """

    def __init__(self, vocab_size: int, width: int, tied_to: Embedding | None) -> None:
        super().__init__()
        self.tied_to = tied_to
        self.weight = (
            tied_to.weight
            if tied_to is not None
            else nn.Parameter(torch.empty(vocab_size, width), requires_grad=False)
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Compute logits in fp32, whatever dtype the weights have.

        hidden: [n, width] → [n, vocabulary].
        """
        return kernels_for(hidden.device).logits(hidden, self.weight)

    def weight_targets(self, prefix: str) -> Iterator[tuple[str, Target]]:
        if self.tied_to is None:
            yield f"{prefix}.weight", self.target(self.weight)

    def target(self, weight: torch.Tensor) -> Place:
        """Return where a table goes, if `weight` is to be the head's own: all of it."""
        return weight

    def untie(self, weight: torch.Tensor) -> None:
        """Give the head a table of its own. weight: [vocabulary, width]."""
        self.tied_to = None
        self.weight = nn.Parameter(weight, requires_grad=False)

    def pack(self) -> None:
        """Pack like `Linear.pack`; a tied embedding reads the packed table too."""
        self.weight = packed(self.weight)
        if self.tied_to is not None:
            self.tied_to.weight = self.weight
