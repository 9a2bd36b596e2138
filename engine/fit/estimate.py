"""Find which GPU holds a model and so many sequences: the sums, and Koyeb's list of GPUs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from engine.config import ConfigError, EngineConfig
from engine.fit.divided import share_of
from engine.fit.reading import read_config
from engine.fit.shape import BYTES, PlanError, Shape, shape_of
from engine.fp8_formats import FP8_FORMATS
from engine.rank_sizes import FLAG, PLAIN_ONLY
from engine.rounding import ceil_div

GIB = 2**30
GB = 10**9
ALLOWANCE = int(1.5 * GIB)
"""For the CUDA context, libraries and activations: an allowance, not a measurement. The engine
measures them at start."""


MOST_PADDING = 1024
"""Tables of one tokenizer that differ by fewer rows are taken for padded to different sizes. The
engine compares the tokens themselves."""


class Gpu(NamedTuple):
    """Describe the instances of Koyeb with one kind of GPU.

    https://www.koyeb.com/pricing says which are offered now.
    """

    instance_type: str  # with one GPU
    memory_gb: int | None  # as Koyeb states it, in 10^9 bytes; None where it was not found
    regions: str
    # NVIDIA's "compute capability", https://developer.nvidia.com/cuda-gpus
    capability: tuple[int, int]
    counts: tuple[int, ...] = (1,)  # of GPUs in an instance

    def instance(self, count: int) -> str:
        """Return the type of instance that has so many."""
        return self.instance_type if count == 1 else f"{count}-{self.instance_type}"


_SEVERAL = (1, 2, 4, 8)
GPUS = (
    Gpu("gpu-nvidia-rtx-4000-sff-ada", 20, "fra, eu", (8, 9)),
    Gpu("gpu-nvidia-l4", 24, "par, eu", (8, 9)),
    Gpu("gpu-nvidia-rtx-a6000", 48, "na", (8, 6)),
    Gpu("gpu-nvidia-l40s", 48, "na", (8, 9)),
    Gpu("gpu-nvidia-a100", 80, "na", (8, 0), _SEVERAL),
    Gpu("gpu-nvidia-h100", 80, "na", (9, 0), _SEVERAL),
    Gpu("gpu-nvidia-h200", None, "na", (9, 0), _SEVERAL),
    Gpu("gpu-nvidia-b200", None, "na", (10, 0)),
    Gpu("gpu-nvidia-rtx-pro-6000", None, "na", (12, 0)),
)
"""Smallest memory first."""


@dataclass(frozen=True)
class Plan:
    """Hold a model, a length and a number of sequences, in bytes.

    Of a model that is divided: what each rank holds, on a GPU of its own.
    """

    shape: Shape  # of a rank's share
    max_model_len: int  # tokens
    concurrency: int  # sequences of that length at once
    block_size: int
    seats: int
    share: float  # of the GPU's memory that the engine may fill
    kv_cache_dtype: str  # as the engine's option names it
    draft: Shape | None = None  # the model that proposes tokens
    ranks: int = 1
    refusal: str = ""  # why the engine does not start so

    @property
    def kv_dtype(self) -> str:
        """Return the dtype of keys and values."""
        return self.shape.dtype if self.kv_cache_dtype == "auto" else self.kv_cache_dtype

    @property
    def kv_number_bytes(self) -> int:
        return BYTES.get(self.kv_dtype, 1)  # the other dtypes all have 8 bits

    @property
    def kv_bytes_per_token(self) -> int:
        """Return what a token takes in the pages of the model, and of the draft model."""
        return sum(self.kv_bytes_of(shape) for shape in (self.shape, self.draft) if shape)

    def kv_bytes_of(self, shape: Shape) -> int:
        """Return what a token takes in the pages of one model; both have one dtype."""
        return shape.kv_numbers_per_token * self.kv_number_bytes

    @property
    def draft_bytes(self) -> int:
        """Return the draft model's weights, which are loaded in the model's dtype."""
        draft = self.draft
        if draft is None:
            return 0
        return replace(draft, dtype=self.shape.dtype).weight_bytes

    @property
    def blocks(self) -> int:
        return ceil_div(self.max_model_len, self.block_size) * self.concurrency

    @property
    def block_bytes(self) -> int:
        return self.block_size * self.kv_bytes_per_token

    @property
    def kv_bytes(self) -> int:
        return self.blocks * self.block_bytes

    @property
    def drawing_bytes(self) -> int:
        """Return the bytes to draw for every seat at once: four fp32 values for each entry."""
        return self.seats * self.shape.vocab * 16

    @property
    def beside(self) -> int:
        return ALLOWANCE + self.drawing_bytes

    @property
    def needed(self) -> int:
        return self.shape.weight_bytes + self.draft_bytes + self.beside + self.kv_bytes

    def left_for_kv(self, gpu: Gpu) -> int:
        """Return the bytes left for the KV cache; negative where the weights don't fit."""
        if gpu.memory_gb is None:
            raise PlanError(f"the memory of {gpu.instance_type} is not known here.")
        weights = self.shape.weight_bytes + self.draft_bytes
        return int(gpu.memory_gb * GB * self.share) - weights - self.beside

    def converts(self, gpu: Gpu) -> bool:
        """Return whether this GPU's kernels can read and write the KV cache's dtype."""
        fp8 = FP8_FORMATS.get(self.kv_cache_dtype)
        return fp8 is None or fp8.since is None or gpu.capability >= fp8.since

    @property
    def offered(self) -> list[Gpu]:
        """Return the GPUs of which there are instances with one for each rank."""
        return [gpu for gpu in GPUS if self.ranks in gpu.counts]

    def fits(self, gpu: Gpu) -> bool:
        known = gpu.memory_gb is not None and self.converts(gpu)
        return known and self.left_for_kv(gpu) >= self.kv_bytes

    def choice(self) -> Gpu | None:
        """Return the GPU with the least memory that fits; None if none does."""
        return next((gpu for gpu in self.offered if self.fits(gpu)), None)


def make_plan(
    model: str,
    max_model_len: int | None = None,
    concurrency: int = 1,
    kv_cache_dtype: str = "auto",
    draft: str | None = None,
    ranks: int = 1,
) -> Plan:
    """Make the plan for a folder, a hub id or a well-known name. Raises `PlanError`.

    kv_cache_dtype: as the engine's option. draft: the model that proposes tokens, named likewise.
    ranks: GPUs that share each layer.
    """
    named = read_config(model)
    shape = shape_of(*named)
    draft_shape = shape_of(*read_config(draft)) if draft else None
    if draft_shape is not None and abs(draft_shape.vocab - shape.vocab) > MOST_PADDING:
        raise PlanError(
            f"{draft} has a vocabulary of {draft_shape.vocab:,} tokens, {model} has"
            f" {shape.vocab:,}: it can't propose for it."
        )
    length = max_model_len or shape.positions
    if length < 1 or concurrency < 1:
        raise PlanError("--max-model-len and --concurrency must be at least 1.")
    if length > shape.positions:
        raise PlanError(
            f"--max-model-len is {length}, but {model} has only {shape.positions} positions."
        )
    try:
        defaults = EngineConfig(model=model, kv_cache_dtype=kv_cache_dtype)  # type: ignore[arg-type]
    except ConfigError as error:
        raise PlanError(str(error)) from None
    return Plan(
        shape if ranks == 1 else _share(named, ranks, draft),
        length,
        concurrency,
        defaults.block_size,
        defaults.max_num_seqs,
        defaults.gpu_memory_utilization,
        defaults.kv_cache_dtype,
        draft_shape,
        ranks,
        PLAIN_ONLY if ranks > 1 and shape.quantized is not None else "",
    )


def _share(named: tuple[str, dict[str, Any]], ranks: int, draft: str | None) -> Shape:
    """Return what a rank holds. Raises `PlanError` where no instance has so many GPUs."""
    counts = sorted({count for gpu in GPUS for count in gpu.counts})
    if ranks not in counts:
        offered = ", ".join(map(str, counts))
        raise PlanError(f"{FLAG} is {ranks}; Koyeb has instances of {offered} GPUs.")
    if draft is not None:
        raise PlanError(f"{FLAG} is {ranks}, and a draft model is not divided: leave one out.")
    return share_of(*named, ranks)
