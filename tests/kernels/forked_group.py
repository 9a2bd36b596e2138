"""Run checks of `GroupRanks` by gloo on several ranks, each in a process: `test_group_ranks.py`.

    python -m tests.kernels.forked_group CHECK SIZE

The processes are forks of one that has imported torch and computed nothing yet.
"""

from __future__ import annotations

import gc
import os
import sys
import traceback
from collections.abc import Callable

import torch

from engine.kernels import group_ranks
from engine.kernels.group_ranks import GroupRanks, why_not
from engine.kernels.ranks import JoinFailed
from tests.kernels.cpu.test_rank_ops import tree


def joining(ranks: GroupRanks) -> None:
    """What all ranks join is what one would compute, in the order of the CPU's ranks."""
    assert not why_not("gloo")
    ranks.meet()
    assert "already" in why_not("gloo")
    rank, size = ranks.rank, ranks.size
    draw = torch.Generator().manual_seed(3)
    for small in (group_ranks.SMALL, 0):  # to all whole; some rows to each
        group_ranks.SMALL = small
        for rows, width in ((1, 1), (2, 33), (50, 40)):
            parts = [torch.randn(rows, width, generator=draw) for _ in range(size)]
            bias = torch.randn(width, generator=draw)
            whole = tree(parts)
            assert torch.equal(ranks.sum(parts[rank], None, torch.float32), whole)
            assert torch.equal(ranks.sum(parts[rank], bias, torch.float32), whole + bias)
            rounded = ranks.sum(parts[rank], bias.bfloat16(), torch.bfloat16)
            assert torch.equal(rounded, (whole + bias.bfloat16().float()).bfloat16())
            assert rounded.is_contiguous() and rounded.dtype == torch.bfloat16
    for each, width in ((7, 7 * size - 2), (7, 5), (4, 4 * size)):
        parts = [torch.randn(3, each + 5, generator=draw) for _ in range(size)]
        found = ranks.gather(parts[rank], each, width)
        if rank == 0:
            assert torch.equal(found, torch.cat([part[:, :each] for part in parts], 1)[:, :width])
    ids = torch.tensor([0, 49, 50, 51, 99, 100])
    assert ranks.own_ids(ids, 50, 50).tolist() == [50, 50, 0, 1, 49, 50]
    assert ranks.ids_of_first(
        torch.tensor([4, 5]) if rank == 0 else torch.zeros(2).long()
    ).tolist() == [4, 5]
    assert ranks.joined().times > 20
    ranks.check()


def losing(ranks: GroupRanks) -> None:
    """Who joins with a rank that has ended is told so."""
    ranks.meet()
    if ranks.rank == ranks.size - 1:
        os._exit(0)
    try:
        for _ in range(100):  # until the end is noticed
            ranks.sum(torch.ones(1, 4), None, torch.float32)
    except JoinFailed as error:
        assert "could not join" in str(error)
    else:
        raise AssertionError("a rank that is gone took part")
    ranks.check()
    ranks.stop()
    try:
        ranks.check()
    except JoinFailed:
        return
    raise AssertionError("a rank that has left the group is in it")


def again(ranks: GroupRanks) -> None:
    """Groups that this process makes one after another leave no more files open than the first."""
    open_files = []
    for turn in range(3):
        if turn:
            file = os.memfd_create("meeting")
            ranks = GroupRanks("gloo", torch.device("cpu"), file, 0, 1, 60.0)
            os.close(file)
        ranks.meet()
        ranks.stop()
        assert not why_not("gloo")
        gc.collect()
        open_files.append(sorted(os.listdir("/proc/self/fd")))
    assert len(set(map(len, open_files))) == 1, open_files


CHECKS: dict[str, Callable[[GroupRanks], None]] = {
    "joining": joining,
    "losing": losing,
    "again": again,
}


def main() -> None:
    check, size = CHECKS[sys.argv[1]], int(sys.argv[2])
    torch.set_num_threads(1)
    file = os.memfd_create("meeting")
    rank, others = 0, []
    for number in range(1, size):
        pid = os.fork()
        if pid == 0:
            rank, others = number, []
            break
        others.append(pid)
    code = 0
    try:
        check(GroupRanks("gloo", torch.device("cpu"), file, rank, size, 60.0))
    except BaseException:
        traceback.print_exc()
        code = 1
    for pid in others:
        code |= os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
