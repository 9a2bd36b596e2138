"""Hold what attention needs of a step beside q, k and v: the batch, and the pages.

One `AttentionBatch` is built for each step and shared by all layers. Each layer has its own
`LayerCache`: the pages that hold its keys and values. A token's page and its place in it are one
number, its *slot*: `slot = block * block_size + offset`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch


class LayerKV(NamedTuple):
    """Describe the keys and values of one attention layer, per token, which its cache must hold."""

    num_kv_heads: int
    head_dim: int
    sliding_window: int | None = None  # tokens that a query sees, itself included; None: all


@dataclass
class LayerCache:
    """Hold the pages of one layer. `k`, `v`: [num_blocks, block_size, num_kv_heads, head_dim].

    Contiguous. Their dtype may differ from the model's: what is written is rounded to it, and
    attention is computed in it. Places that no row holds may contain anything, also NaN, left by
    earlier rows.
    """

    k: torch.Tensor
    v: torch.Tensor


@dataclass(frozen=True, eq=False)
class AttentionSpec:
    """Describe what distinguishes one attention layer from another, beside its weights."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float  # scores are q·k * scale
    sliding_window: int | None = None  # tokens that a query sees, itself included; None: all
    soft_cap: float | None = None  # scores become soft_cap * tanh(scores / soft_cap)
    sinks: torch.Tensor | None = None  # [num_heads], a score that takes weight and has no value


class QKNorms(NamedTuple):
    """Hold the weights of each head's RMSNorm, applied before rotation (Qwen3)."""

    q_weight: torch.Tensor  # [D]
    k_weight: torch.Tensor
    eps: float


@dataclass
class AttentionBatch:
    """State which tokens a step computes, for which rows, and where each row's keys and values lie.

    A row is one sequence; its tokens are adjacent. Rows with exactly one token (decode) come first.
    The Python copies of lengths are there so that no layer waits for the device.
    """

    positions: torch.Tensor  # int64 [tokens], each token's place in its own sequence, from 0
    slot_mapping: torch.Tensor  # int64 [tokens], the slot that its k and v are written to
    block_tables: torch.Tensor  # int32 [rows, width], each row's blocks; 0 where there is none
    query_start: torch.Tensor  # int32 [rows + 1], first token of each row, then their number
    context_lens: torch.Tensor  # int32 [rows], tokens in the cache after this step's write
    num_decode_rows: int
    block_size: int  # tokens in a page
    query_lens: list[int]  # of each row
    context_lens_list: list[int]  # of each row
    max_context_len: int
    lengths_on_device: bool = False
    """Whether the Python copies don't describe the step, because it is being captured:
    `query_start` and `context_lens` will say how its tokens are divided among rows. Rows may have
    any number of tokens, also 0; those with one come first. `num_decode_rows` means
    nothing then."""
    scratch: dict[Any, Any] = field(default_factory=dict)
    """Made by the first layer that needs it, reused by the others: gather indices, masks."""

    @property
    def num_rows(self) -> int:
        return len(self.query_lens)

    def to(self, device: torch.device) -> AttentionBatch:
        """Copy the batch to a device, without scratch and without waiting for the copies."""
        names = ("positions", "slot_mapping", "block_tables", "query_start", "context_lens")
        held = {name: getattr(self, name) for name in names}
        if device.type != "cpu":  # copying pageable memory would wait
            held = {name: tensor.pin_memory() for name, tensor in held.items()}
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in held.items()}
        return replace(self, **moved, scratch={})
