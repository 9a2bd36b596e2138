"""Define what rank 0 tells the other ranks and what they answer.

Rank 0 holds the rows, so a rank needs of a plan only which blocks move and the numbers of the step.
Messages are pickled: both ends are processes of one engine.
"""

from __future__ import annotations

import pickle
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
import torch

from engine.config import EngineConfig
from engine.trace.events import RankShare, StepRow
from engine.worker.step_inputs import StepInputs

Pairs = list[tuple[int, int]]


class Start(NamedTuple):
    """Say what to load. Answered by `Loaded` or `RankFailed`."""

    config: EngineConfig
    rank: int


class Loaded(NamedTuple):
    """Tell what a rank holds."""

    share: RankShare


class RankFailed(NamedTuple):
    """Tell why a rank ends."""

    why: str


class Meet(NamedTuple):
    """Find the other ranks, to join from now on."""


class Measure(NamedTuple):
    """Measure the memory for pages: what follows until `Tried` is the largest step.

    captured: steps will be captured. Answered by `Measured`.
    """

    captured: bool


class Tried(NamedTuple):
    """End the largest step."""


class Measured(NamedTuple):
    """Tell how much memory a rank has for pages: see `KVMemory`."""

    num_bytes: int
    why: str
    free_bytes: int


class Capture(NamedTuple):
    """Capture the steps that will be replayed, on the pages as they are."""


class MakePages(NamedTuple):
    """Make a KV cache of this rank's heads, in place of the one before."""

    num_blocks: int
    num_host_blocks: int
    dtype: torch.dtype
    table_width: int  # blocks of the longest sequence


class Move(NamedTuple):
    """Move blocks, in the order of a `StepPlan`."""

    swap_out: Pairs
    swap_in: Pairs
    copies: Pairs


class Compute(NamedTuple):
    """Compute the hidden states of a step; `taped`: by a tape, with the logits of every row."""

    taped: bool
    token_ids: np.ndarray
    positions: np.ndarray
    slot_mapping: np.ndarray
    contexts: np.ndarray
    query_lens: list[int]
    query_start: np.ndarray
    num_decode_rows: int
    block_tables: np.ndarray
    block_size: int

    @classmethod
    def of(cls, inputs: StepInputs, taped: bool) -> Compute:
        """Take what a rank needs of a step."""
        return cls(
            taped,
            inputs.token_ids,
            inputs.positions,
            inputs.slot_mapping,
            inputs.contexts,
            inputs.query_lens,
            inputs.query_start,
            inputs.num_decode_rows,
            inputs.block_tables,
            inputs.block_size,
        )

    def inputs(self, version: int) -> StepInputs:
        """Return the step's numbers. version: another one for each step; its tables are new."""
        rows = len(self.query_lens)
        return StepInputs(
            token_ids=self.token_ids,
            positions=self.positions,
            slot_mapping=self.slot_mapping,
            contexts=self.contexts,
            query_lens=self.query_lens,
            query_start=self.query_start,
            num_decode_rows=self.num_decode_rows,
            order=None,
            rows=[NOBODYS] * rows,  # whose they are, rank 0 knows
            samples=[0] * rows,
            seats=np.arange(rows),
            table_version=version,
            block_size=self.block_size,
            all_tables=self.block_tables,
        )


class Logits(NamedTuple):
    """Compute logits of hidden states of the step, for rank 0 to gather.

    places: of which of its tokens, int64 [n]; None: of all.
    """

    places: np.ndarray | None


NOBODYS = StepRow("", 0, 0, 0)


def send(connection: Connection, message: Any) -> None:
    """Send a message. Raises `OSError` when the other end has closed.

    Not by `Connection.send`: torch makes that put tensors into shared memory.
    """
    connection.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))


def receive(connection: Connection) -> Any:
    """Wait for a message. Raises `EOFError` or `OSError` when the other end has closed."""
    return pickle.loads(connection.recv_bytes())
