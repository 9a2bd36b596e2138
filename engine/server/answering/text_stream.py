"""Write the tokens of one streamed answer that are only text: nearly all of them.

A token passes the layers of `Answer` in some twenty calls. Where a stream has one sequence and
shows nothing but its text, most tokens change only the text of a chunk and the counts. They take
the way below; what is more than that takes the general one, so both may follow each other.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from engine.core.messages import CoreOutput
from engine.server.http.answers import TextChunk
from engine.server.http.sse import Direct
from engine.server.telemetry.metrics import RequestClock
from engine.text.request_text import RequestText


class TextStream:
    """Take what the engine's socket brings for one stream, where it arrives."""

    def __init__(
        self,
        request: RequestText,
        clock: RequestClock,
        chunk: TextChunk,
        direct: Direct,
        otherwise: Callable[[list[CoreOutput]], bool],
    ):
        """Begin behind the first chunk.

        chunk: writes an event that has only text. otherwise: takes what isn't only text.
        """
        self._request = request
        self._add_text = request.sequences[0].add_text
        self._count = clock.next_token
        self._chunk = chunk.chunk
        self._write = direct.write
        self._otherwise = otherwise

    def take(self, outputs: list[CoreOutput]) -> bool:
        """Write what is new; return whether more may be written."""
        output = outputs[0]
        if (
            len(outputs) > 1
            or output.finish_reason is not None
            or len(output.token_ids) != 1
            or output.num_preemptions > self._request.num_preemptions
        ):
            return self._otherwise(outputs)
        text = self._add_text(output.token_ids[0])
        now = time.monotonic()
        self._count(now)
        return not text or self._write(self._chunk(text), now)
