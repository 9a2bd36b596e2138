"""The waiting queue: strict, by rank. Only its head is ever looked at (rule 3)."""

from __future__ import annotations

import heapq

from engine.core.request import Rank, Request, Status


class WaitingQueue:
    """A heap of waiting requests, lowest rank first. Removal marks; marked entries go when they
    reach the head.
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
        """The request left the queue otherwise; its status says so already."""
        self._length -= 1

    def in_order(self) -> list[Request]:
        """All that wait, head first. O(n log n): for tests and snapshots."""
        return [r for _rank, r in sorted(self._heap) if r.status is Status.WAITING]
