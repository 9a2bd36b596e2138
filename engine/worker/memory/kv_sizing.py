"""Compute how many KV blocks there are, and explain the number in one line.

A user who wonders why there are so many blocks, or so few, reads that line in `engine.kv_sized`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from engine.config import ConfigError, EngineConfig
from engine.models.length import check_length
from engine.rounding import ceil_div

GIB = 2**30
CPU_LIMIT = 4 * GIB
"""The most bytes taken on a CPU by default: its memory is shared with everything else on the
machine."""


class KVMemory(NamedTuple):
    """Hold the bytes that the KV cache may take, their derivation, and all free bytes."""

    num_bytes: int
    why: str
    free_bytes: int


@dataclass
class KVSize:
    """Hold the chosen size, and its reasons."""

    num_blocks: int
    num_host_blocks: int
    max_model_len: int
    why: str
    warning: str = ""


def size_kv(
    config: EngineConfig,
    bytes_per_block: int,
    model_max_len: int,
    memory: KVMemory,
    shared: bool,
    num_devices: int = 1,
) -> KVSize:
    """Choose the pool's size.

    `model_max_len`: positions of the model. `memory.free_bytes` is the limit for a size that the
    user fixed. `shared`: the host pool and all other programs take from the same memory.
    `num_devices`: of these, each has a share of every block, of `bytes_per_block`, and of the host
    pool; `memory` is that of one.

    Raises `ConfigError` when what the user fixed can't be held.
    """
    wanted_len = config.max_model_len
    check_length(wanted_len, model_max_len)
    max_model_len = wanted_len or model_max_len
    size = config.block_size
    most = config.max_num_seqs * ceil_div(max_model_len, size)  # nothing could fill more
    host = 0
    if config.preemption_mode != "recompute":
        host_bytes = int(config.swap_space * GIB) // num_devices
        if shared:
            host_bytes = min(host_bytes, memory.num_bytes // 4)
        host = min(host_bytes // bytes_per_block, most)
    blocks, why = _choose(config, bytes_per_block, memory, shared, host, most)
    capacity = blocks * size
    each = f" on each of {num_devices} devices" if num_devices > 1 else ""
    why += (
        f"; {bytes_per_block:,} B{each} for a block of {size} tokens"
        f" → {blocks:,} blocks = {capacity:,} tokens"
    )
    if host:
        why += f", {host:,} host blocks for swapping"
    if blocks < 1:
        raise ConfigError(
            f"there is no memory for a single KV block ({bytes_per_block:,} B): {why}."
        )
    warning = ""
    if capacity < max_model_len:
        if wanted_len is not None:
            raise ConfigError(
                f"--max-model-len is {wanted_len} tokens, but the KV cache holds only {capacity}:"
                " give it more memory, or a smaller --max-model-len."
            )
        warning = (
            f"the KV cache holds {capacity} tokens, less than the model's {max_model_len}"
            f" positions: the longest sequence is {capacity} tokens"
        )
        max_model_len = capacity
    return KVSize(blocks, host, max_model_len, why, warning)


def gib(num_bytes: int) -> str:
    """Write a number of bytes for a reader."""
    return f"{num_bytes / GIB:.2f} GiB" if num_bytes >= GIB else f"{num_bytes / 2**20:.1f} MiB"


def _choose(
    config: EngineConfig,
    bytes_per_block: int,
    memory: KVMemory,
    shared: bool,
    host: int,
    most: int,
) -> tuple[int, str]:
    """Return (blocks, where the number comes from)."""
    if config.num_gpu_blocks_override is not None:
        blocks, why = config.num_gpu_blocks_override, "as --num-gpu-blocks-override says"
        flag = f"--num-gpu-blocks-override is {blocks}"
    elif config.kv_cache_memory_bytes is not None:
        blocks = config.kv_cache_memory_bytes // bytes_per_block
        why = f"{gib(config.kv_cache_memory_bytes)}, as --kv-cache-memory-bytes says"
        flag = f"--kv-cache-memory-bytes is {config.kv_cache_memory_bytes}"
    else:
        budget_bytes = memory.num_bytes
        why = f"{memory.why} = {gib(budget_bytes)}"
        if shared:
            budget_bytes -= host * bytes_per_block
            if host:
                why += f" − {gib(host * bytes_per_block)} for swapping = {gib(budget_bytes)}"
            if budget_bytes > CPU_LIMIT:
                budget_bytes = CPU_LIMIT
                why += f", of which at most {gib(CPU_LIMIT)} on a CPU"
        blocks = max(0, budget_bytes // bytes_per_block)
        if blocks > most:
            blocks = most
            why += (
                f", of which {config.max_num_seqs} sequences can use {gib(most * bytes_per_block)}"
            )
        return blocks, why
    if blocks * bytes_per_block > memory.free_bytes:
        raise ConfigError(
            f"{flag}, which takes {gib(blocks * bytes_per_block)} of memory;"
            f" {gib(memory.free_bytes)} are free."
        )
    return blocks, why
