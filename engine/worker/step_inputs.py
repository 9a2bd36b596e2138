"""Hold the numbers of one step, gathered from the seats of its rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch

from engine.kernels.batch import AttentionBatch
from engine.rounding import ceil_div
from engine.trace.events import StepRow
from engine.worker.transfers import to_device

T = TypeVar("T")


@dataclass
class StepInputs:
    """Hold the numbers of a step, on the host. Rows with one token come first.

    They become tensors where they are needed: a captured step copies them into its own memory.
    """

    token_ids: np.ndarray  # int32 [tokens]
    positions: np.ndarray  # int64 [tokens]
    slot_mapping: np.ndarray  # int64 [tokens], where in the cache each token's K and V go
    contexts: np.ndarray  # int64 [rows], tokens in the cache after this step
    query_lens: list[int]  # of each row
    query_start: np.ndarray  # int64 [rows + 1]
    num_decode_rows: int
    order: list[int] | None  # each row's place in the plan; None: in the plan's order
    rows: list[StepRow]  # in batch order
    samples: list[int]  # of each row
    seats: np.ndarray  # int64 [rows], in batch order
    table_version: int  # if it differs from the last one, some block table may have changed
    block_size: int
    all_tables: np.ndarray  # int32 [seats, width], the tables of all sequences
    proposed: dict[str, list[int]] = field(default_factory=dict)  # see `StepPlan`

    @property
    def num_rows(self) -> int:
        return len(self.rows)

    def in_plan_order(self, of_rows: list[T]) -> list[T]:
        """Reorder values of the batch's rows into the plan's order."""
        if self.order is None:
            return of_rows
        placed = list(of_rows)
        for place, one in zip(self.order, of_rows):
            placed[place] = one
        return placed

    @property
    def longest(self) -> int:
        """Return the number of tokens of the longest context."""
        return int(self.contexts.max())

    @property
    def table_width(self) -> int:
        """Return the number of blocks of the longest context."""
        return ceil_div(self.longest, self.block_size)

    @property
    def block_tables(self) -> np.ndarray:
        """Return the rows' block tables, int32 [rows, table_width]."""
        return self.all_tables[self.seats, : self.table_width]

    def last_of(self, rows: list[int]) -> np.ndarray:
        """Return the place of the last token of each of these rows, int64 [rows]."""
        return self.query_start[1:][rows] - 1

    def ids(self, device: torch.device) -> torch.Tensor:
        """Return the token ids, int64, on a device."""
        return to_device(self.token_ids.astype(np.int64), device)

    def attention(self, device: torch.device) -> AttentionBatch:
        """Return everything else of the step, on a device."""
        host = AttentionBatch(
            positions=torch.from_numpy(self.positions),
            slot_mapping=torch.from_numpy(self.slot_mapping),
            block_tables=torch.from_numpy(self.block_tables),
            query_start=torch.from_numpy(self.query_start.astype(np.int32)),
            context_lens=torch.from_numpy(self.contexts.astype(np.int32)),
            num_decode_rows=self.num_decode_rows,
            block_size=self.block_size,
            query_lens=self.query_lens,
            context_lens_list=self.contexts.tolist(),
            max_context_len=self.longest,
        )
        return host if device.type == "cpu" else host.to(device)
