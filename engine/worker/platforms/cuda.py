"""Run on CUDA: kernels that run beside the host, graphs, separate device memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from engine.config import CUDA_BUDGET, ConfigError, EngineConfig
from engine.kernels import kernels_for, make_batch_invariant
from engine.kernels.group_ranks import GroupRanks, why_not
from engine.rank_sizes import FLAG, NEVER_RUN
from engine.trace.events import EngineWarning
from engine.trace.recorder import Recorder
from engine.worker.cores import Cores
from engine.worker.graphs.cuda_graphs import CudaGraphs, sample_memory
from engine.worker.graphs.step_graphs import GraphShape
from engine.worker.memory import start_memory
from engine.worker.memory.kv_sizing import KVMemory, gib
from engine.worker.memory.start_memory import memory_for
from engine.worker.platforms.platform import Place, Trial


class CudaPlatform:
    """Answer as `Platform` for CUDA."""

    overlaps = True
    step_tokens = CUDA_BUDGET
    shares_memory = False
    tries_largest_step = True
    backend = "nccl"
    """What joins the GPUs of a divided model, as torch.distributed names it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def must_compile(self) -> bool:
        return False

    def prepare(self, config: EngineConfig, recorder: Recorder) -> Cores:
        if config.batch_invariant:
            make_batch_invariant()
        if config.tensor_parallel_size > 1:
            recorder.record(EngineWarning(message=f"{NEVER_RUN}."))
        if self.device.index is not None:
            torch.cuda.set_device(self.device)
        return Cores()

    def loaded(self) -> None:
        pass  # steps take memory of the device, which torch keeps

    def check_ranks(self, size: int) -> None:
        missing = why_not(self.backend)
        if missing:
            raise ConfigError(f"{FLAG} is {size}, but {missing}.")
        self._check_gpus(size)

    def _check_gpus(self, size: int) -> None:
        count = torch.cuda.device_count()
        if size > count:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            shown = "" if visible is None else f" (CUDA_VISIBLE_DEVICES is {visible!r})"
            raise ConfigError(
                f"{FLAG} is {size}, but this machine shows {count} GPU{'s' * (count != 1)}{shown},"
                f" and each rank needs one: give at most {count}."
            )

    def bytes_to_join(self, size: int) -> int:
        return 0

    def ranks(self, place: Place) -> GroupRanks:
        device = torch.device(self.device.type, place.rank)
        return GroupRanks(
            self.backend, device, place.file, place.rank, place.size, place.patience_s
        )

    def kv_memory(
        self, share: float, trial: Callable[[], AbstractContextManager[Trial]]
    ) -> KVMemory:
        """Measure by computing the largest step, and by capturing the largest graphs."""
        with trial() as largest:
            activations = max(self._peak_bytes(largest.compute), largest.draw_bytes)
            graphs, graphs_why = self._graph_bytes(largest.graph_shape)
            draft_graphs, draft_why = self._graph_bytes(largest.draft_shape)
        del largest  # it has the pages that stood for the cache
        torch.cuda.empty_cache()
        free_bytes, total = torch.cuda.mem_get_info(self.device)
        used = total - free_bytes
        why = (
            f"{gib(total)} of the device × {share:.2f} − {gib(used)} in use"
            f" − {gib(activations)} for activations (measured)"
        )
        if graphs_why:
            why += f" − {gib(graphs)} for {graphs_why}"
        if draft_why:
            why += f" − {gib(draft_graphs)} for the draft model's {draft_why}"
        beside = activations + graphs + draft_graphs
        return KVMemory(int(total * share) - used - beside, why, free_bytes - beside)

    def has_graphs(self, kv_dtype: torch.dtype, recorder: Recorder) -> bool:
        """Return whether steps can be captured: not at level `profile`.

        It times kernels one by one, which a graph doesn't allow.
        """
        return not recorder.profile and kernels_for(self.device).name == "triton"

    def graphs(
        self, shape: GraphShape, recorder: Recorder, captured: list[int] | None = None
    ) -> CudaGraphs:
        reads_lengths = kernels_for(self.device).reads_lengths
        prompts = all(reads_lengths(kv.head_dim) for kv in shape.model.kv_spec)
        return CudaGraphs(
            shape.model,
            shape.caches,
            shape.max_rows,
            shape.table_width,
            shape.block_size,
            self.device,
            recorder,
            shape.budget if prompts else 0,
            captured,
        )

    def _peak_bytes(self, compute: Callable[[], object]) -> int:
        """Return the greatest number of bytes that `compute` holds at once."""
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        compute()
        return torch.cuda.max_memory_allocated(self.device) - before

    def _graph_bytes(self, shape: GraphShape | None) -> tuple[int, str]:
        """Return what all graphs will take, and how that was found. See `sample_memory`."""
        if shape is None:
            return 0, ""
        quiet = Recorder("off")  # these graphs are not the ones that will be replayed
        with memory_for(start_memory.GRAPHS, self.device):
            return sample_memory(
                lambda sizes: self.graphs(shape, quiet, sizes),
                shape.max_rows,
                lambda: torch.cuda.mem_get_info(self.device)[0],
            )
