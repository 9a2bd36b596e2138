"""Kernel threads are bound to cores of their own, and other programs' threads aren't."""

from __future__ import annotations

import ctypes
import os
from struct import unpack

import pytest
import torch

from engine.kernels import cpu
from engine.worker import cores, host
from engine.worker.cores import Cores, cores_to_bind

linux_only = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity"), reason="this system binds no threads"
)


def of_each_thread() -> list[set[int]]:
    return [os.sched_getaffinity(int(task)) for task in os.listdir("/proc/self/task")]


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.ones(1 << 20).exp_()  # both are there
    yield
    torch.set_num_threads(before)


@linux_only
def test_threads_are_bound_within_and_free_after(two_threads):
    native, here = cpu.native(), host.usable_cores()
    if native is None or len(here) < 2:
        pytest.skip("needs native kernels and two cores")
    everywhere = os.sched_getaffinity(0)
    cores = Cores(here[:2], native.bind_threads)
    assert cores.own_cpus == []
    with cores:
        assert os.sched_getaffinity(0) == here[0] == set(cores.own_cpus)
        assert of_each_thread().count(here[1]) == 1  # the other one that computes
    assert os.sched_getaffinity(0) == everywhere and cores.own_cpus == []
    assert here[1] not in of_each_thread()


@linux_only
def test_only_who_has_all_cores_binds(monkeypatch):
    eight = [{core, core + 8} for core in range(8)]
    monkeypatch.setattr(cores, "usable_cores", lambda: eight)
    monkeypatch.setattr(cores, "physical_cores", lambda: 8)
    assert cores_to_bind(8) == eight
    assert cores_to_bind(7) == [] and cores_to_bind(9) == []
    monkeypatch.setattr(cores, "usable_cores", lambda: [*eight[:7], {1024}])
    assert cores_to_bind(8) == []  # more CPUs than a cpu_set_t has bits
    monkeypatch.setattr(cores, "usable_cores", lambda: eight)
    monkeypatch.setattr(cores, "physical_cores", lambda: 4)  # a quota
    assert cores_to_bind(4) == [] and cores_to_bind(8) == []
    monkeypatch.setattr(cores, "usable_cores", lambda: [{0, 1}])
    monkeypatch.setattr(cores, "physical_cores", lambda: 1)
    assert cores_to_bind(1) == []  # nobody to wait for


def test_a_system_that_binds_nothing(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert host.usable_cores() == [] and cores_to_bind(2) == []
    assert host.physical_cores() >= 1
    with Cores(cores_to_bind(2), lambda arguments: pytest.fail("bound")):
        pass
    with Cores():
        pass


def test_the_sets_are_what_the_system_reads():
    """cpu_set_t: CPU c is bit c of 1,024. See sched_setaffinity(2)."""
    seen = []

    def keep(arguments: bytes) -> None:
        address, count = unpack("2q", arguments)
        sets = ctypes.string_at(address, 128 * count)
        seen.append([int.from_bytes(sets[i * 128 : i * 128 + 128], "little") for i in range(count)])

    with Cores([{0, 8}, {1, 9}], keep):
        pass
    assert seen == [[0x101, 0x202], [0x303, 0x303]]
