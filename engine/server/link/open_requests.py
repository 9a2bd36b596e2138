"""Keep the table of open requests: who owns which id, and how far each request has come.

    claim(ids) ──▶ sent ──▶ book(number) ──▶ its sequences end ──▶ gone
       └─────────────┴───────────┴──── release(entry), at any time ──▶ gone

Whoever claims an id gets its entry. Only with the entry can the request be sent, ended or released,
so a request never changes another one with the same id. Counts are lengths of tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engine.server.link.mailbox import Mailbox, Reader

NONE: frozenset[int] = frozenset()
THE_FIRST = frozenset((0,))  # one for all requests that have one sequence


class IdInUse(Exception):
    """Report that an open request has this id."""

    def __init__(self, request_id: str):
        super().__init__(request_id)
        self.request_id = request_id


class OpenRequest:
    """Hold one request of this server, from its claim to its end.

    `number` is never used again, so that the engine's answer to one request can't be mistaken for
    the answer to a later one with the same id.
    """

    __slots__ = ("booked", "id", "mailbox", "num_sequences", "number", "reader", "unfinished")

    def __init__(self, request_id: str, number: int, mailbox: Mailbox):
        self.id = request_id
        self.number = number
        self.mailbox = mailbox
        self.reader: Reader = mailbox  # who gets its news
        self.num_sequences = 0  # that the core may have or have had: 0 before it is sent
        self.booked = False  # the core has taken it
        self.unfinished = NONE  # its sequences that run; none before it is booked

    @property
    def in_core(self) -> bool:
        """Return whether the core may have some of its sequences."""
        return bool(self.unfinished) or (self.num_sequences > 0 and not self.booked)

    async def until_booked(self) -> None:
        """Wait until the core has taken the request. Raises `ApiError` if it was refused."""
        while not self.booked:
            await self.mailbox.change()


class OpenRequests:
    """Hold each entry from its claim to its end, or its release."""

    def __init__(self) -> None:
        self._by_id: dict[str, OpenRequest] = {}
        self.get = self._by_id.get  # the open request with an id, None if there is none
        self._unbooked: dict[int, OpenRequest] = {}  # by number: those the core hasn't answered
        self._last_number = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[OpenRequest]:
        return iter(list(self._by_id.values()))

    def __contains__(self, entry: OpenRequest) -> bool:
        return self._by_id.get(entry.id) is entry

    @property
    def num_unbooked(self) -> int:
        """Count the requests that the core hasn't taken yet."""
        return len(self._unbooked)

    def claim(self, request_ids: Sequence[str], mailbox: Mailbox) -> list[OpenRequest]:
        """Claim these ids, all or none. Raises `IdInUse`."""
        taken = {request_id for request_id in request_ids if request_id in self._by_id}
        for request_id in request_ids:
            if request_id in taken:
                raise IdInUse(request_id)
            taken.add(request_id)  # nor twice here
        first = self._last_number + 1
        self._last_number += len(request_ids)
        entries = [OpenRequest(name, first + i, mailbox) for i, name in enumerate(request_ids)]
        by_id = {entry.id: entry for entry in entries}
        by_number = {entry.number: entry for entry in entries}
        self._by_id.update(by_id)  # nothing is called from here on that could fail in between
        self._unbooked.update(by_number)
        return entries

    def book(self, number: int) -> None:
        """Book a request that the core took; do nothing if it was released meanwhile."""
        entry = self._unbooked.pop(number, None)
        if entry is not None:
            entry.booked = True
            entry.unfinished = (
                THE_FIRST if entry.num_sequences == 1 else frozenset(range(entry.num_sequences))
            )
            entry.mailbox.wake()

    def refused(self, number: int) -> OpenRequest | None:
        """Release a request that the core refused. Return None if it was released meanwhile."""
        entry = self._unbooked.get(number)
        if entry is not None:
            self.release(entry)
            entry.num_sequences = 0
        return entry

    def release(self, entry: OpenRequest) -> bool:
        """Release a request. Return whether it was open."""
        if entry not in self:
            return False
        del self._by_id[entry.id]
        self._unbooked.pop(entry.number, None)
        return True
