"""Divide a model's layers among ranks, each of which holds a share of every matrix.

The projections into a block (q, k, v, gate, up) are divided by their outputs, heads or columns: a
rank computes some of them alone. Those out of it (o, down) are divided by their inputs, so each
rank has a part of every sum, and the ranks add them. That is two sums in a block, one of which ends
attention, the other the feed-forward; between them nothing is exchanged (Shoeybi et al.,
*Megatron-LM*, 2019). The embedding and the head are divided by the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import torch

from engine.kernels import kernels_for
from engine.kernels.ranks import Ranks
from engine.layers.embedding import Embedding, LogitsHead
from engine.layers.kinds import Layers
from engine.layers.linear import GatedLinear, Linear
from engine.layers.slot import Share, Target
from engine.rank_sizes import copies_of_a_head, rows_of_a_rank, tokens_of_a_rank


def divided(ranks: Ranks, kv_heads: int) -> Layers:
    """Return the classes of one rank's layers. kv_heads: of the whole model."""
    alike = copies_of_a_head(kv_heads, ranks.size)
    return Layers(
        linear=partial(ColumnLinear, ranks, {"k_proj": alike, "v_proj": alike}),
        gated=partial(GatedColumnLinear, ranks, {}),
        row_linear=partial(RowLinear, ranks),
        embedding=partial(VocabularyEmbedding, ranks),
        head=partial(VocabularyHead, ranks),
        num_ranks=ranks.size,
    )


class ColumnLinear(Linear):
    """Compute some outputs of x Wᵀ + b: of each merged matrix, this rank's."""

    def __init__(
        self,
        ranks: Ranks,
        copies: Mapping[str, int],
        inputs: int,
        parts: Mapping[str, int],
        bias: bool,
    ) -> None:
        """Allocate this rank's share.

        copies: how many ranks have the same outputs, for parts of which there are fewer than ranks.
        parts: each merged matrix's checkpoint name → its outputs, of the whole model.
        """
        own = {name: all_ * copies.get(name, 1) // ranks.size for name, all_ in parts.items()}
        super().__init__(inputs, own, bias)
        self._whole = dict(parts)
        self._starts = {name: ranks.rank // copies.get(name, 1) * n for name, n in own.items()}

    def weight_targets(self, prefix: str) -> Iterator[tuple[str, Target]]:
        for name, target in self.views(prefix):
            part = name.split(".")[-2]
            whole = (self._whole[part], *target.shape[1:])
            yield name, Share(target, whole, 0, self._starts[part])


class GatedColumnLinear(ColumnLinear, GatedLinear):
    """Compute some outputs of silu(gate) * up: this rank's of both."""


class RowLinear(Linear):
    """Compute x Wᵀ + b from this rank's columns of x, together with all ranks."""

    def __init__(self, ranks: Ranks, inputs: int, parts: Mapping[str, int], bias: bool) -> None:
        """Allocate this rank's share. inputs: K of the whole model."""
        super().__init__(inputs // ranks.size, parts, bias)
        self._ranks = ranks
        self._inputs = inputs

    @property
    def dense(self) -> None:
        """Return None: a product of this rank's matrix alone isn't the result."""
        return None

    def forward(self, x: torch.Tensor, wide: bool = False) -> torch.Tensor:
        """Compute the sum. x: [tokens, K / ranks] → [tokens, N], the same on all ranks.

        Parts stay in fp32 until all are added, and so does the sum where one process would keep
        it: it is rounded as often as there.
        """
        kernels = kernels_for(x.device)
        part = kernels.logits(x, self.weight)
        dtype = part.dtype if wide and kernels.keeps_sums else x.dtype
        return self._ranks.sum(part, None if self.bias is None else self.bias.to(dtype), dtype)

    def weight_targets(self, prefix: str) -> Iterator[tuple[str, Target]]:
        for name, target in self.views(prefix):
            if target.dim() == 2:
                whole = (len(target), self._inputs)
                yield name, Share(target, whole, 1, self._ranks.rank * target.shape[1])
            else:
                yield name, target


class VocabularyEmbedding(Embedding):
    """Look up this rank's tokens, and add what all ranks found."""

    def __init__(self, ranks: Ranks, entries: int, width: int) -> None:
        """Allocate this rank's share. entries: of the whole model."""
        self._vocabulary = _Vocabulary(ranks, entries)
        super().__init__(self._vocabulary.rows, width)
        self.weight.zero_()
        self._ranks = ranks

    def forward(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor | None = None,
        position_table: torch.Tensor | None = None,
    ) -> torch.Tensor:
        assert positions is None, "all ranks would add the positions' vectors"
        own = self._vocabulary
        places = self._ranks.own_ids(self._ranks.ids_of_first(ids), own.start, own.each)
        return self._ranks.sum(super().forward(places), None, torch.float32)

    def weight_targets(self, prefix: str) -> Iterator[tuple[str, Target]]:
        yield f"{prefix}.weight", self._vocabulary.share(self.weight)


class VocabularyHead(LogitsHead):
    """Compute the logits of this rank's tokens; rank 0 gets those of all."""

    def __init__(
        self, ranks: Ranks, vocab_size: int, width: int, tied_to: Embedding | None
    ) -> None:
        """Allocate this rank's share, or take the embedding's. vocab_size: of the whole model."""
        self._vocabulary = _Vocabulary(ranks, vocab_size)
        super().__init__(self._vocabulary.rows, width, tied_to)
        if tied_to is None:
            self.weight.zero_()
        self._ranks = ranks
        self._vocab_size = vocab_size

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Compute logits in fp32: hidden [n, width] → [n, vocabulary] on rank 0.

        The other ranks return their own, with padding.
        """
        part = super().forward(hidden.contiguous())
        return self._ranks.gather(part, self._vocabulary.each, self._vocab_size)

    def target(self, weight: torch.Tensor) -> Share:
        return self._vocabulary.share(weight)


class _Vocabulary:
    """Say which tokens are a rank's: `each` of them from `start` on, the last ones fewer."""

    def __init__(self, ranks: Ranks, size: int) -> None:
        self.size = size
        self.each = tokens_of_a_rank(size, ranks.size)
        self.start = ranks.rank * self.each
        self.rows = rows_of_a_rank(size, ranks.size)

    def share(self, weight: torch.Tensor) -> Share:
        """Return where the rows of the checkpoint's table go. weight: [rows, width]."""
        count = max(0, min(self.each, self.size - self.start))
        whole = (self.size, weight.shape[1])
        return Share(weight[:count], whole, 0, min(self.start, self.size), weight)
