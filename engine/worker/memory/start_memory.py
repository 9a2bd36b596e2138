"""Report out of memory at start in one line: what took it, and what to lower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from engine.config import ConfigError
from engine.worker.memory.kv_sizing import gib

LOAD = (
    "loading the weights",
    "take a smaller model, --dtype bfloat16 if its weights are float32, or a larger GPU",
)
PROFILE = (
    "computing the largest step",
    "lower --max-num-batched-tokens or --max-num-seqs, or take a smaller model",
)
KV_CACHE = (
    "making the KV cache",
    "lower --gpu-memory-utilization (or --kv-cache-memory-bytes, --num-gpu-blocks-override), and"
    " --swap-space or --max-num-seqs if the host's memory is what is full",
)
WARM_UP = ("computing for the first time", "lower --gpu-memory-utilization or --max-num-seqs")
GRAPHS = (
    "capturing CUDA graphs",
    "lower --max-num-seqs or --gpu-memory-utilization, or give --enforce-eager",
)


@contextmanager
def memory_for(part: tuple[str, str], device: torch.device) -> Iterator[None]:
    """Turn out of memory inside into `ConfigError`.

    part: what is done inside, and what to lower.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # torch's CUDA allocator and Python have classes for it; refusals of the driver (also of
        # pinned memory) and of torch's CPU allocator are plain runtime errors
        text = str(error).lower()
        known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if not known and "out of memory" not in text and "can't allocate memory" not in text:
            raise
        doing, lower = part
        raise ConfigError(f"out of memory while {doing}{_left(device)}: {lower}.") from None


def _left(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    try:
        free, total = torch.cuda.mem_get_info(device)
    except RuntimeError:  # a driver that is out of memory may refuse even this
        return ""
    return f" ({gib(free)} of the GPU's {gib(total)} are free)"
