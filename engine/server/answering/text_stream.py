"""Write the tokens of one streamed answer that are only text: nearly all of them.

A token passes the layers of `Answer` in some twenty calls. Where a stream has one sequence and
shows nothing but its text, most tokens change only the text of a chunk and the counts. They take
the way below; what is more than that takes the general one, so both may follow each other.

A step brings a token to every stream, and between two steps most of what belongs to a stream has
left the processor's caches. Each object that is read costs more time then than some lines of
Python, so all that a token needs is in this one, as far as can be.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from engine.core.messages import CoreOutput
from engine.server.http.answers import TextChunk, encode_text
from engine.server.http.sse import Direct
from engine.server.link.mailbox import Mailbox, Taker
from engine.server.telemetry.metrics import RequestClock
from engine.text.detokenizer import NO_TEXTS
from engine.text.request_text import RequestText, TextDelta


class TextStream:
    """Read the engine's news for one stream, where they arrive: a `Reader`.

    What it doesn't take itself, `take_all` is to get from the mailbox.
    """

    __slots__ = (
        "_alone", "_before", "_behind", "_chunk", "_clock", "_connection", "_gathered", "_interval",
        "_last_s", "_mailbox", "_metrics", "_num_preemptions", "_num_untold", "_otherwise",
        "_passes_on", "_plain", "_request", "_sequence", "_texts", "_token_ids", "_untold",
    )  # fmt: skip

    def __init__(
        self,
        mailbox: Mailbox,
        request: RequestText,
        clock: RequestClock,
        chunk: TextChunk,
        direct: Direct,
        otherwise: Taker,
        interval: int,
        gathered: dict[int, TextDelta],
    ):
        """Begin behind the first chunk.

        chunk: writes an event that has only text. otherwise: takes what isn't only text. interval:
        tokens of an event. gathered: has what `otherwise` has to tell later, by sequence.
        """
        self._mailbox = mailbox
        self._request, self._sequence = request, request.sequences[0]
        self._token_ids, self._texts = self._sequence.token_ids, self._sequence.texts
        self._clock, self._metrics = clock, clock.metrics
        self._chunk = chunk
        self._before, self._behind = chunk.before, _only(chunk.behind)
        self._connection = direct.connection
        self._otherwise = otherwise
        self._interval, self._gathered = interval, gathered
        self._alone: CoreOutput | None = None  # the only one that isn't handed over
        self._passes_on = False  # several have come, or nothing more is to be written now
        self._untold, self._num_untold = "", 0
        self._last_s, self._num_preemptions = 0.0, 0
        self._plain: Mapping[int, str] = NO_TEXTS
        self._take_over()

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
        if self._interval > 1:
            self._num_untold += 1
            self._untold += text
            if self._num_untold < self._interval:
                return True
            text, self._untold, self._num_untold = self._untold, "", 0
        if text.isascii():
            return not text or self._connection.write(
                self._before + encode_text(text) + self._behind, now
            )
        return self._connection.write(self._chunk.chunk(text), now)

    def _stop(self) -> None:
        """Let the stream's coroutine write, which waits where this doesn't."""
        self._passes_on = True
        self._give_back()
        self._mailbox.stop_flow()

    def take_all(self, outputs: list[CoreOutput]) -> bool:
        """Take outputs the general way; return whether more may come."""
        self._give_back()
        wants_more = self._otherwise(outputs)
        self._take_over()
        return wants_more

    def leave(self) -> None:
        """Leave to the mailbox what isn't handed over, and to the general way what isn't told."""
        self._give_back()
        output, self._alone = self._alone, None
        if output is not None:
            self._mailbox.put(output)

    def _give_back(self) -> None:
        """Keep what happened since `_take_over` where the general way looks for it."""
        self._clock.last_s[0] = self._last_s
        if self._num_untold:
            self._gathered[0] = TextDelta(
                request=self._request,
                index=0,
                text=self._untold,
                token_ids=self._token_ids[-self._num_untold :],
                logprobs=None,
            )
            self._untold, self._num_untold = "", 0

    def _take_over(self) -> None:
        """Take note of what the general way may have changed."""
        self._last_s = self._clock.last_s[0]
        self._num_preemptions = self._request.num_preemptions
        self._plain = self._sequence.detokenizer.plain_texts
        untold = self._gathered.pop(0, None)
        if untold is not None:
            self._untold, self._num_untold = untold.text, len(untold.token_ids)


@lru_cache(maxsize=64)
def _only(piece: bytes) -> bytes:
    """Return the one object that all streams with this piece share."""
    return piece
