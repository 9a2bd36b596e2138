"""Tile instructions in software: the manual's arithmetic, and the hardware's where it is there."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.kernels.cpu import build
from engine.kernels.cpu.linear_ops import Layout
from tests.kernels.cpu import software_tiles

SOURCE = Path(__file__).with_name("tile_products.cpp")
WAYS = [
    pytest.param(
        "software",
        marks=pytest.mark.skipif(not software_tiles.can_run(), reason=software_tiles.WHY_NOT),
    ),
    pytest.param(
        "hardware",
        marks=pytest.mark.skipif("amx" not in build.variants_here(), reason="no AMX here"),
    ),
]


@pytest.fixture(scope="module", params=WAYS)
def library(request, tmp_path_factory):
    """The products of single tiles, computed in one of the two ways: its path."""
    path = tmp_path_factory.mktemp("tiles") / f"{request.param}.so"
    more = ["-include", str(software_tiles.HEADER)] if request.param == "software" else []
    try:
        command = [build._compiler()[0], *build._flags("amx"), *more]
    except build.BuildError as error:
        pytest.skip(str(error))
    subprocess.run([*command, str(SOURCE), "-o", str(path)], check=True)
    return path


@pytest.fixture
def multiply(library):
    """C + A x B. a: [rows, steps, n], b: [steps, columns, n], c: [rows, columns]."""
    loaded = ctypes.CDLL(str(library))
    assert loaded.allow() == 0

    def run(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        (rows, steps, _), (_, columns, _) = a.shape, b.shape
        a, b, sums = a.contiguous(), b.contiguous(), torch.full((16, 16), 77, dtype=c.dtype)
        sums[:rows, :columns] = c
        sizes = (ctypes.c_int64(n) for n in (a.dtype is torch.int8, rows, steps, columns))
        loaded.multiply(*sizes, *(ctypes.c_void_p(t.data_ptr()) for t in (a, b, sums)))
        assert sums[rows:].eq(77).all() and sums[:, columns:].eq(77).all()
        return sums[:rows, :columns]

    return run


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


SHAPES = [(16, 16, 16), (3, 16, 16), (16, 16, 4), (1, 5, 7)]


@pytest.mark.parametrize(("rows", "steps", "columns"), SHAPES)
def test_sums_of_bf16_are_fused_even_and_odd_places_apart(multiply, rows, steps, columns):
    """To the bit: fp64 holds a product and an fp32 sum of such sizes exactly."""
    a, b = drawn(1, rows, steps, 2).bfloat16(), drawn(2, steps, columns, 2).bfloat16()
    c = drawn(3, rows, columns)
    sums = torch.zeros(2, rows, columns)
    for k in range(steps):
        for half in range(2):
            product = a[:, k, half, None].double() * b[k, :, half].double()
            sums[half] = (sums[half].double() + product).float()
    assert torch.equal(multiply(a, b, c), c + (sums[0] + sums[1]))


def test_subnormal_numbers_are_zeros_and_only_within_the_instruction(multiply):
    tiny, small = 2.0**-130, 2.0**-70
    pairs = [(tiny, 2.0**100, 0), (2.0**100, tiny, 0), (small, small, 0), (1, 1, tiny)]
    for x, w, before in pairs:
        a, b = torch.zeros(1, 1, 2).bfloat16(), torch.zeros(1, 1, 2).bfloat16()
        a[0, 0, 1], b[0, 0, 1] = x, w
        expected = 1.0 if x == w == 1 else 0.0
        assert multiply(a, b, torch.tensor([[before]], dtype=torch.float32)).item() == expected
    assert (torch.tensor(tiny) * torch.tensor(1.0)).item() == tiny


def test_what_is_not_finite_goes_its_way(multiply):
    a = torch.tensor([torch.inf, torch.nan, -torch.inf, 1.0])[:, None, None].bfloat16()
    a = torch.cat((a, torch.zeros_like(a)), 2)
    found = multiply(a, torch.ones(1, 2, 2).bfloat16(), torch.ones(4, 2))
    assert found[:, 0].nan_to_num(nan=5.0, posinf=6.0, neginf=7.0).tolist() == [6, 5, 7, 2]


@pytest.mark.parametrize(("rows", "steps", "columns"), SHAPES)
def test_sums_of_int8_are_exact_and_wrap(multiply, rows, steps, columns):
    draw = torch.Generator().manual_seed(4)
    a, b = (
        torch.randint(-128, 128, shape, generator=draw, dtype=torch.int8)
        for shape in ((rows, steps, 4), (steps, columns, 4))
    )
    a[0], b[:, 0] = -128, -128
    c = torch.full((rows, columns), 2**31 - 1, dtype=torch.int32)
    exact = torch.einsum("mki,kni->mn", a.long(), b.long())
    assert torch.equal(multiply(a, b, c), (exact + c).int())


@pytest.mark.parametrize("what", range(5))
def test_what_the_hardware_refuses_ends_the_process(library, what):
    code = f"import ctypes; tiles = ctypes.CDLL({str(library)!r}); tiles.allow(); print('here')"
    run = [sys.executable, "-c", f"{code}; tiles.wrong(ctypes.c_int64({what}))"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60)
    assert done.returncode in (-signal.SIGILL, -signal.SIGSEGV), (done.returncode, done.stderr)


@pytest.mark.skipif(not software_tiles.can_run(), reason=software_tiles.WHY_NOT)
def test_the_product_never_takes_that_library():
    try:
        before = build.FLAGS, build.library_path("amx", build.SOURCES)
    except build.BuildError as error:
        pytest.skip(str(error))
    ops = software_tiles.ops()
    weight = torch.empty(32, 32, dtype=torch.bfloat16)
    assert ops.layout_of(weight) is Layout.TILES  # it does run what tiles compute
    assert (build.FLAGS, build.library_path("amx", build.SOURCES)) == before
    assert Path(software_tiles.load()._name) != before[1]
