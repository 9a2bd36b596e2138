"""Keep answers of the Responses API for a while, so that later requests can go on from them.

What is kept is bounded in bytes and in time; the answer that was used longest ago goes first. Each
API key has its own: nobody finds the answer of another key by its id.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

REFERENCE = "item_reference"
OVERHEAD_BYTES = 1_024
"""What an answer takes beside its texts: the entries that find it and its items, estimated."""
OVERHEAD_OF_ITEM_BYTES = 256
LARGEST_BYTES = 4 * 2**20
"""Of one answer with its conversation: more would take too long to read."""


class KeptResponse:
    """Hold one answer, as JSON: the parts that are asked for are read when they are."""

    def __init__(
        self,
        response: dict[str, Any],
        given: Sequence[dict[str, Any]],
        before: Sequence[dict[str, Any]],
        now: float,
    ):
        """Keep `response`. given: the items of its request. before: those of earlier ones."""
        self.response = msgspec.json.encode(response)
        self._given = msgspec.json.encode(given)
        self._before = msgspec.json.encode(before)
        self.item_ids = list(_by_id([*given, *response["output"]]))
        self.born = now

    @property
    def num_bytes(self) -> int:
        texts = (self.response, self._given, self._before)
        overhead = OVERHEAD_BYTES + OVERHEAD_OF_ITEM_BYTES * len(self.item_ids)
        return sum(map(len, texts)) + overhead

    def given(self) -> list[dict[str, Any]]:
        """Return the items of the request."""
        return msgspec.json.decode(self._given)

    def made(self) -> list[dict[str, Any]]:
        """Return the items of the answer."""
        return msgspec.json.decode(self.response)["output"]

    def conversation(self) -> list[dict[str, Any]]:
        """Return all items that a next request goes on from."""
        return [*msgspec.json.decode(self._before), *self.given(), *self.made()]

    def items(self) -> dict[str, dict[str, Any]]:
        """Return the items of the request and of the answer, by their ids."""
        return _by_id([*self.given(), *self.made()])


class ResponseStore:
    """Keep answers, at most `max_bytes` of them, each for `lifetime_s` since it was made."""

    def __init__(
        self, max_bytes: int, lifetime_s: float, clock: Callable[[], float] = time.monotonic
    ):
        self.max_bytes = max_bytes
        self.lifetime_s = lifetime_s
        self._clock = clock
        self._kept: OrderedDict[tuple[int, str], KeptResponse] = OrderedDict()  # oldest use first
        self._by_birth: dict[tuple[int, str], float] = {}  # oldest first
        self._of_item: dict[tuple[int, str], str] = {}
        self.num_bytes = 0
        self._lock = threading.RLock()  # long conversations are read on threads

    def __len__(self) -> int:
        return len(self._kept)

    def keep(
        self,
        owner: int,
        response: dict[str, Any],
        given: Sequence[dict[str, Any]],
        before: Sequence[dict[str, Any]],
    ) -> bool:
        """Keep an answer; others go for it. Return whether it is kept: it may be too large."""
        kept = KeptResponse(response, given, before, self._clock())
        with self._lock:
            self.remove(owner, response["id"])
            if kept.num_bytes > min(self.max_bytes, LARGEST_BYTES):
                return False
            self._remove_expired()
            while self.num_bytes + kept.num_bytes > self.max_bytes:
                self.remove(*next(iter(self._kept)))
            self._kept[owner, response["id"]] = kept
            self._by_birth[owner, response["id"]] = kept.born
            self.num_bytes += kept.num_bytes
            for name in kept.item_ids:
                self._of_item[owner, name] = response["id"]
        return True

    def get(self, owner: int, response_id: str) -> KeptResponse | None:
        """Return an answer of this owner, which counts as its use."""
        with self._lock:
            self._remove_expired()
            kept = self._kept.get((owner, response_id))
            if kept is not None:
                self._kept.move_to_end((owner, response_id))
            return kept

    def items_beside(self, owner: int, item_id: str) -> dict[str, dict[str, Any]]:
        """Return an item of this owner and those of the same answer, by their ids; none if it isn't
        there."""
        kept = self.get(owner, self._of_item.get((owner, item_id), ""))
        return {} if kept is None else kept.items()

    def remove(self, owner: int, response_id: str) -> bool:
        """Forget an answer; return whether it was there."""
        with self._lock:
            kept = self._kept.pop((owner, response_id), None)
            if kept is None:
                return False
            del self._by_birth[owner, response_id]
            self.num_bytes -= kept.num_bytes
            for name in kept.item_ids:
                if self._of_item.get((owner, name)) == response_id:
                    del self._of_item[owner, name]
        return True

    def _remove_expired(self) -> None:
        limit = self._clock() - self.lifetime_s
        while self._by_birth:
            oldest = next(iter(self._by_birth))
            if self._by_birth[oldest] > limit:
                return
            self.remove(*oldest)


def _by_id(items: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return items by their ids, without references: they have ids of items kept elsewhere."""
    return {i["id"]: i for i in items if "id" in i and i.get("type") != REFERENCE}
