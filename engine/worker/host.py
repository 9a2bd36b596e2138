"""Read what this machine has: free memory, physical cores, and the C library's allocator settings.

All is read from the system; in a container, from the container's limits.
"""

from __future__ import annotations

import ctypes
import math
import os
import resource
import sys
from pathlib import Path
from typing import NamedTuple

import torch

from engine.config import ConfigError

CGROUP = Path("/sys/fs/cgroup")
NO_LIMIT = 2**60  # cgroup v1 states a number near 2^63 when there is none


class FreeMemory(NamedTuple):
    """Hold the bytes that may still be taken, and the readings behind them."""

    num_bytes: int
    source: str


def free_memory(
    meminfo: Path = Path("/proc/meminfo"),
    cgroup: Path = CGROUP,
    status: Path = Path("/proc/self/status"),
    own_cgroup: Path = Path("/proc/self/cgroup"),
) -> FreeMemory:
    """Return the host memory that this process can still take.

    It is the least of the kernel's estimate, the container's limit and the process's own limits.
    """
    found = [_system_memory(meminfo)]
    left = _cgroup_left(cgroup, own_cgroup)
    if left is not None:
        found.append(FreeMemory(left, "left below the container's memory limit"))
    found += _limits_left(status)
    return min(found, key=lambda free: free.num_bytes)


def usable_cores() -> list[set[int]]:
    """Return the CPUs that this process may use, grouped by core with their hyperthreads.

    Empty where the system can't bind threads to CPUs (macOS).
    """
    if not hasattr(os, "sched_getaffinity"):
        return []
    topology = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    cores: dict[str, set[int]] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        cores.setdefault(_read(Path(topology.format(cpu))) or str(cpu), set()).add(cpu)
    return list(cores.values())


def physical_cores(cgroup: Path = CGROUP) -> int:
    """Count the cores that this process may use, without hyperthreads, capped by a CPU quota."""
    cores = len(usable_cores()) or os.cpu_count() or 1
    quota = (_read(cgroup / "cpu.max") or "max").split()
    if quota[0] != "max":
        return max(1, min(cores, math.ceil(int(quota[0]) / int(quota[1]))))
    return cores


LARGE = 4 << 20
"""Bytes from which on memory is returned while a model is loaded."""


def return_freed_memory() -> None:
    """Make glibc return large pieces of memory to the kernel as soon as they are freed.

    While a model is loaded they have many sizes: what lies between kept ones would add up.
    """
    _set_allocator(mmap_threshold=LARGE, trim_threshold=LARGE, top_pad=LARGE)


def keep_freed_memory() -> None:
    """Return what is free to the kernel, then make glibc keep what will be freed.

    A step allocates and frees the same few large tensors; memory that went back to the kernel in
    between faults in again, page by page, as zeros.
    """
    _set_allocator(mmap_threshold=2**30, trim_threshold=2**31 - 1, top_pad=2**26)


def _set_allocator(*, mmap_threshold: int, trim_threshold: int, top_pad: int) -> None:
    """Return what is free, and set when more is returned: see mallopt(3), values in bytes.

    Without glibc (macOS, musl) nothing is changed.
    """
    try:
        library = ctypes.CDLL(None)
        mallopt, malloc_trim = library.mallopt, library.malloc_trim
    except (OSError, AttributeError):
        return
    malloc_trim(0)
    for parameter, value in ((-3, mmap_threshold), (-1, trim_threshold), (-2, top_pad)):
        mallopt(parameter, value)


def drop_read_code(maps: Path = Path("/proc/self/maps")) -> int:
    """Let go of the libraries' code that was read so far; return how many bytes were mapped.

    What is executed again is mapped again, from the same pages of the system's cache. Most of what
    torch has run until then registers its operators, once: it would count as this process's memory
    until the system is short of it. Elsewhere than on Linux nothing is done.
    """
    MADV_DONTNEED = 4
    if sys.platform != "linux":
        return 0
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    dropped = 0
    for line in (_read(maps) or "").splitlines():
        addresses, rights, _, _, inode, *name = line.split(maxsplit=5)
        # Code can't be written, so nothing in it was changed that would be lost.
        if rights == "r-xp" and inode != "0" and name:
            first, end = (int(address, 16) for address in addresses.split("-"))
            if madvise(first, end - first, MADV_DONTNEED) == 0:
                dropped += end - first
    return dropped


def pick_device(wanted: str, rank: int = 0) -> torch.device:
    """Choose the device for `--device`: auto is CUDA where there is one, for each rank its own.

    All of them see all GPUs: without seeing its neighbour, a rank can't read that one's memory.
    Raises `ConfigError` where CUDA is asked for and there is none.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    elif wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"--device is cuda, but torch {torch.__version__} finds no CUDA device here: use"
            " --device cpu, or a torch with CUDA on a machine with a GPU."
        )
    return torch.device(wanted, rank) if wanted == "cuda" and rank else torch.device(wanted)


# --------------------------------------------------------------------------------------- details


def _system_memory(meminfo: Path) -> FreeMemory:
    for line in (_read(meminfo) or "").splitlines():
        if line.startswith("MemAvailable:"):
            return FreeMemory(int(line.split()[1]) * 1024, "available (MemAvailable)")
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return FreeMemory(physical // 2, "half of the physical memory (no /proc/meminfo here)")


def _cgroup_left(cgroup: Path, own: Path) -> int | None:
    """Return the bytes below the limits of this process's groups; None without one.

    The groups above it count, too. In a container its own group stands at the top, whatever name
    it has outside.
    """
    paths = [line.split(":", 2) for line in (_read(own) or "").splitlines()]
    found = []
    for base, controller, names in ((cgroup, "", _V2), (cgroup / "memory", "memory", _V1)):
        inner = [path for _, kinds, path in paths if controller in kinds.split(",")]
        for path in ["", *inner]:
            folder = base / path.lstrip("/")
            while True:
                left = _group_left(folder, *names)
                if left is not None:
                    found.append(left)
                if folder == base or base not in folder.parents:
                    break
                folder = folder.parent
    return min(found, default=None)


_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _group_left(folder: Path, limit_file: str, used_file: str, key: str) -> int | None:
    """Return the bytes below one group's limit. Cached file pages don't count as used: the kernel
    drops them when memory is wanted."""
    limit, used = _read(folder / limit_file), _read(folder / used_file)
    if limit is None or used is None or limit == "max" or int(limit) > NO_LIMIT:
        return None
    cached = 0
    for line in (_read(folder / "memory.stat") or "").splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            cached = int(value)
    return max(0, int(limit) - int(used) + cached)


def _limits_left(status: Path) -> list[FreeMemory]:
    """Return what `ulimit -d` and `ulimit -v` leave to this process.

    They count mapped memory, written or not.
    """
    used = dict(line.partition(":")[::2] for line in (_read(status) or "").splitlines())
    found = []
    for kind, key, flag in (
        (resource.RLIMIT_DATA, "VmData", "-d"),
        (resource.RLIMIT_AS, "VmSize", "-v"),
    ):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY and key in used:
            left = max(0, limit - int(used[key].split()[0]) * 1024)
            found.append(FreeMemory(left, f"left below this process's limit (ulimit {flag})"))
    return found


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
