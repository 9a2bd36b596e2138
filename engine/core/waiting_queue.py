"""Queue the waiting requests strictly by rank. Only the head is ever looked at (rule 3)."""

from __future__ import annotations

import heapq

from engine.core.request import Rank, Request, Status


class WaitingQueue:
    """Hold a heap of waiting requests, lowest rank first.

    Removing an entry marks it; a marked entry is dropped when it reaches the head.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[Rank, Request]] = []
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def push(self, request: Request) -> None:
        heapq.heappush(self._heap, (request.rank, request))
        self._length += 1

    def head(self) -> Request | None:
        while self._heap and self._heap[0][1].status is not Status.WAITING:
            heapq.heappop(self._heap)
        return self._heap[0][1] if self._heap else None

    def pop(self) -> Request:
        """Take the head, which must exist."""
        _rank, request = heapq.heappop(self._heap)
        self._length -= 1
        return request

    def remove(self, request: Request) -> None:
        """Remove a request that left the queue another way; its status already says so."""
        self._length -= 1

    def in_order(self) -> list[Request]:
        """Return all waiting requests, head first. O(n log n): for tests and snapshots."""
        return [r for _rank, r in sorted(self._heap) if r.status is Status.WAITING]
