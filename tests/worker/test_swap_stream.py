"""Swaps beside computing, as far as a CPU goes: streams that run what they were given as late, or
as early, as their waits allow. Whatever the order, every page is read after it arrived."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import contextmanager

import pytest
import torch

from engine.kernels.batch import LayerKV
from engine.worker.memory.kv_cache import KVCache, SwapStream

BLOCKS, HOST_BLOCKS = 8, 5


class Stream:
    """Work in order; a wait holds up what stands behind it."""

    def __init__(self, device: object = None) -> None:
        self.given: list[Callable[[], None] | tuple[Stream, int]] = []
        self.done = 0

    def record_event(self) -> tuple[Stream, int]:
        return self, len(self.given)

    def wait_event(self, event: tuple[Stream, int]) -> None:
        self.given.append(event)

    def wait_stream(self, other: Stream) -> None:
        self.wait_event(other.record_event())

    def step(self) -> bool:
        """Run the next piece of work, if nothing forbids it."""
        if self.done == len(self.given):
            return False
        work = self.given[self.done]
        if isinstance(work, tuple):
            if work[0].done < work[1]:
                return False
        else:
            work()
        self.done += 1
        return True


class Device:
    """Two streams, and who is current."""

    def __init__(self, monkeypatch) -> None:
        self.computing, self.side = Stream(), Stream()
        self.current = self.computing
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: self.side)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.current)
        monkeypatch.setattr(torch.cuda, "stream", self.inside)

    @contextmanager
    def inside(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before

    def copy_blocks(self, sources, targets, words, pairs) -> None:
        """What the kernel does, when its turn comes. Addresses are looked up: see `make_cache`."""
        self.current.given.append(
            lambda: [
                self.pools[int(targets[0])][t].copy_(self.pools[int(sources[0])][s])
                for s, t in pairs.tolist()
            ]
        )

    def run_all(self, chance: random.Random) -> None:
        streams = [self.computing, self.side]
        while any(stream.done < len(stream.given) for stream in streams):
            moved = [stream.step() for stream in chance.sample(streams, 2)]
            assert any(moved), "the streams wait for each other"


def make_cache(device: Device) -> KVCache:
    """One layer of one number a block; only keys are looked at."""
    cpu = torch.device("cpu")
    cache = KVCache([LayerKV(1, 2)], BLOCKS, HOST_BLOCKS, 4, torch.float32, cpu)
    cache._swaps = SwapStream(cpu)
    cache._copy_blocks = device.copy_blocks
    cache._addresses, cache._host_addresses = torch.tensor([0]), torch.tensor([1])
    cache._words = torch.tensor([4])
    device.pools = [cache._pages[0], cache._host_pages[0]]
    return cache


def steps(device: Device, cache: KVCache, chance: random.Random, settled: bool) -> list[list[int]]:
    """Random steps as the runner has them: swaps, copies, then a "model" that reads every block
    and writes some. Returns what the readings should be; they come into `device.read`."""
    pages, host = [[0] * BLOCKS, [0] * HOST_BLOCKS]
    expected, device.read = [], []
    for number in range(1, 7):
        out = list(zip(chance.sample(range(BLOCKS), 3), chance.sample(range(HOST_BLOCKS), 3)))
        back = list(zip(chance.sample(range(HOST_BLOCKS), 2), chance.sample(range(BLOCKS), 2)))
        source, target = chance.sample(range(BLOCKS), 2)
        for pool, moved, into in ((pages, out, host), (host, back, pages)):
            held = list(pool)
            for s, t in moved:
                into[t] = held[s]
        cache.swap_out(out)
        cache.swap_in(back)
        if chance.random() < 0.5:
            cache.copy([(source, target)])
            pages[target] = pages[source]
        if settled:
            cache.settle()
        written = {block: 100 * number + block for block in chance.sample(range(BLOCKS), 3)}

        def compute(written=written) -> None:
            device.read.append(device.pools[0][:, 0].tolist())
            for block, value in written.items():
                device.pools[0][block] = value

        device.computing.given.append(compute)
        expected.append(list(pages))
        for block, value in written.items():
            pages[block] = value
    return expected


@pytest.mark.parametrize("seed", range(20))
@torch.inference_mode()
def test_nothing_is_read_before_it_arrived(seed, monkeypatch):
    chance = random.Random(seed)
    device = Device(monkeypatch)
    expected = steps(device, make_cache(device), chance, settled=True)
    device.run_all(chance)
    assert device.read == expected


@torch.inference_mode()
def test_without_settling_it_would_show(monkeypatch):
    wrong = 0
    for seed in range(20):
        chance = random.Random(seed)
        device = Device(monkeypatch)
        expected = steps(device, make_cache(device), chance, settled=False)
        device.run_all(chance)
        wrong += device.read != expected
    assert wrong > 5


def test_a_step_without_swaps_waits_for_nothing(monkeypatch):
    device = Device(monkeypatch)
    cache = make_cache(device)
    cache.settle()
    cache.copy([])
    assert device.computing.given == device.side.given == []
