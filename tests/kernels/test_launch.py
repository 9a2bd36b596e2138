"""Launching kernels: the record describes exactly what was launched."""

from __future__ import annotations

import pytest
import torch

from engine.kernels import cpu
from engine.kernels.cost import Cost
from engine.kernels.launch import launch, recording
from engine.kernels.machine_limits import MachineLimits, machine_limits
from engine.trace.events import KernelLaunched
from engine.trace.recorder import Recorder


def launches(recorder: Recorder) -> list[KernelLaunched]:
    found: list = []
    recorder.subscribe(found.extend)
    recorder.flush()
    recorder.close()
    return [event for event in found if isinstance(event, KernelLaunched)]


def double(x: int) -> int:
    return 2 * x


def cost(result: int, factor: int) -> Cost:
    return Cost([result], 10 * factor, 3, why="a test")


def test_nothing_is_described_when_nobody_records():
    assert launch("double", "native", double, (4,), lambda *_: pytest.fail("described")) == 8


def test_a_launch_becomes_an_event():
    recorder = Recorder("full")
    with recording(recorder):
        assert launch("double", "native", double, (4,), cost, 7) == 8
    assert launch("double", "native", double, (5,), cost, 7) == 10  # outside
    [event] = launches(recorder)
    assert (event.name, event.backend, event.grid) == ("double", "native", [8])
    assert (event.num_bytes, event.flops, event.why) == (70, 3, "a test")
    assert event.duration_us == event.share_of_limit == 0


def test_level_steps_records_no_kernels():
    recorder = Recorder("steps")
    with recording(recorder):
        launch("double", "native", double, (4,), cost, 7)
    assert launches(recorder) == []


def test_a_failed_step_closes_the_door():
    recorder = Recorder("full")
    with pytest.raises(RuntimeError), recording(recorder):
        raise RuntimeError
    launch("double", "native", double, (4,), cost, 7)
    assert launches(recorder) == []


@pytest.mark.skipif(not cpu.available(), reason="no native kernels here")
def test_linear_counts_its_bytes_and_flops():
    ops, recorder = cpu.native(), Recorder("full")
    assert ops is not None
    x, weight = torch.ones(2, 64), torch.ones(48, 64)
    with recording(recorder):
        ops.linear(x, weight, None)
    [event] = launches(recorder)
    assert event.num_bytes == 4 * (48 * 64 + 2 * 64 + 2 * 48)
    assert event.flops == 2 * 2 * 48 * 64


def test_share_of_the_limit_is_the_binding_one():
    limits = MachineLimits(2, read_gb_s=10, copy_gb_s=10, gemm_gflop_s={"float32": 100})
    assert limits.least_us(Cost([1], 10_000, 1)) == pytest.approx(1.0)  # memory: 10 kB at 10 GB/s
    assert limits.least_us(Cost([1], 10, 1_000_000)) == pytest.approx(10.0)  # arithmetic


def test_a_dtype_without_a_measured_rate_has_the_memorys_limit():
    limits = MachineLimits(2, read_gb_s=10, copy_gb_s=10, gemm_gflop_s={})
    assert limits.least_us(Cost([1], 10_000, 10**12, "float64")) == pytest.approx(1.0)


def test_a_gpus_launch_is_timed_between_events_behind_a_head_start(monkeypatch):
    """Without a GPU: which functions are called, in which order, and how their results are used."""
    calls: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            calls.append("record")

        def synchronize(self) -> None:
            calls.append("synchronize")

        def elapsed_time(self, other: Event) -> float:
            return 0.004  # milliseconds

    limits = MachineLimits(2, 10, 10, {}, device="cuda")
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: calls.append("sleep"))
    monkeypatch.setattr("engine.kernels.launch.machine_limits", lambda device: limits)
    recorder = Recorder("full")
    with recording(recorder, profile=True, device="cuda"), recording(recorder):  # as in a step
        kernel = lambda: calls.append("kernel")  # noqa: E731
        launch("nothing", "triton", kernel, (), lambda result: Cost([1], 20_000, 0))
    assert calls == ["sleep", "record", "kernel", "record", "synchronize"]
    [event] = launches(recorder)
    assert event.duration_us == pytest.approx(4.0)
    assert event.share_of_limit == pytest.approx(0.5)  # 20 kB at 10 GB/s take 2 µs


def test_profiling_measures_the_machine_and_times_launches():
    recorder = Recorder("profile")
    with recording(recorder):
        launch("double", "native", double, (4,), cost, 7)
    [event] = launches(recorder)
    assert event.duration_us > 0
    assert event.share_of_limit > 0
    limits = machine_limits()
    assert 0.5 < limits.read_gb_s < 10_000
    assert limits.gemm_gflop_s["float32"] > 1
