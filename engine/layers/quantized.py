"""Multiply by quantized matrices, and look up vectors in a quantized table.

These classes stand in for `Linear`, `Embedding` and `LogitsHead` (see `kinds.py`). They allocate
nothing: a loader fills each matrix's `Slot` with codes, or with plain numbers where a checkpoint
leaves one matrix as it was. `pack` then joins the matrices of a merged layer that are of one kind,
and gives them to the device's kernels; the slots are emptied, so that no weight is kept twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

from engine.kernels import kernels_for
from engine.kernels.quantized_weight import QuantizedWeight, alike, joined
from engine.kernels.signatures import PackedWeight
from engine.layers.activation import silu_and_mul
from engine.layers.embedding import Embedding
from engine.layers.linear import Dense
from engine.layers.slot import Filling, Matrix, Outliers, Slot, Target


class _Run(NamedTuple):
    """Hold neighbouring matrices of one kind as the kernels read them."""

    start: int  # first of its outputs in the layer
    stop: int
    weight: PackedWeight | nn.Parameter  # a parameter: plain numbers
    bias: torch.Tensor | None

    def into(self, x: torch.Tensor, out: torch.Tensor) -> None:
        """Compute x Wᵀ + b. x: [tokens, K], out: [tokens, N], maybe of longer rows."""
        kernels = kernels_for(x.device)
        if isinstance(self.weight, nn.Parameter):
            out.copy_(kernels.linear(x, self.weight, self.bias, out.dtype is not x.dtype))
        else:
            kernels.quantized_linear(x, self.weight, self.bias, out)


class QuantizedLinear(nn.Module):
    """Compute y = x Wᵀ + b, as `Linear` does, by matrices of whatever formats.

    A row of x that isn't finite gets results that aren't, and changes no other row. Whether an
    infinite number gives ±infinity, as plain weights would by their signs, or NaN depends on the
    kernel: with codes from which a zero point goes, and where something is added to codes
    (codes.h), ∞ − ∞ makes all of the row NaN.
    """

    def __init__(self, inputs: int, parts: Mapping[str, int], bias: bool) -> None:
        super().__init__()
        self.bias = (
            nn.Parameter(torch.empty(sum(parts.values())), requires_grad=False) if bias else None
        )
        like = torch.empty(0)
        self.slots = {name: Slot(outputs, inputs, like) for name, outputs in parts.items()}
        self.outputs = sum(parts.values())
        self._dtype = like.dtype  # of x
        self.runs: list[_Run] = []
        self.outliers: list[tuple[int, int, Outliers]] = []  # first output, end, what is added

    @property
    def dense(self) -> Dense | None:
        return None

    def forward(self, x: torch.Tensor, wide: bool = False) -> torch.Tensor:
        """Compute x Wᵀ + b. x: [tokens, K] → [tokens, N]; wide: see `Linear.forward`."""
        dtype = _wide(x.dtype) if wide and kernels_for(x.device).keeps_sums else x.dtype
        out = torch.empty(len(x), self.outputs, dtype=dtype, device=x.device)
        for run in self.runs:
            run.into(x, out if len(self.runs) == 1 else out[:, run.start : run.stop])
        for start, stop, outliers in self.outliers:
            out[:, start:stop] += outliers.times(x).to(out.dtype)
        return out

    def weight_targets(self, prefix: str) -> Iterator[tuple[str, Target]]:
        """Yield (name in the checkpoint, where it goes) of each part and of its bias."""
        start = 0
        for name, slot in self.slots.items():
            yield f"{prefix}.{name}.weight", slot
            stop = start + slot.shape[0]
            if self.bias is not None:
                yield f"{prefix}.{name}.bias", self.bias[start:stop]
            start = stop

    def pack(self) -> None:
        """Join the parts of one kind and give them to the kernels. Packed once, they stay so."""
        if self.runs:
            return
        start = 0
        for slot in self.slots.values():
            if slot.outliers is not None:
                self.outliers.append((start, start + slot.shape[0], slot.outliers))
                slot.outliers = None
            start += slot.shape[0]
        self._pack([slot.take() for slot in self.slots.values()])

    def _pack(self, parts: list[Matrix]) -> None:
        self.runs = _packed_runs(parts, self.bias, self._dtype)

    @property
    def sizes(self) -> tuple[int, int]:
        """Return (weights, bytes that they take), without the bias."""
        count, size = _sizes(self.runs)
        return count, size + sum(outliers.num_bytes for _, _, outliers in self.outliers)


class GatedQuantizedLinear(QuantizedLinear):
    """Compute silu(gate) * up of the halves of x Wᵀ + b, as `GatedLinear` does."""

    def __init__(self, inputs: int, parts: Mapping[str, int], bias: bool) -> None:
        super().__init__(inputs, parts, bias)
        self._at_once = False  # whether the product's kernel computes it

    def forward(self, x: torch.Tensor, wide: bool = False) -> torch.Tensor:
        """Compute the gated half. x: [tokens, K] → [tokens, N / 2], in x's dtype always."""
        if not self._at_once:
            return silu_and_mul(super().forward(x))
        out = torch.empty(len(x), self.outputs // 2, dtype=x.dtype, device=x.device)
        self.runs[0].into(x, out)
        return out

    def _pack(self, parts: list[Matrix]) -> None:
        gated = None
        if self.bias is None and not self.outliers:
            gated = _packed_gated(parts, self._dtype)
        if gated is None:
            super()._pack(parts)
        else:
            self._at_once = True
            self.runs = [_Run(0, self.outputs, gated, None)]


class QuantizedEmbedding(nn.Module):
    """Look up vectors in a quantized table, as `Embedding` does."""

    def __init__(self, entries: int, width: int) -> None:
        super().__init__()
        self.slot = Slot(entries, width, torch.empty(0))
        self.runs: list[_Run] = []

    def forward(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor | None = None,
        position_table: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Look up ids: int64 [tokens] → fp32 [tokens, width]; see `Embedding.forward`."""
        kernels, weight = kernels_for(ids.device), self.runs[0].weight
        if isinstance(weight, nn.Parameter):  # as outliers make it
            return kernels.embed(ids, weight, positions, position_table)
        x = kernels.quantized_embed(ids, weight)
        if positions is None or position_table is None:
            return x
        return x + position_table[positions]

    def weight_targets(self, prefix: str) -> Iterator[tuple[str, Target]]:
        yield f"{prefix}.weight", self.slot

    def pack(self) -> None:
        self.runs = _packed_runs([self.slot.take_whole()], None, self.slot.dtype)

    @property
    def sizes(self) -> tuple[int, int]:
        return _sizes(self.runs)


class QuantizedHead(nn.Module):
    """Compute logits by a quantized matrix, its own or the embedding's, as `LogitsHead` does."""

    def __init__(
        self, vocab_size: int, width: int, tied_to: Embedding | QuantizedEmbedding | None
    ) -> None:
        super().__init__()
        assert tied_to is None or isinstance(tied_to, QuantizedEmbedding)
        self.tied_to = tied_to
        self.slot = Slot(vocab_size, width, torch.empty(0))
        self.own_runs: list[_Run] = []

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Compute logits in fp32. hidden: [n, width] → [n, vocabulary]."""
        run = (self.own_runs if self.tied_to is None else self.tied_to.runs)[0]
        if isinstance(run.weight, nn.Parameter):
            return kernels_for(hidden.device).logits(hidden, run.weight)
        shape, dtype = (len(hidden), self.slot.shape[0]), _wide(hidden.dtype)
        out = torch.empty(shape, dtype=dtype, device=hidden.device)
        run.into(hidden, out)
        return out

    def weight_targets(self, prefix: str) -> Iterator[tuple[str, Target]]:
        if self.tied_to is None:
            yield f"{prefix}.weight", self.slot

    def untie(self, weight: torch.Tensor) -> None:
        """Give the head plain numbers of its own, before it is packed. [vocabulary, width]."""
        self.tied_to = None
        self.slot.fill(Filling(weight))

    def tie(self, table: QuantizedEmbedding) -> None:
        """Forget codes of its own, before they are packed, and use the embeddings'."""
        self.tied_to = table
        self.slot.take()
        self.slot.outliers = None

    def pack(self) -> None:
        if self.tied_to is None:
            self.own_runs = _packed_runs([self.slot.take_whole()], None, self.slot.dtype)

    @property
    def sizes(self) -> tuple[int, int]:
        return _sizes(self.own_runs)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return fp32, or fp64 of fp64: what products are added up in."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def _packed_runs(
    parts: Sequence[Matrix], bias: torch.Tensor | None, dtype: torch.dtype
) -> list[_Run]:
    """Pack matrices that stand one below the other: as few runs as their kinds allow.

    dtype: of the rows that they will multiply.
    """
    runs: list[_Run] = []
    start = 0
    for together in _neighbours(parts):
        stop = start + sum(part.shape[0] for part in together)
        runs.append(
            _Run(start, stop, _packed(together, dtype), None if bias is None else bias[start:stop])
        )
        start = stop
    return runs


def _packed_gated(parts: Sequence[Matrix], dtype: torch.dtype) -> PackedWeight | None:
    """Pack gate above up for a kernel that gates its product, if there is one for them."""
    together = _neighbours(parts)
    quantized = [part for part in together[0] if isinstance(part, QuantizedWeight)]
    if len(together) > 1 or not quantized:
        return None
    whole = joined(quantized)
    pack = kernels_for(whole.codes.device).pack_quantized_gated
    return None if pack is None else pack(whole, dtype)


def _neighbours(parts: Sequence[Matrix]) -> list[list[Matrix]]:
    """Group neighbours of one kind: plain numbers, or codes that `joined` can put together."""
    groups: list[list[Matrix]] = []
    for part in parts:
        last = groups[-1][0] if groups else None
        if isinstance(part, QuantizedWeight):
            joins = isinstance(last, QuantizedWeight) and alike(last, part)
        else:
            joins = isinstance(last, torch.Tensor)
        if joins:
            groups[-1].append(part)
        else:
            groups.append([part])
    return groups


def _packed(together: list[Matrix], dtype: torch.dtype) -> PackedWeight | nn.Parameter:
    """Join matrices of one kind and give them to the kernels."""
    quantized = [part for part in together if isinstance(part, QuantizedWeight)]
    if quantized:
        whole = joined(quantized)
        return kernels_for(whole.codes.device).pack_quantized(whole, dtype)
    plain = torch.cat([part for part in together if isinstance(part, torch.Tensor)])
    return nn.Parameter(kernels_for(plain.device).pack_weight(plain), requires_grad=False)


def _sizes(runs: Sequence[_Run]) -> tuple[int, int]:
    """Return (weights, bytes that they take)."""
    count = sum(math.prod(run.weight.shape) for run in runs)
    size = sum(
        run.weight.nbytes if isinstance(run.weight, nn.Parameter) else run.weight.num_bytes
        for run in runs
    )
    return count, size
