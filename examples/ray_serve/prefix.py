"""Choose for each prompt the replica that has computed its beginning before.

Every replica caches the blocks of prompts that it computed, for itself. So requests that begin
alike should meet in one replica. No table of what lies where is kept: a hash of the beginning and
the replica's name gives each replica a weight, and the heaviest is first (rendezvous hashing,
Thaler and Ravishankar 1998). Every router then decides alike, and a replica that comes or goes
moves only the prompts that it gets or had.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

PREFIX_CHARS = 512
"""How much of a prompt is looked at: about 128 tokens, 8 blocks of 16."""


class _Asked(msgspec.Struct):
    """Read what a prompt consists of in the bodies of all our APIs; other fields are skipped."""

    system: Any = None
    instructions: Any = None
    prompt: Any = None
    messages: Any = None
    input: Any = None


def prefix_of(body: bytes, num_chars: int = PREFIX_CHARS) -> bytes:
    """Return the beginning of a request's prompt, at most `num_chars` long; empty if it has none.

    A chat is cut behind its first question, so that all turns of a conversation begin alike.
    """
    try:
        asked = msgspec.json.decode(body, type=_Asked)
    except (msgspec.DecodeError, RecursionError):
        return b""  # the engine will say what is wrong with it
    said = [asked.prompt, asked.messages, asked.input]
    begin = [_to_first_question(part) for part in said if part]
    if not begin:
        return b""
    whole = [part for part in (asked.system, asked.instructions) if part] + begin
    return msgspec.json.encode(whole)[:num_chars]


def _to_first_question(part: Any) -> Any:
    if isinstance(part, list):
        for place, message in enumerate(part):
            if isinstance(message, dict) and message.get("role") == "user":
                return part[: place + 1]
    return part


def in_order(prefix: bytes, names: Iterable[str]) -> list[str]:
    """Return the names of replicas, the one first that `prefix` belongs to."""
    return sorted(names, key=lambda name: _weight(prefix, name), reverse=True)


def _weight(prefix: bytes, name: str) -> bytes:
    return hashlib.blake2b(prefix, key=name.encode()[:64], digest_size=8).digest()


def spread(order: Sequence[str], num_open: Mapping[str, int], enough: int) -> list[str]:
    """Move replicas behind the others that have too much to do.

    Too much is more than `enough` requests, and a quarter more than the mean: a beginning that
    everybody shares would otherwise keep one replica busy, and the rest idle.
    """
    mean = sum(num_open.get(name, 0) for name in order) / len(order)
    most = max(enough, 1.25 * mean)
    return sorted(order, key=lambda name: num_open.get(name, 0) >= most)
