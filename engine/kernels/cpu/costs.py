"""Count from its shapes what a launch of a native kernel moves and computes, for the record.

The first argument of each function is what the kernel returned.
"""

from __future__ import annotations

from enum import Enum
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

import torch

from engine.kernels.cost import Cost, attention_work
from engine.rounding import ceil_div
from engine.trace.wording import count

if TYPE_CHECKING:
    from engine.kernels.batch import AttentionBatch, AttentionSpec, LayerCache

IN_PAIRS = ("amx", "avx512_bf16")
"""Variants that multiply pairs of bf16 (InPairs in quantized_few.h, attention_pairs.h)."""
FEW_ROWS = 64  # with matrix tiles; docs/archive/NOTES.md


class Panels(Protocol):
    """Describe a quantized weight: see `quantized_panels.PackedPanels`."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def num_bytes(self) -> int: ...

    @property
    def kind(self) -> Enum: ...

    @property
    def group(self) -> int: ...

    @property
    def x_group(self) -> int: ...


class TablesOfRows(Protocol):
    """Describe a weight whose rows have tables: see `table_ops.PackedTables`."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def num_bytes(self) -> int: ...


def linear_cost(
    _: None, x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor, variant: str
) -> Cost:
    rows = len(x)
    what = (
        "reading the weights once is the whole cost"
        if rows <= FEW_ROWS
        else "multiplying takes longer than reading the weights"
    )
    return Cost(
        [y.shape[1]],
        weight.nbytes + x.nbytes + y.nbytes,
        2 * rows * weight.numel(),
        str(weight.dtype).removeprefix("torch."),
        f"{count(rows, 'row')}: {what}; variant {variant}",
    )


def quantized_cost(
    _: None, x: torch.Tensor, weight: Panels, out: torch.Tensor, variant: str
) -> Cost:
    rows, (outputs, inputs) = len(x), weight.shape
    pairs = x.dtype is torch.bfloat16 and variant in IN_PAIRS
    flops_type = "bfloat16" if pairs else "float32"
    activations = f"; activations int8 in groups of {weight.x_group}" if weight.x_group else ""
    return Cost(
        [out.shape[1]],
        weight.num_bytes + x.nbytes + out.numel() * out.element_size(),
        2 * rows * outputs * inputs,
        "int8" if weight.x_group else flops_type,
        f"{count(rows, 'row')} of {weight.kind.name.lower()} in groups of {weight.group}: "
        f"{8 * weight.num_bytes / (outputs * inputs):.2f} bits a weight{activations};"
        f" variant {variant}",
    )


def tables_cost(
    _: None, x: torch.Tensor, weight: TablesOfRows, out: torch.Tensor, variant: str
) -> Cost:
    rows, (outputs, inputs) = len(x), weight.shape
    return Cost(
        [outputs],
        weight.num_bytes + x.nbytes + out.numel() * out.element_size(),
        2 * rows * outputs * inputs,
        "float32",
        f"{count(rows, 'row')} of table4, each output with its own:"
        f" {8 * weight.num_bytes / (outputs * inputs):.2f} bits a weight; variant {variant}",
    )


def quantized_embed_cost(_: None, table: Panels, out: torch.Tensor) -> Cost:
    read = len(out) * table.num_bytes // table.shape[0]
    return Cost([len(out)], read + out.nbytes, out.numel())


def mask_cost(_: None, logits: torch.Tensor, masks: torch.Tensor) -> Cost:
    rows = len(masks)
    touched = 2 * rows * logits.shape[1] * logits.element_size()
    return Cost([rows], masks.nbytes + touched, 0, why="one mask for each row with a grammar")


def draw_allowed_cost(
    _: None, logits: torch.Tensor, draws: torch.Tensor, masks: torch.Tensor | None
) -> Cost:
    drawn, masked = draws.shape[1], int((draws[5] >= 0).sum())
    read = (drawn - masked) * logits[0].nbytes
    read += 0 if masks is None else masked * masks[0].nbytes
    why = "of logits with a mask only what it allows is read" if masked else ""
    return Cost([drawn], draws.nbytes + read, 0, why=why)


def write_cost(_: None, k: torch.Tensor, v: torch.Tensor, cache: LayerCache) -> Cost:
    written = (k.numel() + v.numel()) * cache.k.element_size()
    return Cost([len(k)], k.nbytes + v.nbytes + written, 0)


def attention_cost(
    tasks: int,
    q: torch.Tensor,
    cache: LayerCache,
    batch: AttentionBatch,
    spec: AttentionSpec,
    rows: range,
    pairs: bool,
) -> Cost:
    """Count the cost of attention.

    tasks: how many the kernel cut the rows into. pairs: bf16 is multiplied in pairs, on matrix
    tiles or without, where heads fill vectors of them.
    """
    work = attention_work(q, cache, batch, spec, rows)
    again = _read_once(batch, spec, rows) * 2 * spec.num_kv_heads * spec.head_dim
    why = (
        f"{count(len(rows), 'row')} × {count(spec.num_kv_heads, 'key head')}, cut into"
        f" {count(tasks, 'task')}"
    )
    # `on_tiles` and `in_pairs` in attention_task.h
    in_bf16 = pairs and cache.k.dtype is torch.bfloat16 and spec.head_dim % 32 == 0
    dtype = "bfloat16" if in_bf16 else "float32"
    num_bytes = work.num_bytes - again * cache.k.element_size()
    return Cost([tasks], num_bytes, work.flops, dtype, why)


def _read_once(batch: AttentionBatch, spec: AttentionSpec, rows: range) -> int:
    """Count the positions that a row needn't read again: it goes on with the row before it.

    Such rows are attended as one chunk (`goes_on` in attention_plan.h).
    """
    lengths, contexts, found = batch.query_lens, batch.context_lens_list, 0
    for row, after in pairwise(rows):
        context = contexts[row]
        if lengths[row] == lengths[after] == 1 and contexts[after] == context + 1:
            pages = ceil_div(context, batch.block_size)
            tables = batch.block_tables[:, :pages]
            if torch.equal(tables[row], tables[after]):
                found += min(context + 1, spec.sliding_window or context + 1) - 1
    return found


def norm_cost(_: None, x: torch.Tensor, out: torch.Tensor, total: torch.Tensor) -> Cost:
    """Count a norm. total: what the residual became, or x itself if there was none."""
    moved = x.nbytes + out.nbytes + (0 if total is x else 2 * total.nbytes)
    return Cost([x.numel() // x.shape[-1]], moved, 4 * x.numel())


def embed_cost(_: None, table: torch.Tensor, out: torch.Tensor) -> Cost:
    return Cost([len(out)], out.numel() * table.element_size() + out.nbytes, out.numel())


def elementwise_cost(_: None, x: torch.Tensor, out: torch.Tensor) -> Cost:
    return Cost([len(x)], x.nbytes + out.nbytes, 4 * x.numel())
