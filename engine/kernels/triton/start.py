"""Start every Triton kernel of ours, recorded as a launch with what it was compiled to.

In Triton's interpreter (`TRITON_INTERPRET=1`) a launch returns nothing, because there is no binary:
the record then has no registers and no shared memory.

**Programmatic dependent launch.** From compute capability 9.0 on a kernel may be put on the device
while the one before it still runs. When its turn comes, its programs are in place, its addresses
computed and its first weights on the way. A step is a chain of some hundred short kernels, so this
counts. `start` passes `PDL`, 0 or 1, to each kernel, which keeps one invariant:

    let_next_start(PDL)     first of all
    …                       reads of what no kernel started here writes: weights, and a step's own
                            inputs (lengths, slots, cuts, random words), which copies brought
    wait_for_previous(PDL)  in every program, before
    …                       any other read, any write, and any return

A write before the wait could overwrite what an earlier kernel still reads. Returning before the
wait may start the next kernel too early, before the previous one has ended. A step's own inputs are
written by copies and by torch, which begin when all before them has ended; a kernel started here
must not write them. `test_dependent_launch.py` reads the compiled code: nothing is loaded before
the wait but what may be.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.runtime import driver

from engine.kernels.cost import Cost
from engine.kernels.launch import launch

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
"""Dtypes that the kernels take; plain torch computes in others."""
PDL_SINCE = 90  # compute capability
_COMPILED: dict[tuple[Any, ...], Any] = {}
"""What `start` has launched before. Triton looks a kernel up again for each launch, by all
arguments and options; with some 200 launches in a step that has prompts, the device would wait for
the host."""


@triton.jit
def let_next_start(PDL: tl.constexpr):
    """Allow the next kernel on the device as soon as all of this one's programs are there."""
    if PDL:
        gdc_launch_dependents()


@triton.jit
def wait_for_previous(PDL: tl.constexpr):
    """Wait until the kernel before this one has ended, and all that it wrote can be read."""
    if PDL:
        gdc_wait()


def start(
    name: str,
    kernel: Any,
    grid: tuple[int, ...],
    arguments: tuple[Any, ...],
    constants: dict[str, int],
    num_warps: int,
    num_stages: int,
    cost: Callable[[], Cost],
) -> None:
    """Launch `kernel` on `grid`. arguments: the first one is a tensor.

    constants: its compile-time arguments, without PDL. cost: grid, bytes and flops, asked only when
    somebody records.
    """
    device = arguments[0].device
    options = _options(device)

    def run() -> Any:
        key = kernel, device, num_warps, num_stages, *constants.values(), *map(_kind, arguments)
        compiled = _COMPILED.get(key)
        if compiled is None:
            compiled = kernel[grid](
                *arguments, **constants, **options, num_warps=num_warps, num_stages=num_stages
            )
            if compiled is not None:  # as it is in the interpreter
                _COMPILED[key] = compiled
            return compiled
        no_hooks = None, None, None
        compiled.run(
            *(*grid, 1, 1)[:3],
            driver.active.get_current_stream(device.index),
            compiled.function,
            compiled.packed_metadata,
            *no_hooks,
            *arguments,
            *constants.values(),
            options["PDL"],
        )
        return compiled

    def describe(compiled: Any) -> Cost:
        return cost()._replace(
            constexprs={**constants, "PDL": options["PDL"]},
            num_warps=num_warps,
            num_stages=num_stages,
            registers=getattr(compiled, "n_regs", None) or 0,
            shared_bytes=compiled.metadata.shared if compiled is not None else 0,
        )

    launch(name, "triton", run, (), describe)


def _kind(argument: Any) -> Any:
    """Return what of an argument decides which compiled variant of a kernel is meant.

    It is Triton's own rule, except that Triton may not look at all of these.
    """
    if isinstance(argument, torch.Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    if isinstance(argument, int):
        return argument == 1, argument % 16 == 0, argument.bit_length() > 31
    return float


@lru_cache(maxsize=8)
def _options(device: torch.device) -> dict[str, int]:
    """Return what every launch on this device has: PDL for the kernel, and for the driver."""
    if device.type != "cuda":
        return {"PDL": 0}
    major, minor = torch.cuda.get_device_capability(device)
    return {"PDL": 1, "launch_pdl": True} if major * 10 + minor >= PDL_SINCE else {"PDL": 0}
