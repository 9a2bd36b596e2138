"""Run a rank of a divided model as on a GPU, but on a CPU: kernels in the interpreter, gloo.

As a program it is rank 1, 2, … (`interpreted_ranks.py` starts it). What stands for the device's own
part is here: its memory, and capturing steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

import engine.kernels
from engine.kernels import TORCH, Backend
from engine.worker.graphs.graph_capture import GraphCapture
from engine.worker.parallel import rank_process
from engine.worker.platforms import PLATFORMS
from engine.worker.platforms.cuda import CudaPlatform

MEMORY = 4 << 10
"""Bytes of this rank's device: for fewer blocks than its sequences could use."""


class DryCuda(CudaPlatform):
    """All that `CudaPlatform` does, on a device that isn't one."""

    backend = "gloo"

    def _check_gpus(self, size: int) -> None:
        """Accept any number."""


def capture(
    self: GraphCapture, forward: Callable[[], tuple[torch.Tensor, ...]]
) -> tuple[Callable[[], None], tuple[torch.Tensor, ...]]:
    """Return a "replay" that computes again into the tensors of the first run, as a graph does."""
    outputs = forward()

    def replay() -> None:
        for old, new in zip(outputs, forward()):
            old.copy_(new)

    return replay, outputs


def stand_in(set_: Callable[[object, str, object], None], memory: int) -> None:
    """Make the CPU stand for a GPU with so many bytes. set_: as `setattr`."""
    # The interpreter can't follow addresses, and a product takes it half a second.
    slow = {"copy_blocks": None, "few_rows": None, "linear": TORCH.linear, "logits": TORCH.logits}
    kernels = replace(engine.kernels.on_cuda(), **slow)
    set_(engine.kernels, "BACKENDS", {"cpu": Backend(lambda: kernels, asynchronous=False)})
    set_(GraphCapture, "_record", capture)
    for name, answer in {
        "synchronize": None,
        "reset_peak_memory_stats": None,
        "memory_allocated": 0,
        "max_memory_allocated": 0,
        "mem_get_info": (memory, memory),
        "empty_cache": None,
    }.items():
        set_(torch.cuda, name, lambda *_, answer=answer: answer)


if __name__ == "__main__":
    PLATFORMS["cpu"] = DryCuda
    stand_in(setattr, MEMORY)
    rank_process.main()
