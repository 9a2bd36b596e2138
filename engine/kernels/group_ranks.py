"""Join the ranks of a model by a process group of torch.distributed: NCCL, each rank on a GPU.

The group only moves numbers; what ranks add, each adds itself, in the order of `ranks.cpp`. NCCL's
own sum has an order that depends on its algorithm, on the size and on where in a message a number
lies: for three ranks and more, a row's sum would depend on the other rows of its step. Small parts
all go to all ranks. Of large ones each rank gets some rows of all, adds those, and sends the sums:
that is as much as NCCL's sum moves, and less where the sums are rounded.

The same calls work by gloo on a CPU, which is how they are tested.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from engine.kernels.cost import Cost
from engine.kernels.launch import launch
from engine.kernels.ranks import Joined, JoinFailed
from engine.rounding import ceil_div

SMALL = 1 << 19
"""Bytes of a part that goes to all ranks whole. A guess: one exchange in place of two costs less
than the bytes, until they fill the links. Two ranks always send all: it is the same number."""
LEAVE_S = 0.5
"""Seconds that leaving may take before a program goes on without having left."""
LEFT_S = 10.0
"""Seconds to wait for it before another group is made."""
_LEAVING: list[threading.Thread] = []
_KEPT: list[int] = []
"""The number of the file in which the ranks of the last group met."""
LONG_S = 86_400.0  # as long as "for ever" may be said to be
LOOPBACK = {"nccl": "NCCL_SOCKET_IFNAME", "gloo": "GLOO_SOCKET_IFNAME"}
"""What says by which network interface ranks first find each other."""


class GroupRanks:
    """Join as `Ranks` says, once `meet` has returned on all ranks."""

    def __init__(
        self, backend: str, device: torch.device, file: int, rank: int, size: int, patience_s: float
    ) -> None:
        """Prepare to take part in a group.

        backend: "nccl" or "gloo". device: what this rank computes on. file: an empty file that all
        ranks have open, in which they tell each other where they are; it is kept open until this
        process makes the next group. patience_s: how long gloo waits for one that lives, 0: for
        ever, as NCCL does.
        """
        self.rank, self.size = rank, size
        self._backend, self._device = backend, device
        self._file = _kept(file)
        self._patience_s = patience_s
        self._times = 0
        self._group: dist.ProcessGroup | None = None
        self._stopped = False

    def meet(self) -> None:
        # Nobody but this machine can connect. Each rank opens the file anew: locks are of those
        # who opened it.
        os.environ.setdefault(LOOPBACK[self._backend], "lo")
        # Who waits here looks himself whether the others live; torch would end the process.
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
        store = dist.FileStore(f"/proc/self/fd/{self._file}", self.size)
        on_gpu = self._device.type != "cpu"
        if on_gpu:
            torch.cuda.set_device(self._device)  # of this thread
        dist.init_process_group(
            self._backend,
            store=store,
            rank=self.rank,
            world_size=self.size,
            timeout=timedelta(seconds=self._patience_s or LONG_S),
            device_id=self._device if on_gpu else None,
        )
        self._group = dist.group.WORLD
        met = self._of_all(torch.ones(1, device=self._device))  # connects; can't be captured
        assert met.sum().item() == self.size

    def sum(
        self, part: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype
    ) -> torch.Tensor:
        assert part.dtype is torch.float32 and part.is_contiguous()
        arguments = part, bias, dtype
        return launch("sum_of_ranks", self._backend, self._sum, arguments, _moved, part)

    def gather(self, part: torch.Tensor, each: int, width: int) -> torch.Tensor:
        assert part.dtype is torch.float32 and part.is_contiguous()
        arguments = part, each, width
        return launch("gather_of_ranks", self._backend, self._gather, arguments, _moved, part)

    def own_ids(self, ids: torch.Tensor, start: int, count: int) -> torch.Tensor:
        places = ids - start
        return places.masked_fill_((places < 0) | (places >= count), count)

    def ids_of_first(self, ids: torch.Tensor) -> torch.Tensor:
        return launch("ids_of_rank_0", self._backend, self._ids_of_first, (ids,), _moved, ids)

    def joined(self) -> Joined:
        return Joined(0.0, self._times)

    def check(self) -> None:
        if self._stopped:
            raise JoinFailed("this rank has left the group of ranks")

    def stop(self) -> None:
        """Leave the group. A kernel that waits for the others then ends, if NCCL can make it.

        In another thread, since NCCL itself may wait for a rank that is gone.
        """
        if self._stopped:
            return
        self._stopped = True
        if self._group is not None:
            leaving = threading.Thread(target=_leave, args=(self._group,), daemon=True)
            leaving.start()
            leaving.join(LEAVE_S)
            _LEAVING.append(leaving)

    # ------------------------------------------------------------------------------------ details

    def _sum(
        self, part: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype
    ) -> torch.Tensor:
        if self.size == 2 or part.nbytes <= SMALL:
            return _tree(self._of_all(part), bias, dtype)
        rows, width = part.shape
        each = ceil_div(rows, self.size)
        counts = [max(0, min(each, rows - rank * each)) for rank in range(self.size)]
        own = counts[self.rank]
        mine = part.new_empty((self.size * own, width))
        self._call(dist.all_to_all_single, mine, part, [own] * self.size, counts)
        added = part.new_empty((each, width), dtype=dtype)  # beyond its own rows: anything
        added[:own] = _tree(mine.view(self.size, own, width), bias, dtype)
        return self._of_all(added).view(-1, width)[:rows]

    def _gather(self, part: torch.Tensor, each: int, width: int) -> torch.Tensor:
        parts = self._of_all(part)  # gathering on one rank alone takes NCCL as long
        if self.rank:
            return part
        ends = (min(each, width - rank * each) for rank in range(self.size))
        return torch.cat([one[:, :end] for one, end in zip(parts, ends) if end > 0], 1)

    def _ids_of_first(self, ids: torch.Tensor) -> torch.Tensor:
        self._call(dist.broadcast, ids, 0)
        return ids

    def _of_all(self, part: torch.Tensor) -> torch.Tensor:
        """Return the parts of all ranks, [ranks, …]."""
        parts = part.new_empty((self.size, *part.shape))
        self._call(_all_gather(), parts.view(-1, *part.shape[1:]), part)
        return parts

    def _call(self, collective: Callable[..., Any], *arguments: Any) -> None:
        self._times += 1
        try:
            collective(*arguments, group=self._group)
        except (RuntimeError, ValueError) as error:  # also: the group was left
            raise JoinFailed(f"ranks could not join: {error}") from error


def why_not(backend: str) -> str:
    """Say why torch can't make such a group here; "" if it can."""
    while _LEAVING:
        _LEAVING.pop().join(LEFT_S)
    if not dist.is_available() or not dist.is_backend_available(backend):
        return f"this torch has no {backend.upper()}"
    if dist.is_initialized():
        return "this process is in a process group of torch.distributed already"
    return ""


def _kept(file: int) -> int:
    """Return the number of a file that stays open: the last group's, which is this one's now.

    When torch's store of a group is collected, long after the group maybe, it opens that number
    once more to count itself out. So the number may never be that of a file of someone else.
    """
    if _KEPT:
        os.dup2(file, _KEPT[0], inheritable=False)
    else:
        _KEPT.append(os.dup(file))
    return _KEPT[0]


def _tree(parts: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """Add parts, fp32 [ranks, …]: 0 + 1, 2 + 3, …, then those, then the bias; round once."""
    left = list(parts)
    while len(left) > 1:
        pairs = [one + other for one, other in zip(left[::2], left[1::2])]
        left = pairs + left[2 * len(pairs) :]
    total = left[0] if bias is None else left[0] + bias
    return total.to(dtype)


def _all_gather() -> Callable[..., Any]:
    """Return torch's all-gather into one tensor; an older torch has only the name that a newer one
    warns of."""
    return getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def _leave(group: dist.ProcessGroup) -> None:
    with contextlib.suppress(RuntimeError):  # gloo can't; its waits end by themselves
        group.abort()
    with contextlib.suppress(RuntimeError, ValueError, AssertionError):
        dist.destroy_process_group(group)  # so that this process can make another one


def _moved(result: torch.Tensor, part: torch.Tensor) -> Cost:
    return Cost([], part.nbytes + result.nbytes, 0, why="moved between ranks, added by each")
