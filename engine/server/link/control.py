"""Define what the first server process and the others of one engine say to each other.

    first ──▶ other   Ask, End
    other ──▶ first   Up, ProcessCounts

Requests and tokens don't pass here: each process has a channel of its own to the engine.
"""

from __future__ import annotations

import msgspec

from engine.server.telemetry.series import Counted


class Ask(msgspec.Struct, tag="ask"):
    """Ask what the process has counted."""


class End(msgspec.Struct, tag="end"):
    """Tell the process to end: to answer what it has, or, a second time, to give that up."""

    signal: str  # what the first process was told


class Up(msgspec.Struct, tag="up"):
    """Say that requests are taken from now on."""


class ProcessCounts(msgspec.Struct, tag="counts"):
    """Answer `Ask`."""

    num_open: int  # HTTP requests that are being answered
    num_unbooked: int  # requests on their way to the engine
    num_events_lost: int
    series: list[Counted]  # of its metrics


encode = msgspec.msgpack.Encoder().encode
decode_order = msgspec.msgpack.Decoder(Ask | End).decode
decode_answer = msgspec.msgpack.Decoder(Up | ProcessCounts).decode
