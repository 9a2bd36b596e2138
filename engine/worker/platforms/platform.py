"""State what the worker asks of a kind of device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from engine.config import EngineConfig
from engine.kernels.ranks import Ranks
from engine.trace.recorder import Recorder
from engine.worker.cores import Cores
from engine.worker.graphs.step_graphs import GraphShape, StepGraphs
from engine.worker.memory.kv_sizing import KVMemory


@dataclass(frozen=True)
class Trial:
    """Hold the largest step, ready to be computed, on pages that stand for the cache."""

    compute: Callable[[], object]
    draw_bytes: int  # what drawing for every seat takes, beside what computing does
    graph_shape: GraphShape | None  # None: no graphs are wanted
    draft_shape: GraphShape | None = None  # the same of the draft model


class Place(NamedTuple):
    """Say which rank of a divided model this process is, and where it meets the others."""

    file: int  # what ranks join by: a file without a name, which all of them have open
    rank: int
    size: int  # number of ranks
    connections: Sequence[int]  # files of which the system closes the other end with its process
    patience_s: float = 0.0  # how long this rank waits for one that lives; 0: for ever


class Platform(Protocol):
    """Answer for one kind of device. No other part of the worker knows kinds."""

    device: torch.device
    overlaps: bool
    """Default of --async-scheduling: whether planning beside computing pays."""
    step_tokens: int
    """Default of --max-num-batched-tokens."""
    shares_memory: bool
    """Whether the KV cache, the host pool and all other programs share one memory."""
    tries_largest_step: bool
    """Whether `kv_memory` computes the largest step; if not, the warm-up computes long prompts."""

    def must_compile(self) -> bool:
        """Return whether `prepare` will compile kernels, for up to some minutes."""
        ...

    def prepare(self, config: EngineConfig, recorder: Recorder) -> Cores:
        """Set up the process before the model is loaded; returns the cores to bind."""
        ...

    def loaded(self) -> None:
        """Set up the process for steps, once all models are loaded."""
        ...

    def check_ranks(self, size: int) -> None:
        """Raise `ConfigError` if a model can't be divided among so many, whatever model it is."""
        ...

    def bytes_to_join(self, size: int) -> int:
        """Return the bytes of zeros of the file that ranks join by. Raises `ConfigError`."""
        ...

    def ranks(self, place: Place) -> Ranks:
        """Return what joins this process with the others, once all have called `meet`."""
        ...

    def kv_memory(
        self, share: float, trial: Callable[[], AbstractContextManager[Trial]]
    ) -> KVMemory:
        """Find the memory for the KV cache. share: of all, 0 to 1."""
        ...

    def has_graphs(self, kv_dtype: torch.dtype, recorder: Recorder) -> bool:
        """Return whether steps of our own models can be captured here."""
        ...

    def graphs(
        self, shape: GraphShape, recorder: Recorder, captured: list[int] | None = None
    ) -> StepGraphs:
        """Capture steps. captured: these numbers of rows only; None: all that may come."""
        ...
