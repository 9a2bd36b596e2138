"""The inputs of a captured decode step: the same memory each time, filled anew before each replay.

CUDA graphs and the CPU's tapes both read a step's tokens, positions, slots, lengths and block
tables from here.
"""

from __future__ import annotations

import torch

from engine.layers.attention_batch import AttentionBatch

DecodeOutputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Of a captured step: hidden [rows, width], logits [rows, vocab], `greatest` of these [rows]: with
greedy rows alone nothing is left to launch after the replay."""


class DecodeInputs:
    """Tensors for up to `max_rows` rows of one token each."""

    def __init__(
        self, max_rows: int, table_width: int, block_size: int, device: torch.device
    ) -> None:
        self.block_size = block_size
        self.token_ids = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self.positions = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self.slots = torch.full((max_rows,), -1, dtype=torch.int64, device=device)
        self.contexts = torch.zeros(max_rows, dtype=torch.int32, device=device)
        self.tables = torch.zeros((max_rows, table_width), dtype=torch.int32, device=device)
        self.query_start = torch.arange(max_rows + 1, dtype=torch.int32, device=device)

    def fill(self, token_ids: torch.Tensor, batch: AttentionBatch, size: int) -> None:
        """Copy a step's rows here, from the host or the device. token_ids: int64 [rows]. Rows up to
        `size` become padding: slot −1 (nothing is written), context 0 (nothing is read)."""
        rows = batch.num_rows
        self.token_ids[:rows].copy_(token_ids, non_blocking=True)
        self.positions[:rows].copy_(batch.positions, non_blocking=True)
        self.slots[:rows].copy_(batch.slot_mapping, non_blocking=True)
        self.contexts[:rows].copy_(batch.context_lens, non_blocking=True)
        width = batch.block_tables.shape[1]
        self.tables[:rows, :width].copy_(batch.block_tables, non_blocking=True)
        if rows < size:
            self.slots[rows:size].fill_(-1)
            self.contexts[rows:size].zero_()

    def batch(self, size: int) -> AttentionBatch:
        """The first `size` rows as a batch, of any length: what Python decides from lengths (grids,
        splits) it decides for the longest."""
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
