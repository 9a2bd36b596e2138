"""The GGUF reader: what sound files hold, and that hostile ones cost one clear error."""

from __future__ import annotations

import struct
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.models.errors import ModelError
from engine.models.formats.gguf import GGUF
from engine.models.formats.gguf_blocks import BLOCKS
from engine.models.formats.gguf_blocks import dequantize as ours
from tests.models.gguf_files import file, string, value

METADATA = {
    "general.architecture": "llama",
    "n": 7,
    "x": 0.5,
    "yes": True,
    "words": ["a", "ü", ""],
    "sizes": [1, 2, 3],
}
TENSORS = {"a": np.arange(6).reshape(2, 3) / 4, "b": np.array([1.5])}


def opened(tmp_path, content: bytes) -> GGUF:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    return GGUF(path)


def head(tensors: int = 0, key_values: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, key_values)


def tensor(name="a", dims=(32,), kind=0, start=0) -> bytes:
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, start)


def test_what_was_written_is_read(tmp_path):
    found = opened(tmp_path, file(METADATA, TENSORS))
    assert found.metadata == METADATA
    assert list(found.tensors) == ["a", "b"]
    for name, numbers in TENSORS.items():
        assert np.array_equal(found.array(name), numbers)
    found.close()


ROOM = b"\0" * 4096
HOSTILE = {
    "empty": (b"", "can't be read"),
    "another format": (b"PK\3\4" + ROOM, "begin with GGUF"),
    "cut in the head": (head()[:11], "middle of its header"),
    "version 1": (head(version=1) + ROOM, "version is 1"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + ROOM, "big-endian"),
    "2^60 tensors": (head(2**60) + ROOM, "claims 1152921504606846976 tensors"),
    "more key-values than bytes": (head(0, 5000) + ROOM, "claims 5000 key-values"),
    "a key of 2^60 bytes": (head(0, 1) + struct.pack("<Q", 2**60) + ROOM, "a key claims"),
    "a string of 2^60 bytes": (
        head(0, 1) + string("k") + struct.pack("<IQ", 8, 2**60) + ROOM,
        "value of k claims",
    ),
    "an array of 2^62 bytes": (
        head(0, 1) + string("k") + struct.pack("<IIQ", 9, 0, 2**62) + ROOM,
        "k claims to have",
    ),
    "2^23 strings in no room": (
        head(0, 1) + string("k") + struct.pack("<IIQ", 9, 8, 2**23) + ROOM,
        "k claims to have",
    ),
    "an array of arrays": (
        head(0, 1) + string("k") + struct.pack("<IIQ", 9, 9, 1) + ROOM,
        "array of things of type 9",
    ),
    "an unknown type": (head(0, 1) + string("k") + struct.pack("<I", 99) + ROOM, "type 99"),
    "half true": (head(0, 1) + string("k") + struct.pack("<IB", 7, 2) + ROOM, "neither true"),
    "a key twice": (head(0, 2) + 2 * (string("k") + value(1)) + ROOM, "k is there twice"),
    "a key that is no text": (
        head(0, 1) + struct.pack("<Q", 2) + b"\xff\xfe" + value(1) + ROOM,
        "isn't UTF-8",
    ),
    "five dimensions": (head(1) + tensor(dims=(1,) * 5) + ROOM, "5 dimensions"),
    "no dimensions": (head(1) + tensor(dims=()) + ROOM, "0 dimensions"),
    "a dimension of 0": (head(1) + tensor(dims=(32, 0)) + ROOM, "claims the shape"),
    "a product of 2^64": (head(1) + tensor(dims=(2**32, 2**32)) + ROOM, "claims the shape"),
    "a type from elsewhere": (
        head(1) + tensor(kind=19) + ROOM,
        r"type 19 \(IQ1_S\); read are F32",
    ),
    "a type that nobody knows": (head(1) + tensor(kind=4000) + ROOM, r"type 4000 \(which is unkno"),
    "half a block": (head(1) + tensor(dims=(40,), kind=2) + ROOM, "no whole blocks"),
    "a tensor twice": (head(2) + tensor() + tensor(start=128) + ROOM, "a is there twice"),
    "a name of 64 bytes": (head(1) + tensor("n" * 64) + ROOM, "tensor's name claims"),
    "not aligned": (head(1) + tensor(start=5) + ROOM, "isn't aligned"),
    "beyond the end": (head(1) + tensor(dims=(4096,)) + ROOM, "beyond the end"),
    "start at 2^63": (head(1) + tensor(start=2**63) + ROOM, "beyond the end"),
    "overlapping": (head(2) + tensor() + tensor("b", start=64) + ROOM, "a and b overlap"),
    "alignment 0": (head(0, 1) + string("general.alignment") + value(0) + ROOM, "power of two"),
    "alignment -32": (
        head(0, 1) + string("general.alignment") + struct.pack("<Ii", 5, -32) + ROOM,
        "power of two",
    ),
    "alignment 2^30": (head(0, 1) + string("general.alignment") + value(1 << 30) + ROOM, "limit"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_costs_one_line_and_no_memory(case, tmp_path):
    content, says = HOSTILE[case]
    tracemalloc.start()
    started = time.perf_counter()
    try:
        with pytest.raises(ModelError, match=says) as raised:
            opened(tmp_path, content)
        assert time.perf_counter() - started < 1
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert "\n" not in str(raised.value)


SOUND = file(METADATA, TENSORS)


@given(st.integers(0, len(SOUND) - 1), st.integers(0, 255), st.integers(0, len(SOUND)))
@settings(max_examples=300, deadline=None)
def test_a_damaged_file_is_read_or_refused(place, byte, length):
    damaged = bytearray(SOUND)
    damaged[place] = byte
    with tempfile.NamedTemporaryFile() as written:
        written.write(damaged[:length])
        written.flush()
        try:
            found = GGUF(Path(written.name))
            for name in found.tensors:
                found.array(name)
            found.close()
        except ModelError:
            pass


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    found = opened(tmp_path, file({}, {"bad": np.array([1.0, np.nan])}))
    with pytest.raises(ModelError, match="tensor bad has numbers that aren't finite"):
        found.array("bad")


@pytest.mark.parametrize("kind", [k for k, block in BLOCKS.items() if block.weights > 1])
def test_blocks_stand_for_the_numbers_that_gguf_reads(kind):
    """On random bytes, scales of either sign; bit for bit."""
    block = BLOCKS[kind]
    rng = np.random.default_rng(kind)
    rows = rng.integers(0, 256, (5, 4, block.num_bytes), np.uint8)
    scales = rng.normal(size=(5, 4, 2)).astype("<f2").view(np.uint8)
    if kind == 14:  # at the end of the block
        rows[:, :, -2:] = scales[:, :, :2]
    else:
        both = 4 if kind in (3, 7, 12, 13) else 2
        rows[:, :, :both] = scales[:, :, :both]
    rows = rows.reshape(5, -1)
    expected = dequantize(rows, GGMLQuantizationType(kind))
    assert np.array_equal(ours(rows, kind).view(np.uint32), expected.view(np.uint32))


def test_blocks_of_worked_examples():
    """Computed by hand from the description of each type."""
    half = struct.pack("<e", -0.5)
    low = np.frombuffer(half + bytes([0xBA] + [0] * 15), np.uint8)[None]
    found = ours(low, 2)[0]  # Q4_0: −0.5 · (code − 8)
    assert (found[0], found[16], found[1]) == (-1.0, -1.5, 4.0)
    one = np.frombuffer(half + struct.pack("<e", 3) + bytes([0xBA] + [0] * 15), np.uint8)[None]
    found = ours(one, 3)[0]  # Q4_1: −0.5 · code + 3
    assert (found[0], found[16], found[1]) == (-2.0, -2.5, 3.0)
    five = np.frombuffer(half + bytes([1, 0, 1, 0]) + bytes([0xBA] + [0] * 15), np.uint8)[None]
    found = ours(five, 6)[0]  # Q5_0: the fifth bits of weights 0 and 16 are set
    assert (found[0], found[16], found[1]) == (-5.0, -5.5, 8.0)
    wide = half + struct.pack("<e", 3) + bytes([1, 0, 0, 0]) + bytes([0xBA] + [0] * 15)
    found = ours(np.frombuffer(wide, np.uint8)[None], 7)[0]  # Q5_1: −0.5 · code + 3
    assert (found[0], found[16], found[1]) == (-10.0, -2.5, 3.0)
    eight = np.frombuffer(half + bytes([0xFF] + [3] * 31), np.uint8)[None]
    assert ours(eight, 8)[0, :2].tolist() == [0.5, -1.5]
