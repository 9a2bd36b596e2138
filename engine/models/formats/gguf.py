"""Read a GGUF file: its key-values and its tensors, with a bound on everything that it claims.

    magic "GGUF", version, counts │ key-values │ tensor table │ padding │ tensor data

A file may come from a stranger: each length is checked against what is left of the file before
anything is allocated, so a hostile file costs one `ModelError` and no memory or time. Layout:
GGML's own description of the format, versions 2 and 3, little endian.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engine.models.errors import ModelError
from engine.models.formats import gguf_blocks
from engine.models.formats.gguf_files import MAGIC
from engine.rounding import ceil_div

VERSIONS = (2, 3)
MOST_ENTRIES = 65_536  # key-values; tensors
LEAST_KEY_VALUE, LEAST_TENSOR = 13, 33  # bytes that the shortest of each takes
LONGEST_KEY, LONGEST_NAME = 65_535, 63  # bytes
LONGEST_STRING, LONGEST_TEMPLATE = 1 << 20, 1 << 22  # bytes
MOST_ELEMENTS = 1 << 24  # of an array
MOST_DIMENSIONS = 4
MOST_WEIGHTS = 1 << 40  # of a tensor
LARGEST_ALIGNMENT = 65_536

STRING, ARRAY, BOOL = 8, 9, 7
SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, BOOL, 10, 11, 12), "BbHhIifBQqd"))
"""The letter that `struct` has for the number of each type."""


class TensorInfo(NamedTuple):
    """State where a tensor lies."""

    shape: tuple[int, ...]  # outermost first, as torch has it: [outputs, inputs]
    type: int  # of its blocks; see gguf_blocks
    start: int  # in the file
    num_bytes: int


class GGUF:
    """Hold an open file. `metadata`: the key-values. `tensors`: by name, in the file's order."""

    def __init__(self, path: Path) -> None:
        """Read everything but the data. Raises `ModelError`, one line: what is wrong with it."""
        self.path = path
        try:
            with path.open("rb") as file:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: it is empty
            raise ModelError(f"{path} can't be read: {error}.") from None
        try:
            self._read()
        except _Broken as broken:
            self.close()
            raise ModelError(f"{path} is no sound GGUF file: {broken}.") from None

    def _read(self) -> None:
        cursor = _Cursor(self._bytes)
        if cursor.take(4) != MAGIC:
            raise _Broken("it doesn't begin with GGUF")
        version = cursor.number("I")
        if version not in VERSIONS:
            swapped = version & 0xFFFF == 0
            what = "it is big-endian" if swapped else f"its version is {version}"
            raise _Broken(f"{what}; versions 2 and 3 in little endian are read")
        num_tensors = cursor.count("tensors", LEAST_TENSOR)
        num_key_values = cursor.count("key-values", LEAST_KEY_VALUE)
        self.metadata: dict[str, Any] = {}
        for _ in range(num_key_values):
            key = cursor.string(LONGEST_KEY, "a key")
            if key in self.metadata:
                raise _Broken(f"key {key} is there twice")
            self.metadata[key] = cursor.value(key)
        table = dict(_tensor_table(cursor, num_tensors))
        self.tensors = self._placed(table, cursor.at)

    def _placed(self, table: dict[str, TensorInfo], header_end: int) -> dict[str, TensorInfo]:
        """Check where the tensors lie in the file: aligned, inside it, without overlap."""
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment.bit_count() != 1:
            raise _Broken(f"its alignment is {alignment!r}; it must be a power of two")
        if alignment > LARGEST_ALIGNMENT:
            raise _Broken(f"its alignment is {alignment}; the limit is {LARGEST_ALIGNMENT}")
        data = ceil_div(header_end, alignment) * alignment
        placed = {}
        for name, info in table.items():
            if info.start % alignment:
                raise _Broken(f"tensor {name} isn't aligned to {alignment} bytes")
            start = data + info.start
            if start + info.num_bytes > len(self._bytes):
                raise _Broken(f"tensor {name} reaches beyond the end: it is cut off, or lies")
            placed[name] = info._replace(start=start)
        end, last = 0, ""
        for name, info in sorted(placed.items(), key=lambda item: item[1].start):
            if info.start < end:
                raise _Broken(f"tensors {last} and {name} overlap")
            end, last = info.start + info.num_bytes, name
        return placed

    def raw(self, name: str) -> np.ndarray:
        """Return the bytes of a tensor's rows: uint8 [rows, bytes of a row], a view of the file."""
        info = self.tensors[name]
        rows = math.prod(info.shape[:-1])
        flat = np.frombuffer(self._bytes, np.uint8, info.num_bytes, info.start)
        return flat.reshape(rows, info.num_bytes // rows)

    def array(self, name: str) -> np.ndarray:
        """Return a tensor's numbers, fp32, in its shape.

        Raises `ModelError` if one isn't finite.
        """
        info = self.tensors[name]
        numbers = gguf_blocks.dequantize(self.raw(name), info.type).reshape(info.shape)
        if not np.isfinite(numbers).all():
            raise ModelError(f"{self.path}: tensor {name} has numbers that aren't finite.")
        return numbers

    def close(self) -> None:
        """Close the file. Views that `raw` returned keep it open until they are gone."""
        with contextlib.suppress(BufferError):  # then the last view closes it
            self._bytes.close()


class _Broken(Exception):
    """Say what is wrong with the file."""


class _Cursor:
    """Read the file from a position onwards."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise _Broken("it ends in the middle of its header")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, kind: str) -> Any:
        return struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))[0]

    def count(self, what: str, least: int) -> int:
        """Read a count of things that each take at least `least` bytes, and check it."""
        count = self.number("Q")
        if count > MOST_ENTRIES or count * least > self.left:
            raise _Broken(f"it claims {count} {what}")
        return count

    def string(self, longest: int, what: str) -> str:
        length = self.number("Q")
        if length > min(longest, self.left):
            raise _Broken(f"{what} claims to be {length} bytes long")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise _Broken(f"{what} isn't UTF-8") from None

    def value(self, key: str) -> Any:
        kind = self.number("I")
        if kind == ARRAY:
            return self._array(key)
        if kind == STRING:
            longest = LONGEST_TEMPLATE if ".chat_template" in key else LONGEST_STRING
            return self.string(longest, f"the value of {key}")
        if kind not in SCALARS:
            raise _Broken(f"the value of {key} is of the unknown type {kind}")
        value = self.number(SCALARS[kind])
        return _truth(key, value) if kind == BOOL else value

    def _array(self, key: str) -> list[Any]:
        kind, length = self.number("I"), self.number("Q")
        if kind not in SCALARS and kind != STRING:
            raise _Broken(f"{key} is an array of things of type {kind}; numbers or strings may be")
        size = 8 if kind == STRING else struct.calcsize(SCALARS[kind])
        if length > MOST_ELEMENTS or length * size > self.left:
            raise _Broken(f"{key} claims to have {length} elements")
        if kind == STRING:
            return [self.string(LONGEST_STRING, f"an element of {key}") for _ in range(length)]
        values = list(struct.unpack(f"<{length}{SCALARS[kind]}", self.take(length * size)))
        return [_truth(key, value) for value in values] if kind == BOOL else values


def _truth(key: str, value: int) -> bool:
    if value > 1:
        raise _Broken(f"{key} is neither true nor false but {value}")
    return bool(value)


def _tensor_table(cursor: _Cursor, count: int) -> Iterator[tuple[str, TensorInfo]]:
    """Return (name, where it lies after the header's end) of each tensor."""
    names = set()
    for _ in range(count):
        name = cursor.string(LONGEST_NAME, "a tensor's name")
        if name in names:
            raise _Broken(f"tensor {name} is there twice")
        names.add(name)
        dimensions = cursor.number("I")
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise _Broken(f"tensor {name} has {dimensions} dimensions")
        shape = [cursor.number("Q") for _ in range(dimensions)]  # innermost first
        kind, start = cursor.number("I"), cursor.number("Q")
        weights = math.prod(shape)
        if not 1 <= weights < MOST_WEIGHTS:
            raise _Broken(f"tensor {name} claims the shape {shape[::-1]}")
        block = gguf_blocks.BLOCKS.get(kind)
        if block is None:
            called = gguf_blocks.UNREAD.get(kind, "which is unknown")
            raise _Broken(
                f"tensor {name} is of type {kind} ({called}); read are {gguf_blocks.named()}"
            )
        if shape[0] % block.weights:
            raise _Broken(f"rows of tensor {name} are no whole blocks of {block.weights}")
        num_bytes = weights // block.weights * block.num_bytes
        yield name, TensorInfo(tuple(reversed(shape)), kind, start, num_bytes)
