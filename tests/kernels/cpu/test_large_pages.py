"""Weights lie side by side in memory for which large pages were asked."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from engine.kernels.cpu.large_pages import PAGE, REGION, SMALLEST, LargePages
from engine.kernels.cpu.ops import NativeOps
from engine.kernels.quantized_weight import QuantizedWeight

LINUX = sys.platform == "linux"
pytestmark = pytest.mark.skipif(not LINUX, reason="large pages are asked for on Linux")


def flags_at(place: torch.Tensor | int) -> list[str]:
    """Return what Linux knows of the memory at an address, or where a tensor begins."""
    address = place if isinstance(place, int) else place.data_ptr()
    found = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        limits = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if limits:
            start, end = (int(number, 16) for number in limits.groups())
            found = start <= address < end
        elif found and line.startswith("VmFlags:"):
            return line.split()[1:]
    return []


def test_pieces_lie_apart_in_one_region_and_keep_what_is_written() -> None:
    pages = LargePages()
    pieces = [pages.empty((SMALLEST + extra,), torch.uint8) for extra in range(50)]
    for i, piece in enumerate(pieces):
        piece.fill_(i)
    assert all((piece == i).all() for i, piece in enumerate(pieces))
    places = [piece.data_ptr() for piece in pieces]
    assert places[0] % PAGE == 0 and all(place % 64 == 0 for place in places)
    assert places[-1] - places[0] < REGION
    assert "hg" in flags_at(pieces[0]) and "hg" in flags_at(pieces[-1])


def test_a_large_matrix_has_whole_pages_of_its_own() -> None:
    pages = LargePages()
    before = pages.empty((SMALLEST,), torch.uint8)
    large = pages.empty((REGION // 2 + 2,), torch.bfloat16)
    after = pages.empty((SMALLEST,), torch.uint8)
    assert large.data_ptr() % PAGE == 0 and "hg" in flags_at(large)
    assert after.data_ptr() - before.data_ptr() == SMALLEST


def test_copies_any_order_and_leaves_small_ones_elsewhere() -> None:
    pages = LargePages()
    turned = torch.randn(300, 500).T
    assert torch.equal(pages.copy(turned), turned) and pages.copy(turned).is_contiguous()
    assert "hg" not in flags_at(pages.empty((SMALLEST // 4 - 1,), torch.float32))


def test_memory_goes_back_with_the_last_tensor_in_it() -> None:
    pages = LargePages()
    first, second = (pages.empty((REGION // 2,), torch.uint8) for _ in range(2))
    pages.empty((SMALLEST,), torch.uint8)  # begins another region
    place = first.data_ptr()
    del first
    assert "hg" in flags_at(place)
    del second
    assert "hg" not in flags_at(place)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_packed_there(dtype: torch.dtype, ops: NativeOps) -> None:
    weight = torch.randn(512, 256).to(dtype)
    packed = ops.pack_weight(weight)
    assert packed is weight or "hg" in flags_at(packed)


def test_codes_are_packed_there(ops: NativeOps) -> None:
    codes, scales = torch.randint(0, 256, (512, 256), dtype=torch.uint8), torch.randn(512, 8).half()
    packed = ops.pack_quantized(QuantizedWeight(codes, 8, 32, scales, 128), torch.float32)
    assert not isinstance(packed, QuantizedWeight) and "hg" in flags_at(packed.data)
