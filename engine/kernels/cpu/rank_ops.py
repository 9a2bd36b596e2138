"""Join the ranks of a model by memory that their processes share (`ranks.cpp`)."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from functools import lru_cache
from struct import Struct

import torch

from engine.kernels.cpu.attention_ops import TYPES, function
from engine.kernels.cpu.build import load
from engine.kernels.cpu.costs import elementwise_cost
from engine.kernels.launch import launch
from engine.kernels.ranks import Joined, RankLost, RankSilent
from engine.rank_sizes import WIDEST

SOURCES = ("ranks.cpp",)
"""A library of its own, for any CPU: who has one process doesn't wait until it is compiled."""
VARIANT = "portable"

_GROUP = Struct("7q").pack
_SUM = Struct("7q").pack
_GATHER = Struct("7q").pack
_OWN_IDS = Struct("6q").pack
_POLL = Struct("ihh").pack  # struct pollfd
_COUNTED = Struct("3Q").unpack_from  # of struct Counter
_LINE = 64  # bytes
_PYTHON = (  # struct Python
    "PyGILState_Ensure",
    "PyGILState_Release",
    "PyErr_CheckSignals",
    "PyErr_Occurred",
    "PyErr_Clear",
    "PyThread_get_thread_ident",
    "PyThreadState_SetAsyncExc",
)


def shared_bytes(size: int) -> int:
    """Return the bytes that `size` ranks share; they must be zeros at first."""
    return int(_library().glasshouse_shared_bytes(ctypes.byref(ctypes.c_int64(size))))


class SharedMemoryRanks:
    """Join as `Ranks` says. The same calls work in threads that share one mapping."""

    def __init__(
        self,
        memory: mmap.mmap,
        rank: int,
        size: int,
        others: Sequence[int],
        patience_s: float = 0.0,
    ) -> None:
        """Take part in a group.

        memory: shared, of `shared_bytes(size)`. others: connections, as file numbers, to processes
        of the group, of which the system closes the other end when one ends. patience_s: how long
        this rank waits for one that lives; 0: for ever.
        """
        self.rank, self.size = rank, size
        self._patience_s = patience_s
        self._memory = memory  # kept mapped
        library = _library()
        self._sum = function(library, "sum")
        self._gather = function(library, "gather")
        self._own_ids = function(library, "own_ids")
        self._others = ctypes.create_string_buffer(b"".join(_POLL(n, 0, 0) for n in others))
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        there = ctypes.addressof(self._others)
        patience_ns = round(patience_s * 1e9)
        python = ctypes.addressof(_python())
        packed = _GROUP(start, rank, size, there, len(others), patience_ns, python)
        self._group = ctypes.create_string_buffer(packed)
        self._at = ctypes.addressof(self._group)

    def meet(self) -> None:
        """Return at once: who has the memory has met the others."""

    def sum(
        self, part: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype
    ) -> torch.Tensor:
        assert part.dtype is torch.float32 and part.is_contiguous() and part.shape[1] <= WIDEST
        out = torch.empty(part.shape, dtype=dtype)
        packed = _SUM(
            self._at,
            part.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            out.data_ptr(),
            *part.shape,
            TYPES[dtype],
        )
        launch("sum_of_ranks", "native", self._sum, (packed,), elementwise_cost, part, out)
        return out

    def gather(self, part: torch.Tensor, each: int, width: int) -> torch.Tensor:
        assert part.dtype is torch.float32 and part.is_contiguous()
        rows, stride = part.shape
        out = part if self.rank else torch.empty((rows, width), dtype=torch.float32)
        sizes = rows, stride, each, width
        packed = _GATHER(self._at, part.data_ptr(), out.data_ptr(), *sizes)
        launch("gather_of_ranks", "native", self._gather, (packed,), elementwise_cost, part, out)
        return out

    def own_ids(self, ids: torch.Tensor, start: int, count: int) -> torch.Tensor:
        assert ids.dtype is torch.int64 and ids.is_contiguous()
        out = torch.empty_like(ids)
        packed = _OWN_IDS(ids.data_ptr(), out.data_ptr(), len(ids), start, count, count)
        launch("own_ids", "native", self._own_ids, (packed,), elementwise_cost, ids, out)
        return out

    def ids_of_first(self, ids: torch.Tensor) -> torch.Tensor:
        return ids  # on a CPU the host knows all tokens, and has told them

    def joined(self) -> Joined:
        _, ns, calls = _COUNTED(self._memory, _LINE * (1 + self.rank))
        return Joined(ns / 1e3, calls)

    def check(self) -> None:
        why = self._memory[0]
        if why >= 2:
            raise RankSilent(
                f"rank {why - 2} of {self.size}, a process of the model, lives but has not"
                f" answered for {self._patience_s:g} s"
            )
        if why:
            raise RankLost("a process of the model has ended")

    def stop(self) -> None:
        """Make every rank return from joining at once, now and later."""
        self._memory[0] = self._memory[0] or 1


@lru_cache(maxsize=1)
def _python() -> ctypes.Array[ctypes.c_void_p]:
    """Return the addresses of functions of Python, for waits that a signal may end."""
    found = (ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p) for name in _PYTHON)
    return (ctypes.c_void_p * len(_PYTHON))(*found)


def _library() -> ctypes.CDLL:
    """Load the library, compiled at the first call. Raises `BuildError`.

    By a handle that releases Python's lock, because these functions wait.
    """
    return ctypes.CDLL(load(VARIANT, SOURCES)._name)
