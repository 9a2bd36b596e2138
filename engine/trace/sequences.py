"""Name sequences in plans and in the record: request "x" with n = 3 runs as "x", "x.1", "x.2".

The core refuses a request whose own id reads like a sequence's name, so each name has one meaning.
An HTTP request "x" with three prompts makes three requests, "x", "x:1" and "x:2". No client can
choose such an id: its letters are letters, digits, "-" and "_". So nor can it choose "x.p2", which
the second of several server processes makes of the header X-Request-Id.
"""

from __future__ import annotations


def sequence_name(request_id: str, index: int) -> str:
    """Return the name of one of a request's n sequences."""
    return f"{request_id}.{index}" if index else request_id


def prompt_name(request_id: str, place: int) -> str:
    """Return the request id of one of an HTTP request's prompts."""
    return f"{request_id}:{place}" if place else request_id


def request_and_index(name: str) -> tuple[str, int]:
    """Return a sequence's request id, and its index among the request's sequences."""
    request_id, _dot, number = name.rpartition(".")
    if request_id and number.isascii() and number.isdigit() and number[0] != "0":
        return request_id, int(number)
    return name, 0


def request_of(name: str) -> str:
    """Return the request id of a sequence."""
    return request_and_index(name)[0]
