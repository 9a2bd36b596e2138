"""Hold the inputs of a captured step with prompts in fixed memory, filled before each replay.

See `decode_inputs.py` for steps without prompts.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np
import torch

from engine.kernels import asynchronous
from engine.kernels.batch import AttentionBatch
from engine.placeholders import UNKNOWN
from engine.rounding import ceil_div
from engine.worker.graphs.decode_inputs import DecodeInputs
from engine.worker.in_flight import DrawnTokens
from engine.worker.step_inputs import StepInputs
from engine.worker.transfers import STAGED

ALIGNED = 2  # 64-bit words: Triton compiles kernels anew for addresses that 16 doesn't divide


class Fields(NamedTuple):
    """Hold what a step's kernels read, one field after the other in one allocation."""

    token_ids: torch.Tensor  # int64 [tokens]
    positions: torch.Tensor  # int64 [tokens]
    slots: torch.Tensor  # int64 [tokens]
    places: torch.Tensor  # int64 [rows], in DrawnTokens
    query_start: torch.Tensor  # int32 [rows + 1]
    contexts: torch.Tensor  # int32 [rows]


class PromptInputs:
    """Hold tensors for steps of up to `max_tokens` tokens in up to `max_rows` rows."""

    def __init__(self, max_tokens: int, max_rows: int, decode: DecodeInputs) -> None:
        """Allocate the tensors. decode: its block tables are shared."""
        self.max_rows = max_rows
        self.decode = decode
        device = decode.device
        words = _words(max_tokens, self.rows_of(max_tokens))
        self._packed = torch.zeros(words, dtype=torch.int64, device=device)
        ahead = asynchronous(device)
        self._staged = deque(
            torch.zeros(words, dtype=torch.int64, pin_memory=True) if ahead else self._packed
            for _ in range(STAGED)
        )

    def rows_of(self, size: int) -> int:
        """Return the rows that a step of `size` tokens may have: each has a token."""
        return min(size, self.max_rows)

    def fields(self, size: int) -> Fields:
        """Return the fields of a step of up to `size` tokens."""
        return _fields(self._packed, size, self.rows_of(size))

    def fill(self, inputs: StepInputs, size: int, drawn: DrawnTokens | None) -> None:
        """Copy a step here from the host, without waiting for the copy.

        Tokens up to `size` become padding: slot −1 (nothing is written), in no row. Further rows
        have no tokens.

        drawn: where tokens are that the host doesn't know yet.
        """
        self._staged.rotate()
        staged, rows, tokens = self._staged[0], inputs.num_rows, len(inputs.token_ids)
        most, decoding = self.rows_of(size), inputs.num_decode_rows
        ids, positions, slots, places, query_start, contexts = (
            field.numpy() for field in _fields(staged, size, most)
        )
        ids[:tokens], ids[tokens:] = inputs.token_ids, 0
        positions[:tokens], positions[tokens:] = inputs.positions, 0
        slots[:tokens], slots[tokens:] = inputs.slot_mapping, -1
        query_start[: rows + 1], query_start[rows + 1 :] = inputs.query_start, tokens
        contexts[:rows], contexts[rows:] = inputs.contexts, 0
        if drawn is not None and not (inputs.token_ids == UNKNOWN).any():
            drawn = None
        if drawn is not None:
            places[:decoding] = drawn.places(inputs.seats[:decoding])
        if staged is not self._packed:
            words = _words(size, most)
            self._packed[:words].copy_(staged[:words], non_blocking=True)
        self.decode.fill_tables(inputs)
        if drawn is not None:  # only rows of one token have unknown ones; they come first
            on_device = self.fields(size)
            drawn.fill(on_device.token_ids[:decoding], on_device.places[:decoding])

    def batch(self, size: int) -> AttentionBatch:
        """Return a step of `size` tokens, divided among rows as `query_start` will say."""
        fields, rows = self.fields(size), self.rows_of(size)
        longest = self.decode.tables.shape[1] * self.decode.block_size
        return AttentionBatch(
            positions=fields.positions,
            slot_mapping=fields.slots,
            block_tables=self.decode.tables[:rows],
            query_start=fields.query_start,
            context_lens=fields.contexts,
            num_decode_rows=0,
            block_size=self.decode.block_size,
            query_lens=[size // rows + (row < size % rows) for row in range(rows)],
            context_lens_list=[longest] * rows,
            max_context_len=longest,
            lengths_on_device=True,
        )


def _lengths(tokens: int, rows: int) -> list[int]:
    """Return the 64-bit words of each field."""
    halves = (rows + 1, rows)  # these two have 32 bits
    words = [tokens] * 3 + [rows] + [ceil_div(count, 2) for count in halves]
    return [ceil_div(count, ALIGNED) * ALIGNED for count in words]


def _words(tokens: int, rows: int) -> int:
    return sum(_lengths(tokens, rows))


def _fields(packed: torch.Tensor, tokens: int, rows: int) -> Fields:
    """Return the fields of a step of this size in a packed tensor, int64 [words]."""
    lengths = _lengths(tokens, rows)
    ends = np.cumsum(lengths).tolist()
    ids, positions, slots, places, query_start, contexts = (
        packed[end - length : end] for end, length in zip(ends, lengths)
    )
    return Fields(
        ids[:tokens],
        positions[:tokens],
        slots[:tokens],
        places[:rows],
        query_start.view(torch.int32)[: rows + 1],
        contexts.view(torch.int32)[:rows],
    )
