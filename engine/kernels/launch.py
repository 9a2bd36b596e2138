"""The one door to every kernel: whatever runs through it can be written into the record.

    launch(name, backend, run, arguments, describe, *facts)      runs  run(*arguments)

Nobody records most of the time, and then the door costs one attribute check. Inside
`with recording(recorder):` each launch becomes a `kernel.launched` event; what it read and
computed is worked out from shapes by `describe`, only then. With `profile=True` the events carry
the time of each launch and its share of the machine's measured limit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from engine.kernels.machine_limits import MachineLimits, machine_limits, waiting
from engine.trace.events import KernelLaunched

if TYPE_CHECKING:
    from engine.trace.recorder import Recorder


class Cost(NamedTuple):
    """What a launch is, as counted from its shapes."""

    grid: list[int]  # how many pieces the work was cut into
    num_bytes: int  # read and written
    flops: int
    flops_type: str = "float32"  # dtype of the products: "float32" or "bfloat16"
    why: str = ""  # why this grid, or this variant
    # What only compiled kernels have:
    constexprs: dict[str, int] | None = None
    num_warps: int = 0
    num_stages: int = 0
    registers: int = 0  # of one thread
    shared_bytes: int = 0  # of one program


class _Door:
    """Who records at the moment. One for the process: a kernel has no other way to know."""

    __slots__ = ("limits", "recorder", "wait")

    def __init__(self) -> None:
        self.recorder: Recorder | None = None
        self.limits: MachineLimits | None = None  # set while profiling
        self.wait: Callable[[], object] | None = None  # until the device is done; set with limits


_DOOR = _Door()


@contextmanager
def recording(recorder: Recorder, device: str = "cpu") -> Iterator[None]:
    """Launches inside become events, if the recorder wants kernels now (level full, or a step with
    a request that is recorded in full). At level profile each launch is timed alone, to its end on
    the device; the first one measures the device, 2 s.
    """
    if not (recorder.full or recorder.full_step):
        yield
        return
    before = _DOOR.recorder, _DOOR.limits, _DOOR.wait
    _DOOR.recorder, _DOOR.limits, _DOOR.wait = recorder, None, None
    if recorder.profile:
        _DOOR.limits, _DOOR.wait = machine_limits(device), waiting(device)
    try:
        yield
    finally:
        _DOOR.recorder, _DOOR.limits, _DOOR.wait = before


def launch(
    name: str,
    backend: str,
    run: Callable[..., Any],
    arguments: tuple[Any, ...],
    describe: Callable[..., Cost],
    *facts: Any,
) -> Any:
    """Run a kernel; returns what it returns. `describe(result, *facts)` counts its cost."""
    recorder = _DOOR.recorder
    if recorder is None:
        return run(*arguments)
    if _DOOR.wait is not None:
        _DOOR.wait()
    start = time.perf_counter_ns()
    result = run(*arguments)
    if _DOOR.wait is not None:
        _DOOR.wait()
    duration_us = (time.perf_counter_ns() - start) / 1000
    cost = describe(result, *facts)
    event = KernelLaunched(
        name=name,
        backend=backend,
        grid=cost.grid,
        constexprs=cost.constexprs or {},
        num_warps=cost.num_warps,
        num_stages=cost.num_stages,
        registers=cost.registers,
        shared_bytes=cost.shared_bytes,
        num_bytes=cost.num_bytes,
        flops=cost.flops,
        why=cost.why,
    )
    if _DOOR.limits is not None:
        event.duration_us = duration_us
        event.share_of_limit = _DOOR.limits.least_us(cost) / duration_us
    recorder.record(event)
    return result
