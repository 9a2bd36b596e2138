"""Hold the inputs of a captured decode step in fixed memory, filled before each replay.

CUDA graphs and the CPU's tapes both read a step's tokens, positions, slots, lengths and block
tables from here.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import torch

from engine.kernels import asynchronous, kernels_for
from engine.kernels.batch import AttentionBatch
from engine.placeholders import UNKNOWN
from engine.worker.in_flight import DrawnTokens
from engine.worker.step_inputs import StepInputs
from engine.worker.transfers import STAGED, to_device

_FIELDS = 5  # token ids, positions, slots, places in DrawnTokens, lengths (32 bits each)

DecodeOutputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Outputs of a captured step: hidden [rows, width], logits [rows, vocab], `greatest` of these
[rows], so that with greedy rows only nothing is left to launch after the replay."""


class DecodeInputs:
    """Hold tensors for up to `max_rows` rows of one token each.

    All but the block tables lie side by side, so that one copy brings them. The tables are copied
    only when one has grown or the step has other rows.
    """

    def __init__(
        self, max_rows: int, table_width: int, block_size: int, device: torch.device
    ) -> None:
        self.block_size = block_size
        self.device = device
        self._packed = torch.zeros((_FIELDS, max_rows), dtype=torch.int64, device=device)
        self.token_ids, self.positions, self.slots, self.places, contexts = self._packed
        self.contexts = contexts.view(torch.int32)[:max_rows]
        self.tables = torch.zeros((max_rows, table_width), dtype=torch.int32, device=device)
        self.query_start = torch.arange(max_rows + 1, dtype=torch.int32, device=device)
        # The host writes into the tensors themselves on a CPU, else into pinned memory.
        shape, ahead = self._packed.shape, asynchronous(device)
        self._staged = deque(
            _fields(torch.zeros(shape, dtype=torch.int64, pin_memory=True))
            if ahead
            else _fields(self._packed)
            for _ in range(STAGED)
        )
        self._host_tables = self.tables.numpy() if device.type == "cpu" else None
        self._tables_of: tuple[int, int, bytes] | None = None  # whose tables are here now

    def fill(self, inputs: StepInputs, size: int, drawn: DrawnTokens | None) -> None:
        """Copy a step's rows here from the host, without waiting for the copy.

        Rows up to `size` become padding: slot −1 (nothing is written), context 0 (nothing is read).

        drawn: where tokens are that the host doesn't know yet.
        """
        rows = inputs.num_rows
        self._staged.rotate()
        staged, fields, contexts = self._staged[0]
        if rows < size:
            fields[:, rows:size] = 0
            fields[2, rows:size] = -1
            contexts[rows:size] = 0
        fields[0, :rows] = inputs.token_ids
        fields[1, :rows] = inputs.positions
        fields[2, :rows] = inputs.slot_mapping
        if drawn is not None:
            fields[3, :rows] = drawn.places(inputs.seats)
        contexts[:rows] = inputs.contexts
        self.fill_tables(inputs)
        if drawn is not None and not (inputs.token_ids == UNKNOWN).any():
            drawn = None
        if staged is not self._packed:
            tokens = None if drawn is None else drawn.tokens
            kernels_for(self.device).take_inputs(self._packed, staged, size, tokens)
        elif drawn is not None:
            drawn.fill(self.token_ids[:rows], self.places[:rows])

    def fill_tables(self, inputs: StepInputs) -> None:
        """Copy the rows' block tables, unless they are here already."""
        width = inputs.table_width
        tables_of = inputs.table_version, width, inputs.seats.tobytes()
        if tables_of != self._tables_of:
            if self._host_tables is not None:
                self._host_tables[: inputs.num_rows, :width] = inputs.block_tables
            else:
                tables = to_device(inputs.block_tables, self.device)
                self.tables[: inputs.num_rows, :width] = tables
            self._tables_of = tables_of

    def batch(self, size: int) -> AttentionBatch:
        """Return the first `size` rows as a batch of any length.

        What Python decides from lengths (grids, splits) is decided for the longest.
        """
        longest = self.tables.shape[1] * self.block_size
        return AttentionBatch(
            positions=self.positions[:size],
            slot_mapping=self.slots[:size],
            block_tables=self.tables[:size],
            query_start=self.query_start[: size + 1],
            context_lens=self.contexts[:size],
            num_decode_rows=size,
            block_size=self.block_size,
            query_lens=[1] * size,
            context_lens_list=[longest] * size,
            max_context_len=longest,
        )


def _fields(packed: torch.Tensor) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Split a packed tensor of the host into its fields.

    Also returns the last one, lengths, as int32.
    """
    fields = packed.numpy()
    return packed, fields, fields[4].view(np.int32)
