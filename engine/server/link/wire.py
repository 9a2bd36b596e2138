"""What crosses the border between the server process and the engine process, as msgpack: orders go
down, news come up. `channel` is how; the record's events have a channel of their own.
"""

from __future__ import annotations

import msgspec

from engine.core.messages import CoreOutput, CoreRequest, KVShape, StepStats

# ---------------------------------------------------------------------------------- server → engine


class Add(msgspec.Struct, tag="add"):
    """Serve this request. The engine answers with its id in `Booked`, before the next step."""

    request: CoreRequest


class Abort(msgspec.Struct, tag="abort"):
    """Nobody waits for this request any more: free all it has."""

    request_id: str
    why: str


class Finish(msgspec.Struct, tag="finish"):
    """The text of one sequence is complete: a stop string was found in it."""

    request_id: str
    index: int  # which of its n sequences
    stop_reason: str  # the stop string


class Stop(msgspec.Struct, tag="stop"):
    """Leave the loop and exit."""


Order = Add | Abort | Finish | Stop

# ---------------------------------------------------------------------------------- engine → server


class Loading(msgspec.Struct, tag="loading"):
    """How far the model is; shown by /health."""

    stage: str


class Ready(msgspec.Struct, tag="ready"):
    """The model is loaded and the engine takes requests."""

    kv: KVShape
    own_cpus: list[int] = []
    """Those of the core that the engine's loop stays on; the server is to leave them to it."""


class Refusal(msgspec.Struct, array_like=True):
    """The core can never serve this request; `param` names the field at fault, where there is
    one."""

    request_id: str
    param: str | None
    message: str


class Booked(msgspec.Struct, tag="booked"):
    """Which requests the core took, and which it refused."""

    accepted: list[str]
    refused: list[Refusal]
    num_waiting: int  # requests in the core's queue, the accepted ones included


class Step(msgspec.Struct, tag="step"):
    """One step's tokens, and the state after it."""

    outputs: list[CoreOutput]
    stats: StepStats


class Failed(msgspec.Struct, tag="failed"):
    """The engine can't go on; the process ends."""

    message: str


News = Loading | Ready | Booked | Step | Failed

encode = msgspec.msgpack.Encoder().encode
decode_order = msgspec.msgpack.Decoder(Order).decode
decode_news = msgspec.msgpack.Decoder(News).decode
