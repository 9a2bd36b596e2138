"""Run on a CPU: native kernels on bound cores, tapes, one memory for everything."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from engine.config import BUDGET, ConfigError, EngineConfig
from engine.kernels import cpu
from engine.kernels.cpu.build import BuildError
from engine.kernels.cpu.rank_ops import SharedMemoryRanks, shared_bytes
from engine.kernels.fp8_cache import LARGEST
from engine.rank_sizes import FLAG
from engine.trace.events import EngineWarning
from engine.trace.recorder import Recorder
from engine.worker import host
from engine.worker.batch_invariance import ON_A_CPU
from engine.worker.cores import Cores, cores_to_bind
from engine.worker.graphs.cpu_tapes import CpuTapes
from engine.worker.graphs.step_graphs import GraphShape
from engine.worker.memory.kv_sizing import KVMemory, gib
from engine.worker.platforms.platform import Place, Trial

RESERVE = 128 * 2**20
"""Bytes left for what steps, answers and the record will still take, where at least twice as many
are free. Pages cost memory when they are written, so a pool that is too large fails late."""


class CpuPlatform:
    """Answer as `Platform` for a CPU."""

    overlaps = False  # the loop and the kernels would share the same cores
    step_tokens = BUDGET
    shares_memory = True
    tries_largest_step = False

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def must_compile(self) -> bool:
        return cpu.must_compile()

    def prepare(self, config: EngineConfig, recorder: Recorder) -> Cores:
        if config.batch_invariant:
            recorder.record(EngineWarning(message=f"{ON_A_CPU}."))
        threads = config.cpu_threads or host.physical_cores()
        torch.set_num_threads(max(1, threads // config.tensor_parallel_size))
        native = cpu.native()
        host.drop_read_code()
        host.return_freed_memory()
        if native is None:
            recorder.record(EngineWarning(message=cpu.why()))
            return Cores()
        not_kept = cpu.not_kept()
        if not_kept:
            recorder.record(EngineWarning(message=not_kept))
        return Cores(cores_to_bind(torch.get_num_threads()), native.bind_threads)

    def loaded(self) -> None:
        host.keep_freed_memory()

    def check_ranks(self, size: int) -> None:
        pass  # as many as the option may name

    def bytes_to_join(self, size: int) -> int:
        try:
            return shared_bytes(size)
        except BuildError as error:
            raise ConfigError(f"{FLAG} is {size}, but {error}.") from None

    def ranks(self, place: Place) -> SharedMemoryRanks:
        memory = mmap.mmap(place.file, shared_bytes(place.size))
        return SharedMemoryRanks(
            memory, place.rank, place.size, place.connections, place.patience_s
        )

    def kv_memory(
        self, share: float, trial: Callable[[], AbstractContextManager[Trial]]
    ) -> KVMemory:
        return memory_for_pages(host.free_memory(), share)

    def has_graphs(self, kv_dtype: torch.dtype, recorder: Recorder) -> bool:
        """Return whether steps can be taped: not with 8-bit pages.

        There torch attends, up to the longest context, which can't be taped.
        """
        return cpu.available() and kv_dtype not in LARGEST

    def graphs(
        self, shape: GraphShape, recorder: Recorder, captured: list[int] | None = None
    ) -> CpuTapes:
        """Tape each number of rows when it first comes; `captured` changes nothing."""
        native = cpu.native()
        assert native is not None, "asked for tapes without native kernels"
        return CpuTapes(
            shape.model,
            shape.caches,
            shape.max_rows,
            shape.table_width,
            shape.block_size,
            native.replay,
            recorder,
        )


def memory_for_pages(free: host.FreeMemory, share: float) -> KVMemory:
    """Say how much of what is free the pool may have: `share` of it, less on a small machine."""
    num_bytes = int(free.num_bytes * share)
    why = f"{gib(free.num_bytes)} {free.source} beside the weights × {share:.2f}"
    beside = min(RESERVE, free.num_bytes // 2)
    if num_bytes > free.num_bytes - beside:
        num_bytes = free.num_bytes - beside
        why += f", and at least {gib(beside)} left for all else"
    return KVMemory(num_bytes, why, free.num_bytes)
