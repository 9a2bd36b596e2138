"""Launches after the first one: the compiled kernel is started by ourselves, with the same
arguments. What is looked up is found for the same kind of arguments only."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

from triton.runtime.jit import JITFunction

from engine.kernels.cost import Cost
from engine.kernels.triton import start as module
from engine.kernels.triton.catalogue import variants
from engine.kernels.triton.start import start


class Kernel:
    """As Triton's: `kernel[grid](…)` gives what it was compiled to, which runs."""

    def __init__(self) -> None:
        self.looked_up: list[tuple] = []
        self.ran: list[tuple] = []

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            self.looked_up.append((grid, arguments, options))
            return SimpleNamespace(
                run=lambda *all_of_it: self.ran.append(all_of_it),
                function="the function",
                packed_metadata="its metadata",
            )

        return launch


@pytest.fixture
def kernel(monkeypatch):
    monkeypatch.setattr(module, "_COMPILED", {})
    monkeypatch.setattr(
        module, "driver", SimpleNamespace(active=SimpleNamespace(get_current_stream=lambda _: 7))
    )
    return Kernel()


def launch(kernel, *arguments, grid=(3, 2), block=64, warps=4) -> None:
    start("k", kernel, grid, arguments, {"BLOCK": block}, warps, 1, lambda: Cost([], 0, 0))


def test_the_second_launch_is_ours_with_the_same_arguments(kernel):
    first, second = torch.zeros(64), torch.ones(64)
    launch(kernel, first, 5, 0.5)
    launch(kernel, second, 6, 0.25, grid=(9,))
    assert len(kernel.looked_up) == 1
    [(x, y, z, stream, function, metadata, *hooks, pointer, number, share, block, pdl)] = kernel.ran
    assert (x, y, z, stream) == (9, 1, 1, 7)
    assert (function, metadata, hooks) == ("the function", "its metadata", [None, None, None])
    assert pointer is second and (number, share, block, pdl) == (6, 0.25, 64, 0)


@pytest.mark.parametrize(
    "other",
    [
        dict(arguments=(torch.zeros(64).half(), 5)),
        dict(arguments=(torch.zeros(65)[1:], 5)),  # not aligned to 16 bytes
        dict(arguments=(torch.zeros(64), 1)),  # Triton compiles 1 into the kernel
        dict(arguments=(torch.zeros(64), 32)),  # and uses that 16 divides it
        dict(arguments=(torch.zeros(64), 2**31)),  # 64 bits
        dict(block=128),
        dict(warps=8),
    ],
)
def test_another_kind_of_launch_is_looked_up(kernel, other):
    launch(kernel, torch.zeros(64), 5)
    arguments = other.pop("arguments", (torch.zeros(64), 5))
    launch(kernel, *arguments, **other)
    assert len(kernel.looked_up) == 2 and not kernel.ran


def test_in_the_interpreter_nothing_is_kept(kernel, monkeypatch):
    monkeypatch.setattr(Kernel, "__getitem__", lambda self, grid: lambda *a, **o: None)
    launch(kernel, torch.zeros(4))
    launch(kernel, torch.zeros(4))
    assert not module._COMPILED


def test_triton_itself_starts_a_kernel_as_we_do():
    """There is no public way to it: a Triton that changed it must be seen here, not on a GPU."""
    source = " ".join(inspect.getsource(JITFunction.run).split())
    assert (
        "kernel.run(grid_0, grid_1, grid_2, stream, kernel.function, kernel.packed_metadata,"
        " launch_metadata, knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook,"
        " *bound_args.values())"
    ) in source
    assert "stream = driver.active.get_current_stream(device)" in source


def test_arguments_of_kernels_come_before_their_constants():
    """So that `start` may pass them in this order, whatever the constants' own order."""
    kernels = {variant.kernel.__name__: variant.kernel for variant in variants()}
    assert len(kernels) > 10
    for name, kernel in kernels.items():
        kinds = [parameter.is_constexpr for parameter in kernel.params]
        assert kinds == sorted(kinds), name
        assert kernel.arg_names[-1] == "PDL", name
