"""Keep what the worker knows of each sequence between steps: the persistent rows.

A sequence has a slot: one line in arrays that are allocated once, for its tokens, its block table
and its sampling parameters. A plan brings only what changed (`NewRow`, new blocks), the worker
appends the tokens that it draws, and a few NumPy calls gather a step's tensors from the arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import TypeVar

import numpy as np
import torch

from engine.core.messages import NewBlocks, NewRow, StepPlan
from engine.kernels.batch import AttentionBatch
from engine.rounding import ceil_div
from engine.tokens import UNKNOWN
from engine.trace.events import StepRow
from engine.worker.transfers import to_device

T = TypeVar("T")
_request_id, _start, _samples = map(attrgetter, ("request_id", "start", "samples"))


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
    slots: np.ndarray  # int64 [rows], in batch order
    table_version: int  # if it differs from the last one, some block table may have changed
    block_size: int
    all_tables: np.ndarray  # int32 [slots, width], the tables of all sequences

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
        return self.all_tables[self.slots, : self.table_width]

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


class BatchRows:
    """Hold slots for at most `num_slots` sequences of at most `max_model_len` tokens."""

    def __init__(self, num_slots: int, max_model_len: int, block_size: int) -> None:
        self.block_size = block_size
        self.max_model_len = max_model_len
        # One more token, because the overlapped loop may compute one step past a sequence's end.
        self.tokens = np.zeros((num_slots, max_model_len + 1), np.int32)
        width = ceil_div(max_model_len + 1, block_size)
        self.block_table = np.zeros((num_slots, width), np.int32)
        self._table_version = 0
        self._new: dict[int, NewRow] = {}  # by slot, as each sequence arrived
        self._prompt_logprobs: set[int] = set()  # slots whose sequences want them
        self._slots: dict[str, int] = {}
        self._free = list(range(num_slots - 1, -1, -1))

    def __len__(self) -> int:
        return len(self._slots)

    def slot(self, request_id: str) -> int:
        return self._slots[request_id]

    def new(self, slot: int) -> NewRow:
        """Return the `NewRow` that the sequence in a slot arrived with."""
        return self._new[slot]

    @property
    def any_prompt_logprobs(self) -> bool:
        return bool(self._prompt_logprobs)

    def drop(self, request_id: str) -> int | None:
        """Forget a sequence. Return the slot it had, or None if it had none."""
        slot = self._slots.pop(request_id, None)
        if slot is not None:
            self._free.append(slot)
            del self._new[slot]
            self._prompt_logprobs.discard(slot)
        return slot

    def put(self, request_id: str, row: NewRow) -> int:
        """Add a sequence, in the slot that it already has or in a free one.

        Raises RuntimeError when there is no free slot, ValueError when it is longer than
        max_model_len.
        """
        if len(row.token_ids) > self.max_model_len:
            raise ValueError(
                f"sequence {request_id} has {len(row.token_ids)} tokens; "
                f"the context is {self.max_model_len}"
            )
        slot = self._slots.get(request_id)
        if slot is None:
            if not self._free:
                raise RuntimeError(
                    f"no row for sequence {request_id}: all {len(self._slots)} are taken; "
                    "the plan must drop sequences before it brings new ones"
                )
            slot = self._slots[request_id] = self._free.pop()
        self.tokens[slot, : len(row.token_ids)] = row.token_ids
        self.block_table[slot] = 0
        self._table_version += 1
        self._new[slot] = row
        if row.params.prompt_logprobs is None:
            self._prompt_logprobs.discard(slot)
        else:
            self._prompt_logprobs.add(slot)
        return slot

    def update_tables(self, tables: dict[str, NewBlocks]) -> None:
        """Write the blocks that a plan brings."""
        for request_id, (start, blocks) in tables.items():
            self.block_table[self._slots[request_id], start : start + len(blocks)] = blocks
        self._table_version += len(tables)

    def expect(self, slots: np.ndarray, positions: np.ndarray) -> None:
        """Mark positions whose tokens the device is about to draw. Both int64 [rows]."""
        self.tokens[slots, positions] = UNKNOWN

    def append(self, slots: np.ndarray, positions: np.ndarray, token_ids: np.ndarray) -> None:
        """Write the tokens that were drawn. All int64 [rows]."""
        self.tokens[slots, positions] = token_ids

    def gather(self, plan: StepPlan) -> StepInputs:
        """Gather the numbers of a step from the rows of its plan (at least one)."""
        rows, order, count = plan.rows, None, len(plan.rows)
        lengths = [1] * count if plan.num_tokens == count else [row.num_tokens for row in rows]
        decodes = lengths.count(1)
        if decodes < count and 1 in lengths[decodes:]:
            order = sorted(range(count), key=lambda i: lengths[i] != 1)  # stable
            rows = [rows[i] for i in order]
            lengths = [lengths[i] for i in order]
        slots = np.fromiter(map(self._slots.__getitem__, map(_request_id, rows)), np.int64, count)
        starts = np.fromiter(map(_start, rows), np.int64, count)
        if decodes == count:
            contexts, query_start = starts + 1, np.arange(count + 1)
            positions, owner = starts, slots
        else:
            query_lens = np.array(lengths)
            contexts = starts + query_lens
            query_start = np.zeros(count + 1, np.int64)
            np.cumsum(query_lens, out=query_start[1:])
            offset = np.repeat(starts - query_start[:-1], query_lens)
            positions = offset + np.arange(query_start[-1])
            owner = np.repeat(slots, query_lens)
        size = self.block_size
        pages, places = np.divmod(positions, size)
        blocks = self.block_table[owner, pages]
        return StepInputs(
            token_ids=self.tokens[owner, positions],
            positions=positions,
            slot_mapping=np.multiply(blocks, size, dtype=np.int64) + places,
            contexts=contexts,
            query_lens=lengths,
            query_start=query_start,
            num_decode_rows=decodes,
            order=order,
            rows=rows,
            samples=list(map(_samples, rows)),
            slots=slots,
            table_version=self._table_version,
            block_size=size,
            all_tables=self.block_table,
        )
