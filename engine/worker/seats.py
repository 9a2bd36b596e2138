"""Keep what the worker knows of each sequence between steps, one seat for each sequence.

A seat is one line in arrays that are allocated once: a sequence's tokens, its block table and its
sampling parameters. A plan brings only what changed (`NewRow`, new blocks), the worker appends the
tokens that it draws, and a few NumPy calls gather a step's tensors from the arrays.
"""

from __future__ import annotations

from operator import attrgetter

import numpy as np

from engine.core.messages import NewBlocks, NewRow, StepPlan
from engine.placeholders import UNKNOWN
from engine.rounding import ceil_div
from engine.worker.step_inputs import StepInputs

_request_id, _start, _samples = map(attrgetter, ("request_id", "start", "samples"))


class Seats:
    """Hold `num_seats` seats, each for a sequence of at most `max_model_len` tokens."""

    def __init__(self, num_seats: int, max_model_len: int, block_size: int) -> None:
        self.block_size = block_size
        self.max_model_len = max_model_len
        # One more token, because the overlapped loop may compute one step past a sequence's end.
        self.tokens = np.zeros((num_seats, max_model_len + 1), np.int32)
        width = ceil_div(max_model_len + 1, block_size)
        self.block_table = np.zeros((num_seats, width), np.int32)
        self._table_version = 0
        self._new: dict[int, NewRow] = {}  # by seat, as each sequence arrived
        self._prompt_logprobs: set[int] = set()  # seats whose sequences want them
        self._seats: dict[str, int] = {}
        self._free = list(range(num_seats - 1, -1, -1))

    def __len__(self) -> int:
        return len(self._seats)

    def of(self, request_id: str) -> int:
        return self._seats[request_id]

    def new(self, seat: int) -> NewRow:
        """Return the `NewRow` that the sequence in a seat arrived with."""
        return self._new[seat]

    @property
    def any_prompt_logprobs(self) -> bool:
        return bool(self._prompt_logprobs)

    def drop(self, request_id: str) -> int | None:
        """Forget a sequence. Return the seat it had, or None if it had none."""
        seat = self._seats.pop(request_id, None)
        if seat is not None:
            self._free.append(seat)
            del self._new[seat]
            self._prompt_logprobs.discard(seat)
        return seat

    def put(self, request_id: str, row: NewRow) -> int:
        """Add a sequence, in the seat that it already has or in a free one.

        Raises RuntimeError when there is no free seat, ValueError when it is longer than
        max_model_len.
        """
        if len(row.token_ids) > self.max_model_len:
            raise ValueError(
                f"sequence {request_id} has {len(row.token_ids)} tokens; "
                f"the context is {self.max_model_len}"
            )
        seat = self._seats.get(request_id)
        if seat is None:
            if not self._free:
                raise RuntimeError(
                    f"no seat for sequence {request_id}: all {len(self._seats)} are taken; "
                    "the plan must drop sequences before it brings new ones"
                )
            seat = self._seats[request_id] = self._free.pop()
        self.tokens[seat, : len(row.token_ids)] = row.token_ids
        self.block_table[seat] = 0
        self._table_version += 1
        self._new[seat] = row
        if row.params.prompt_logprobs is None:
            self._prompt_logprobs.discard(seat)
        else:
            self._prompt_logprobs.add(seat)
        return seat

    def update_tables(self, tables: dict[str, NewBlocks]) -> None:
        """Write the blocks that a plan brings."""
        for request_id, (start, blocks) in tables.items():
            self.block_table[self._seats[request_id], start : start + len(blocks)] = blocks
        self._table_version += len(tables)

    def expect(self, seats: np.ndarray, positions: np.ndarray) -> None:
        """Mark positions whose tokens the device is about to draw. Both int64 [rows]."""
        self.tokens[seats, positions] = UNKNOWN

    def append(self, seats: np.ndarray, positions: np.ndarray, token_ids: np.ndarray) -> None:
        """Write the tokens that were drawn. All int64 [rows]."""
        self.tokens[seats, positions] = token_ids

    def write_proposals(self, plan: StepPlan, proposed: dict[str, list[int]]) -> None:
        """Write a plan's proposals behind the tokens of their sequences; 0 for `UNKNOWN` ones."""
        rows = plan.rows[-sum(map(len, proposed.values())) :]
        proposals = [max(token, 0) for token_ids in proposed.values() for token in token_ids]
        seats = [self._seats[row.request_id] for row in rows]
        self.tokens[seats, [row.start for row in rows]] = proposals

    def gather(self, plan: StepPlan) -> StepInputs:
        """Gather the numbers of a step from the rows of its plan (at least one)."""
        rows, order, count = plan.rows, None, len(plan.rows)
        lengths = [1] * count if plan.num_tokens == count else [row.num_tokens for row in rows]
        decodes = lengths.count(1)
        if decodes < count and 1 in lengths[decodes:]:
            order = sorted(range(count), key=lambda i: lengths[i] != 1)  # stable
            rows = [rows[i] for i in order]
            lengths = [lengths[i] for i in order]
        seats = np.fromiter(map(self._seats.__getitem__, map(_request_id, rows)), np.int64, count)
        starts = np.fromiter(map(_start, rows), np.int64, count)
        if decodes == count:
            contexts, query_start = starts + 1, np.arange(count + 1)
            positions, owner = starts, seats
        else:
            query_lens = np.array(lengths)
            contexts = starts + query_lens
            query_start = np.zeros(count + 1, np.int64)
            np.cumsum(query_lens, out=query_start[1:])
            offset = np.repeat(starts - query_start[:-1], query_lens)
            positions = offset + np.arange(query_start[-1])
            owner = np.repeat(seats, query_lens)
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
            seats=seats,
            table_version=self._table_version,
            block_size=size,
            all_tables=self.block_table,
            proposed=plan.proposed,
        )
