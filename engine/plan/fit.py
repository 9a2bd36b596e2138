"""Which GPU holds a model and so many sequences: the sums, and Koyeb's list of GPUs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from engine.config import EngineConfig
from engine.plan.shape import PlanError, Shape, read_config, shape_of

GIB = 2**30
GB = 10**9
ALLOWANCE = int(1.5 * GIB)
"""For the CUDA context, libraries and activations: an allowance, not a measurement. The engine
measures them at start."""


class Gpu(NamedTuple):
    """One GPU instance of Koyeb (https://www.koyeb.com/pricing says which are offered now)."""

    instance_type: str
    memory_gb: int | None  # as Koyeb states it, in 10^9 bytes; None where it was not found
    regions: str


GPUS = (
    Gpu("gpu-nvidia-rtx-4000-sff-ada", 20, "fra, eu"),
    Gpu("gpu-nvidia-l4", 24, "par, eu"),
    Gpu("gpu-nvidia-rtx-a6000", 48, "na"),
    Gpu("gpu-nvidia-l40s", 48, "na"),
    Gpu("gpu-nvidia-a100", 80, "na"),
    Gpu("gpu-nvidia-h100", 80, "na"),
    Gpu("gpu-nvidia-h200", None, "na"),
    Gpu("gpu-nvidia-b200", None, "na"),
    Gpu("gpu-nvidia-rtx-pro-6000", None, "na"),
)
"""Smallest memory first."""


@dataclass(frozen=True)
class Plan:
    """A model, a length and a number of sequences, in bytes."""

    shape: Shape
    max_model_len: int  # tokens
    concurrency: int  # sequences of that length at once
    block_size: int
    seats: int
    share: float  # of the GPU's memory that the engine may fill

    @property
    def blocks(self) -> int:
        return -(-self.max_model_len // self.block_size) * self.concurrency

    @property
    def block_bytes(self) -> int:
        return self.block_size * self.shape.kv_bytes_per_token

    @property
    def kv_bytes(self) -> int:
        return self.blocks * self.block_bytes

    @property
    def drawing_bytes(self) -> int:
        """What drawing tokens for every seat at once takes: four fp32 values for each entry."""
        return self.seats * self.shape.vocab * 16

    @property
    def beside(self) -> int:
        return ALLOWANCE + self.drawing_bytes

    @property
    def needed(self) -> int:
        return self.shape.weight_bytes + self.beside + self.kv_bytes

    def left_for_kv(self, gpu: Gpu) -> int:
        """Bytes that the KV cache can have on this GPU; negative where the weights don't fit."""
        if gpu.memory_gb is None:
            raise PlanError(f"the memory of {gpu.instance_type} is not known here.")
        return int(gpu.memory_gb * GB * self.share) - self.shape.weight_bytes - self.beside

    def fits(self, gpu: Gpu) -> bool:
        return gpu.memory_gb is not None and self.left_for_kv(gpu) >= self.kv_bytes

    def choice(self) -> Gpu | None:
        """The GPU with the least memory that fits; None if none does."""
        return next((gpu for gpu in GPUS if self.fits(gpu)), None)


def make_plan(model: str, max_model_len: int | None = None, concurrency: int = 1) -> Plan:
    """The plan for a folder, a hub id or a well-known name. Raises `PlanError`."""
    shape = shape_of(*read_config(model))
    length = max_model_len or shape.positions
    if length < 1 or concurrency < 1:
        raise PlanError("--max-model-len and --concurrency must be at least 1.")
    if length > shape.positions:
        raise PlanError(
            f"--max-model-len is {length}, but {model} has only {shape.positions} positions."
        )
    defaults = EngineConfig(model=model)
    return Plan(
        shape,
        length,
        concurrency,
        defaults.block_size,
        defaults.max_num_seqs,
        defaults.gpu_memory_utilization,
    )
