"""Define the messages between the server process and the engine process, as msgpack.

The server sends orders, the engine sends news, over `channel`. The record's events have a channel
of their own.
"""

from __future__ import annotations

import msgspec

from engine.core.messages import CoreOutput, CoreRequest, GrammarTokenizer, KVShape, StepStats

# ---------------------------------------------------------------------------------- server → engine


class Add(msgspec.Struct, tag="add"):
    """Serve this request. The engine answers with its number in `Booked`, before the next step."""

    number: int  # of this order: a request's id may be used again
    request: CoreRequest


class TellTokenizer(msgspec.Struct, tag="tokenizer"):
    """Say which tokens there are, once, before the first request that has a grammar."""

    source: GrammarTokenizer


class Abort(msgspec.Struct, tag="abort"):
    """Abort a request that nobody waits for: free all it has."""

    request_id: str
    why: str


class Finish(msgspec.Struct, tag="finish"):
    """End one sequence: its text is complete, because a stop string was found in it."""

    request_id: str
    index: int  # which of its n sequences
    stop_reason: str  # the stop string


class Stop(msgspec.Struct, tag="stop"):
    """Leave the loop and exit."""


Order = Add | TellTokenizer | Abort | Finish | Stop

# ---------------------------------------------------------------------------------- engine → server


class Loading(msgspec.Struct, tag="loading"):
    """Report the progress of loading; shown by /health."""

    stage: str


class Ready(msgspec.Struct, tag="ready"):
    """Report that the model is loaded and the engine takes requests."""

    kv: KVShape
    own_cpus: list[int] = []
    """CPUs of the core that the engine's loop is bound to; the server keeps off them."""


class Refusal(msgspec.Struct, array_like=True):
    """Report that the core can never serve the request of this number. `param` names the field, if
    there is one."""

    number: int
    param: str | None
    message: str
    is_busy: bool = False  # the request may be sent again later: too many wait


class Booked(msgspec.Struct, tag="booked"):
    """List the requests that the core took, by their numbers, and those that it refused.

    All news of an earlier request with the same id precede it.
    """

    accepted: list[int]
    refused: list[Refusal]
    num_waiting: int  # requests in the core's queue, the accepted ones included


class Step(msgspec.Struct, tag="step"):
    """Carry one step's tokens, and the state after it."""

    outputs: list[CoreOutput]
    stats: StepStats


class Failed(msgspec.Struct, tag="failed"):
    """Report that the engine can't continue; the process ends."""

    message: str


News = Loading | Ready | Booked | Step | Failed

encode = msgspec.msgpack.Encoder().encode
decode_order = msgspec.msgpack.Decoder(Order).decode
decode_news = msgspec.msgpack.Decoder(News).decode
