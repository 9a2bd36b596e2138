"""Repeat a computation without Python between kernels: the CPU's counterpart of a CUDA graph.

While a `Tape` records, the computation runs as always, and the tape writes down what is done: each
native kernel with its argument struct, and each operation of torch (there should be few). `play`
does the same again on the same memory, with the inputs' contents at that time: runs of native
kernels in one call of C++ (`replay.cpp`), operations of torch one by one.

This is correct as long as the computation's course depends only on shapes. A computation that looks
at a value (`item()`, `tolist()`) can't be taped, and raises an error that says so.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from struct import Struct
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engine.kernels.launch import taping

_CALL = Struct("2q").pack  # struct Call in replay.cpp
_REPLAY = Struct("2q").pack  # struct ReplayArgs
ALIGN = 64  # bytes, a cache line
MAKES_MEMORY = ("aten::empty.memory_format", "aten::empty_like", "aten::empty_strided")


class NotTapeable(RuntimeError):
    """Report a computation that a tape can't repeat. The message says what it does."""


class Arena:
    """Provide memory for what computations on tapes make.

    A piece is used again as soon as the last tensor on it is gone, by the same tape or by another:
    tapes are replayed one after another. Pieces are powers of two long, so that tapes of many batch
    sizes share a few of each length.
    """

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []
        self._pieces: dict[int, np.ndarray] = {}  # all of them, by address
        self.num_bytes = 0

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Allocate a tensor, like `torch.empty`."""
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        room = max(ALIGN, 1 << (size - 1).bit_length()) if size else ALIGN
        fitting = [i for i, piece in enumerate(self._free) if room <= len(piece) <= 4 * room]
        if fitting:
            piece = self._free.pop(min(fitting, key=lambda i: len(self._free[i])))
        else:
            memory = np.empty(room + ALIGN, np.uint8)
            start = -memory.ctypes.data % ALIGN
            piece = memory[start : start + room]
            self._pieces[piece.ctypes.data] = piece
            self.num_bytes += room
        lent = piece[:size]  # a separate object: it lives as long as a tensor on this memory
        weakref.finalize(lent, self._free.append, piece).atexit = False
        return torch.from_numpy(lent).view(dtype).view(shape)

    def window(self, tensor: torch.Tensor) -> torch.Tensor:
        """View the same memory without keeping it: the next tape to play may write there.

        The tensor itself is returned if its memory isn't the arena's.
        """
        piece = self._pieces.get(tensor.data_ptr())
        if piece is None:
            return tensor
        return torch.from_numpy(piece[: tensor.nbytes]).view(tensor.dtype).view(tensor.shape)


class Tape(TorchDispatchMode):
    """Record once, then replay any number of times.

    `with tape.recording(): outputs = compute()` records, `tape.play()` replays.

    Outputs are read through `Arena.window` after a play, until the next one.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keep torch from wrapping `__torch_dispatch__`.

        The wrapper imports torch's compiler at the first recording: 150 MB and seconds for nothing.
        """
        return False

    def __init__(self, replay: Callable[[bytes], object], arena: Arena) -> None:
        """Start an empty tape.

        replay: `glasshouse_replay` of the library whose kernels are taped.
        """
        super().__init__()
        self._replay = replay
        self._arena = arena
        self._native: list[tuple[int, bytes]] = []  # kernels not yet in a part
        self._kept: list[Any] = []  # what parts point at
        self._parts: list[Callable[[], Any]] = []
        self.num_kernels = 0
        self.num_torch_operations = 0

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record what is computed inside. Raises NotTapeable."""
        with taping(self), self:
            yield
        self._end_part()

    def play(self) -> None:
        """Repeat all that was recorded."""
        for part in self._parts:
            part()

    def launched(self, backend: str, run: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """Note a kernel of ours that is about to run (see `launch.py`)."""
        if backend == "native":
            address = ctypes.cast(run, ctypes.c_void_p).value  # type: ignore[arg-type]
            self._native.append((int(address or 0), arguments[0]))
            self.num_kernels += 1

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict | None = None
    ) -> Any:
        """Run an operation of torch, and note it."""
        kwargs = kwargs or {}
        if func.name() in MAKES_MEMORY:
            like = func(*args, **kwargs)
            if like.is_contiguous() and like.device.type == "cpu":
                return self._arena.empty(tuple(like.shape), like.dtype)
            return like
        result = func(*args, **kwargs)
        if func._schema.is_mutable:
            self._host(lambda: func(*args, **kwargs))
        elif not isinstance(result, torch.Tensor):
            raise NotTapeable(f"{func.name()} gives Python {type(result).__name__}")
        elif not _is_view(result, args):
            self._host(lambda: result.copy_(func(*args, **kwargs)))
        return result

    def _host(self, call: Callable[[], Any]) -> None:
        self._end_part()
        self._parts.append(call)
        self.num_torch_operations += 1

    def _end_part(self) -> None:
        """Turn the native kernels since the last operation of torch into one call."""
        if not self._native:
            return
        structs = [ctypes.c_char_p(packed) for _, packed in self._native]
        places = [ctypes.cast(struct, ctypes.c_void_p).value or 0 for struct in structs]
        calls = b"".join(_CALL(run, at) for (run, _), at in zip(self._native, places))
        start = ctypes.cast(ctypes.c_char_p(calls), ctypes.c_void_p).value or 0
        packed = _REPLAY(start, len(self._native))
        self._kept += [calls, *(packed for _, packed in self._native)]
        self._parts.append(lambda: self._replay(packed))
        self._native = []


def _is_view(result: torch.Tensor, args: tuple[Any, ...]) -> bool:
    """Return whether the result lies in an argument's memory: then nothing must be repeated."""
    memory = result.untyped_storage().data_ptr()
    tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
    return any(tensor.untyped_storage().data_ptr() == memory for tensor in tensors)
