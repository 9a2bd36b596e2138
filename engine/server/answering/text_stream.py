"""Write the tokens of one streamed answer that are only text: nearly all of them.

A token passes the layers of `Answer` in some twenty calls. Where a stream has one sequence and
shows nothing but its text, most tokens change only the text of a chunk and the counts. They take
the way below; what is more than that takes the general one, so both may follow each other.

A step brings a token to every stream, and between two steps most of what belongs to a stream has
left the processor's caches. Each object that is read costs more time then than some lines of
Python, so all that a token needs is in this one, as far as can be.
"""

from __future__ import annotations

from functools import lru_cache

from engine.core.messages import CoreOutput
from engine.server.http.answers import TextChunk, encode_text
from engine.server.http.sse import Direct
from engine.server.link.mailbox import Mailbox, Taker
from engine.server.telemetry.metrics import RequestClock
from engine.text.request_text import RequestText


class TextStream:
    """Read the engine's news for one stream, where they arrive: a `Reader`.

    What it doesn't take itself, `take_all` is to get from the mailbox.
    """

    __slots__ = (
        "_alone", "_before", "_behind", "_chunk", "_clock", "_connection", "_last_s", "_mailbox",
        "_metrics", "_num_preemptions", "_otherwise", "_passes_on", "_plain", "_request",
        "_sequence", "_texts", "_token_ids",
    )  # fmt: skip

    def __init__(
        self,
        mailbox: Mailbox,
        request: RequestText,
        clock: RequestClock,
        chunk: TextChunk,
        direct: Direct,
        otherwise: Taker,
    ):
        """Begin behind the first chunk.

        chunk: writes an event that has only text. otherwise: takes what isn't only text.
        """
        self._mailbox = mailbox
        self._request, self._sequence = request, request.sequences[0]
        self._token_ids, self._texts = self._sequence.token_ids, self._sequence.texts
        self._clock, self._metrics = clock, clock.metrics
        self._chunk = chunk
        self._before, self._behind = chunk.before, _only(chunk.behind)
        self._connection = direct.connection
        self._otherwise = otherwise
        self._alone: CoreOutput | None = None  # the only one that isn't handed over
        self._passes_on = False  # several have come, or nothing more is to be written now
        self._last_s, self._num_preemptions = clock.last_s[0], request.num_preemptions
        self._plain = self._sequence.detokenizer.plain_texts

    def put(self, output: CoreOutput) -> None:
        if self._alone is None and not self._passes_on:
            self._alone = output
            return
        self._passes_on = True
        self.leave()
        self._mailbox.put(output)

    def hand_over(self, now: float) -> None:
        output, self._alone = self._alone, None
        if output is not None:
            token_ids = output.token_ids
            if (
                output.finish_reason is None
                and len(token_ids) == 1
                and output.num_preemptions <= self._num_preemptions
            ):
                try:
                    if not self._write(token_ids[0], now):
                        self._stop()
                except Exception as error:
                    self._passes_on = True
                    self._mailbox.break_flow(error)
                return
            self._mailbox.put(output)
        self._mailbox.hand_over(now)
        self._passes_on = not self._mailbox.flows

    def _write(self, token_id: int, now: float) -> bool:
        """Write a token that is only text; return whether more may be written."""
        text = self._plain.get(token_id)
        if text is None:
            text = self._sequence.add_text(token_id)
            self._plain = self._sequence.detokenizer.plain_texts
        else:
            self._token_ids.append(token_id)
            self._texts.append(text)
        self._metrics.next_token(now - self._last_s)
        self._last_s = now
        if text.isascii():
            return not text or self._connection.write(
                self._before + encode_text(text) + self._behind, now
            )
        return self._connection.write(self._chunk.chunk(text), now)

    def _stop(self) -> None:
        """Let the stream's coroutine write, which waits where this doesn't."""
        self._passes_on = True
        self._clock.last_s[0] = self._last_s
        self._mailbox.stop_flow()

    def take_all(self, outputs: list[CoreOutput]) -> bool:
        """Take outputs the general way; return whether more may come."""
        self._clock.last_s[0] = self._last_s
        wants_more = self._otherwise(outputs)
        self._look()
        return wants_more

    def leave(self) -> None:
        """Leave to the mailbox what isn't handed over."""
        output, self._alone = self._alone, None
        if output is not None:
            self._mailbox.put(output)

    def _look(self) -> None:
        """Take note of what the general way may have changed."""
        self._last_s = self._clock.last_s[0]
        self._num_preemptions = self._request.num_preemptions
        self._plain = self._sequence.detokenizer.plain_texts


@lru_cache(maxsize=64)
def _only(piece: bytes) -> bytes:
    """Return the one object that all streams with this piece share."""
    return piece
