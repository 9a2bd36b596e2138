"""State how the ranks of a divided model join what each has computed.

A *rank* is one of the processes that hold a share of every layer (`--tensor-parallel-size`). All
ranks make the same calls in the same order.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch


class Joined(NamedTuple):
    """Count what a rank has spent in joining, since its start."""

    us: float  # with waiting for the others
    times: int


class Ranks(Protocol):
    """Join numbers of all ranks."""

    rank: int  # of this process, from 0
    size: int

    def meet(self) -> None:
        """Find the others. Nothing can be joined before; it returns when all have come."""
        ...

    def sum(
        self, part: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype
    ) -> torch.Tensor:
        """Add all ranks' parts in one fixed order, then the bias; round once, to `dtype`.

        part: fp32 [rows, width], bias: [width] in `dtype` → [rows, width].
        """
        ...

    def gather(self, part: torch.Tensor, each: int, width: int) -> torch.Tensor:
        """Return the first `each` columns of all ranks side by side, on rank 0.

        part: fp32 [rows, at least each] → [rows, width]; what lies beyond `width` is left out.
        Other ranks get their own part.
        """
        ...

    def own_ids(self, ids: torch.Tensor, start: int, count: int) -> torch.Tensor:
        """Return each id's place in [start, start + count); `count` for one that isn't there.

        ids: int64 [tokens].
        """
        ...

    def ids_of_first(self, ids: torch.Tensor) -> torch.Tensor:
        """Return rank 0's ids, which alone may know what the step before has drawn.

        ids: int64 [tokens]; may be overwritten.
        """
        ...

    def joined(self) -> Joined:
        """Return what was spent so far, as far as the host knows it."""
        ...

    def stop(self) -> None:
        """Make every rank return from joining, now and later, as far as that can be done."""
        ...

    def check(self) -> None:
        """Raise `RankLost` if another rank is gone: then nothing joined since is worth anything.

        Also if one has kept this rank waiting too long, or if joining was interrupted.
        """
        ...


class RankLost(RuntimeError):
    """Report that the ranks can't join any more.

    Usually the process of one has ended. The message says which and how, if known.
    """


class JoinFailed(RankLost):
    """Report that this rank could not join; who is gone, others have to find out."""


class RankSilent(RankLost):
    """Report that a rank lives, but doesn't come to join."""
