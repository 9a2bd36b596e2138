"""Launch every kernel, so that any launch can be recorded.

    launch(name, backend, run, arguments, describe, *facts)      runs  run(*arguments)

Usually nothing is recorded, and then `launch` costs one attribute check. Inside `with
recording(recorder):` each launch becomes a `kernel.launched` event; only then `describe` computes
from shapes what it read and computed. When profiling, the events carry the time of each launch and
its share of the machine's measured limit. Inside `with taping(tape):` each launch is also reported
to a tape, which can repeat it (`kernels/cpu/tape.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from engine.kernels.cost import Cost
from engine.kernels.machine_limits import MachineLimits, machine_limits
from engine.kernels.timing import timed
from engine.trace.events import KernelLaunched

if TYPE_CHECKING:
    from engine.trace.recorder import Recorder


class Tape(Protocol):
    """Receive launches in order to repeat them."""

    def launched(self, backend: str, run: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """Note a launch before it is made. Raises any error if it can't repeat it."""
        ...


class _Door:
    """Hold who watches launches now, once for the process: a kernel has no other way to know."""

    __slots__ = ("limits", "recorder", "tape", "watched")

    def __init__(self) -> None:
        self.watched = False  # by a recorder or a tape
        self.recorder: Recorder | None = None
        self.limits: MachineLimits | None = None  # set while profiling
        self.tape: Tape | None = None


_DOOR = _Door()


@contextmanager
def recording(recorder: Recorder, profile: bool = False, device: str = "cpu") -> Iterator[None]:
    """Record the launches inside as events, if the recorder wants kernels now.

    It does at level full, or in a step with a request that is recorded in full. With `profile`, or
    at the recorder's level profile, each launch is timed on the device ("cpu" or "cuda", where the
    host then waits for it), also in recordings inside this one; this measures the machine once, 2
    s. Not for CUDA graphs: a capture can't be waited for.
    """
    if not (recorder.full or recorder.full_step):
        yield
        return
    before = _DOOR.recorder, _DOOR.limits
    _DOOR.recorder = recorder
    _DOOR.limits = machine_limits(device) if profile or recorder.profile else _DOOR.limits
    _DOOR.watched = True
    try:
        yield
    finally:
        _DOOR.recorder, _DOOR.limits = before
        _DOOR.watched = _DOOR.recorder is not None or _DOOR.tape is not None


@contextmanager
def taping(tape: Tape) -> Iterator[None]:
    """Report the launches inside to a tape."""
    _DOOR.tape, _DOOR.watched = tape, True
    try:
        yield
    finally:
        _DOOR.tape, _DOOR.watched = None, _DOOR.recorder is not None


def launch(
    name: str,
    backend: str,
    run: Callable[..., Any],
    arguments: tuple[Any, ...],
    describe: Callable[..., Cost],
    *facts: Any,
) -> Any:
    """Run a kernel and return what it returns. `describe(result, *facts)` counts its cost."""
    if not _DOOR.watched:
        return run(*arguments)
    if _DOOR.tape is not None:
        _DOOR.tape.launched(backend, run, arguments)
    recorder = _DOOR.recorder
    if recorder is None:
        return run(*arguments)
    limits = _DOOR.limits
    result, duration_us = timed(run, arguments, limits is not None and limits.device == "cuda")
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
    if limits is not None:
        event.duration_us = duration_us
        event.share_of_limit = limits.least_us(cost) / duration_us
    recorder.record(event)
    return result
