"""What ranks join through shared memory, by threads of one process."""

from __future__ import annotations

import mmap
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from engine.kernels.cpu.rank_ops import SharedMemoryRanks, shared_bytes
from engine.kernels.ranks import RankLost, Ranks, RankSilent
from engine.rank_sizes import WIDEST


def on_all_ranks(size: int, call: Callable[[Ranks], Any]) -> list[Any]:
    """What `call` returns on each rank; each runs in a thread of its own."""
    memory = mmap.mmap(-1, shared_bytes(size))
    found: list[Any] = [None] * size

    def run(rank: int) -> None:
        found[rank] = call(SharedMemoryRanks(memory, rank, size, []))

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


def tree(parts: list[torch.Tensor]) -> torch.Tensor:
    """0 + 1, 2 + 3, …, and then those."""
    while len(parts) > 1:
        parts = [sum(parts[i + 1 : i + 2], parts[i]) for i in range(0, len(parts), 2)]
    return parts[0]


@pytest.mark.parametrize("size", [2, 3, 5, 8])
@pytest.mark.parametrize("rows, width", [(1, 1), (3, 33), (500, 576)])
def test_the_sum_is_one_tree_and_the_same_on_all_ranks(size, rows, width):
    parts = [torch.randn(rows, width) for _ in range(size)]
    bias = torch.randn(width)

    def call(ranks: Ranks) -> tuple[torch.Tensor, ...]:
        own = parts[ranks.rank]
        return (
            ranks.sum(own, None, torch.float32),
            ranks.sum(own, bias, torch.float32),
            ranks.sum(own, bias.bfloat16(), torch.bfloat16),
        )

    found = on_all_ranks(size, call)
    whole = tree(parts)
    for plain, biased, rounded in found:
        assert torch.equal(plain, whole)
        assert torch.equal(biased, whole + bias)
        assert torch.equal(rounded, (whole + bias.bfloat16().float()).bfloat16())


@pytest.mark.parametrize("rows, each, width", [(1, 7, 12), (5, 40, 101), (3, WIDEST + 9, 200_000)])
def test_rank_0_gathers_all_columns(rows, each, width):
    size = -(-width // each)
    parts = [torch.randn(rows, each + 5) for _ in range(size)]
    found = on_all_ranks(size, lambda ranks: ranks.gather(parts[ranks.rank], each, width))
    assert torch.equal(found[0], torch.cat([part[:, :each] for part in parts], 1)[:, :width])


def test_many_sums_in_turn_overwrite_nothing():
    def call(ranks: Ranks) -> list[float]:
        first = torch.full((2, 64), float(ranks.rank))
        return [
            float(ranks.sum(first + turn, None, torch.float32).sum()) / 128 for turn in range(300)
        ]

    assert on_all_ranks(3, call) == [[3.0 * turn + 3 for turn in range(300)]] * 3


def test_ids_of_other_ranks_are_marked():
    memory = mmap.mmap(-1, shared_bytes(2))
    ranks = SharedMemoryRanks(memory, 1, 2, [])
    ids = torch.tensor([0, 49, 50, 51, 99, 100])
    assert ranks.own_ids(ids, 50, 50).tolist() == [50, 50, 0, 1, 49, 50]


def test_time_and_number_are_counted():
    def call(ranks: Ranks) -> list[Any]:
        before = ranks.joined()
        ranks.sum(torch.ones(1, 4), None, torch.float32)
        return [before, ranks.joined()]

    for before, after in on_all_ranks(2, call):
        assert before == (0, 0)
        assert after.times == 1 and after.us > 0


def test_a_rank_that_ends_is_noticed_while_another_waits_for_it():
    ours, theirs = socket.socketpair()
    memory = mmap.mmap(-1, shared_bytes(2))
    ranks = SharedMemoryRanks(memory, 0, 2, [ours.fileno()])
    ranks.check()
    waiting = threading.Thread(
        target=lambda: ranks.sum(torch.ones(1, 4), None, torch.float32), daemon=True
    )
    waiting.start()
    theirs.close()
    waiting.join(30)
    assert not waiting.is_alive()
    with pytest.raises(RankLost):
        ranks.check()
    ranks.sum(torch.ones(1, 4), None, torch.float32)  # returns at once
    ours.close()


def test_one_that_does_not_come_is_told_when_patience_is_over():
    memory = mmap.mmap(-1, shared_bytes(3))
    others = [SharedMemoryRanks(memory, rank, 3, []) for rank in (1, 2)]
    patient = SharedMemoryRanks(memory, 0, 3, [], patience_s=0.05)
    waiting = threading.Thread(
        target=lambda: others[0].sum(torch.ones(1, 4), None, torch.float32), daemon=True
    )
    waiting.start()  # rank 1 comes; it waits for ever, until rank 0 gives up
    patient.sum(torch.ones(1, 4), None, torch.float32)
    waiting.join(30)
    assert not waiting.is_alive()
    with pytest.raises(RankSilent, match=r"rank 2 of 3, .* has not answered for 0\.05 s"):
        patient.check()


def send_when_waiting(memory: mmap.mmap, number: int) -> None:
    """Sends the main thread a signal when rank 0 has written its piece."""
    while not memory[64]:
        time.sleep(0.001)
    signal.pthread_kill(threading.main_thread().ident, number)


@pytest.fixture
def handle():
    before = signal.getsignal(signal.SIGUSR1)
    yield lambda handler: signal.signal(signal.SIGUSR1, handler)
    signal.signal(signal.SIGUSR1, before)


def test_a_signals_handler_may_end_a_wait(handle):
    """As Ctrl-C does."""

    def interrupt(number, frame):
        raise KeyboardInterrupt

    handle(interrupt)
    memory = mmap.mmap(-1, shared_bytes(2))
    ranks = SharedMemoryRanks(memory, 0, 2, [], patience_s=60)
    threading.Thread(target=send_when_waiting, args=(memory, signal.SIGUSR1), daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        ranks.sum(torch.ones(1, 4), None, torch.float32)
    with pytest.raises(RankLost):
        ranks.check()


def test_a_handler_that_raises_nothing_ends_no_wait(handle):
    came = threading.Event()
    handle(lambda number, frame: came.set())
    memory = mmap.mmap(-1, shared_bytes(2))
    ranks = [SharedMemoryRanks(memory, rank, 2, [], patience_s=60) for rank in range(2)]

    def other() -> None:
        send_when_waiting(memory, signal.SIGUSR1)
        came.wait(60)
        ranks[1].sum(torch.ones(1, 4), None, torch.float32)

    threading.Thread(target=other, daemon=True).start()
    assert ranks[0].sum(torch.ones(1, 4), None, torch.float32).tolist() == [[2.0] * 4]
    assert came.is_set()
    ranks[0].check()
