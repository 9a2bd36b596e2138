"""Find the items of earlier answers that a request refers to by their ids."""

from __future__ import annotations

from typing import Any

import msgspec

from engine.server.http.errors import bad_request
from engine.server.responses.response_store import LARGEST_BYTES, ResponseStore


class ReferredItems:
    """Find items for one request: each answer is read once, and what is found is bounded."""

    def __init__(self, store: ResponseStore, owner: int):
        self._store = store
        self._owner = owner
        self._read: dict[str, dict[str, Any]] = {}
        self._num_bytes = 0

    def find(self, name: str) -> dict[str, Any] | None:
        """Return the item with this id, None if there is none.

        Raises `ApiError` 400 for more than a conversation may have: a few bytes refer to a long
        item, and may do so often.
        """
        if name not in self._read:
            self._read.update(self._store.items_beside(self._owner, name))
        item = self._read.get(name)
        if item is not None:
            self._num_bytes += len(msgspec.json.encode(item))
            if self._num_bytes > LARGEST_BYTES:
                raise bad_request(
                    f"The items that input refers to have more than {LARGEST_BYTES:,} bytes, which "
                    "is the most taken. Refer to fewer, or begin a new conversation.",
                    "input",
                )
        return item
