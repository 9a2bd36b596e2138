"""Take an answer apart while it is written: reasoning, content, calls of tools.

    text and tokens ──▶ marks ──▶ first, reasoning, content, call ──▶ pieces

Text that may be the beginning of a mark is held back until that is certain. A call that can't be
read is content. Nothing that a model writes raises an error.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from engine.text.characters import mended
from engine.text.messages.call_body import Began, CallBody, CallEvent
from engine.text.messages.formats import CallFormat, ReasoningFormat
from engine.text.messages.marks import Finder, Mark, overlap
from engine.text.messages.message_pieces import (
    AssistantMessage,
    CallRead,
    CallUnreadable,
    ContentPiece,
    MessageBuilder,
    Piece,
    ReasoningPiece,
    ToolCall,
    ToolCallArguments,
    ToolCallBegun,
)

_ALPHABET = string.ascii_letters + string.digits


class MessageParser:
    """Take one answer apart.

    `single`: the texts of the added tokens; a mark among them is found by its token only.
    """

    def __init__(
        self,
        finder: Finder,
        calls: CallFormat | None,
        reasoning: ReasoningFormat | None,
        single: Collection[str],
        *,
        schemas: Mapping[str, Any],
        begins_reasoning: bool = False,
        num_earlier_calls: int = 0,
        one_call: bool = False,
        hides_reasoning: bool = False,
    ):
        self.num_reasoning_tokens = 0
        self.noted: list[CallRead | CallUnreadable] = []  # for the record, whose reader empties it
        self._finder = finder
        self._calls = calls
        self._reasoning = reasoning
        made = [form for form in (calls, reasoning) if form is not None]
        self._around = tuple(dict.fromkeys(mark for form in made for mark in form.around))
        self._read_as_text = frozenset(mark for form in made for mark in form.inner)
        self._single = single
        self._schemas = schemas
        self._num_earlier_calls = num_earlier_calls
        self._one_call = one_call
        self._hides_reasoning = hides_reasoning
        self._state = "first"  # first, reasoning, content, call
        self._body: CallBody | None = None
        self._opening = ""  # what began this call
        self._told_here = 0  # calls since that
        self._surplus = False  # this call comes behind the one that may come
        self._held = ""  # may be the beginning of a mark
        self._space = ""  # at the end of what was told
        self._trims = False  # leaves out space at the beginning of a part
        self._built = MessageBuilder()
        self._pieces: list[Piece] = []
        if reasoning is not None and begins_reasoning:
            self._begin("reasoning")

    @property
    def message(self) -> AssistantMessage:
        """Return the message so far."""
        return self._built.message

    def call(self, index: int) -> ToolCall:
        """Return a call, as far as it is known."""
        return self._built.call(index)

    @property
    def num_calls(self) -> int:
        return self._built.num_calls

    @property
    def in_call(self) -> bool:
        return self._state == "call"

    @property
    def is_complete(self) -> bool:
        """Return whether the one call is there that may come."""
        return self._surplus or (self._one_call and self.num_calls > 0 and not self.in_call)

    def feed(self, text: str, token_ids: Sequence[int]) -> list[Piece]:
        """Take new tokens and the text that is released; return what is certain now."""
        for part in self._finder.feed(text, token_ids):
            if isinstance(part, Mark):
                self._take_token(part)
            else:
                self._take_text(part)
        return self._taken()

    def end(self, finish_reason: str | None) -> list[Piece]:
        """Return what was held back, because no more text comes."""
        self._take_held()
        if self._state == "call":
            self._end_call("", cut=finish_reason != "stop")
        if self._space and not self.num_calls:
            kind = ReasoningPiece if self._state == "reasoning" else ContentPiece
            self._tell(kind(self._space))
        self._space = ""
        return self._taken()

    # ------------------------------------------------------------------------------ marks

    def _take_held(self) -> None:
        """Take what was held back as text: no mark came of it."""
        rest, self._held = self._held, ""
        if rest:
            self._consume(rest)

    def _take_token(self, mark: Mark) -> None:
        """Take an added token: a mark, or text, or nothing."""
        reads = mark.text in self._read_as_text
        is_mark = self._is_mark(mark.text, by_token=True)
        if not is_mark and (reads or not mark.special):
            self._take_text(mark.text)
            return
        self._take_held()
        self._pass(mark.text, counts=False)
        if is_mark:
            self._take_mark(mark.text)

    def _take_text(self, text: str) -> None:
        """Take text that isn't an added token; marks may be written in it."""
        self._held += text
        while self._held:
            state = self._state
            marks = [mark for mark in self._marks() if mark not in self._single]
            at, mark = min(
                ((place, mark) for mark in marks if (place := self._held.find(mark)) >= 0),
                default=(-1, ""),
            )
            if at < 0:
                keep = max((overlap(self._held, mark) for mark in marks), default=0)
                certain = self._held[: len(self._held) - keep]
                self._held = self._held[len(certain) :]
                self._consume(certain)
                if self._state == state:
                    return
                continue
            before, rest = self._held[:at], self._held[at + len(mark) :]
            self._held = ""
            self._consume(before)
            if self._state != state:
                self._held = mark + rest
                continue
            if self._body is not None and self._body.in_string:
                self._consume(mark)
            else:
                self._pass(mark, counts=False)
                self._take_mark(mark)
            self._held = rest

    def _marks(self) -> list[str]:
        """Return the marks that mean something now."""
        calls, reasoning = self._calls, self._reasoning
        if self._state == "reasoning":
            return [reasoning.end] if reasoning is not None else []
        marks = [*self._around, *(calls.begin if calls is not None else ())]
        if self._state == "call":
            return [*marks, *calls.end] if calls is not None else marks
        if reasoning is not None and (self._state == "first" or reasoning.again):
            marks.append(reasoning.begin)
        return marks

    def _is_mark(self, text: str, by_token: bool) -> bool:
        # A call's own token ends the reasoning that it stands in; its letters may be thoughts.
        begins = self._calls is not None and text in self._calls.begin
        return text in self._marks() or (by_token and self._state == "reasoning" and begins)

    def _take_mark(self, mark: str) -> None:
        begins = self._calls is not None and mark in self._calls.begin
        if self._state == "call":
            self._end_call("" if begins else mark, cut=False)
        elif self._reasoning is not None and mark == self._reasoning.end:
            self._begin("content")
            return
        elif self._reasoning is not None and mark == self._reasoning.begin:
            self._begin("reasoning")
            return
        if begins:
            self._begin_call(mark)

    def _begin(self, state: str) -> None:
        self._state = state
        self._space = ""
        self._trims = True

    # ------------------------------------------------------------------------------ text

    def _consume(self, text: str) -> None:
        """Take text without marks."""
        self._pass(text, counts=self._state == "reasoning")
        self._tell_text(text)

    def _pass(self, text: str, counts: bool) -> None:
        """Leave text behind. counts: the tokens that begin in it are reasoning."""
        started = self._finder.count_started(len(text))
        if counts:
            self.num_reasoning_tokens += started

    def _tell_text(self, text: str) -> None:
        if self._state == "first":
            self._space += text
            begun = self._space.lstrip()
            if not begun:
                return
            text, self._space = self._space, ""
            self._state = "content"
            if self._calls is not None and begun[0] in self._calls.starts:
                self._begin_call("")
        if self._state == "call":
            self._in_call(text)
            return
        if self._trims:
            text = text.lstrip()
            self._trims = not text
        told = text.rstrip()
        if told:
            kind = ReasoningPiece if self._state == "reasoning" else ContentPiece
            self._tell(kind(self._space + told))
            self._space = ""
        self._space += text[len(told) :]

    # ------------------------------------------------------------------------------ calls

    def _begin_call(self, mark: str) -> None:
        assert self._calls is not None
        self._state = "call"
        self._body = self._calls.body(self._schemas)
        self._opening = mark
        self._told_here = 0

    def _in_call(self, text: str) -> None:
        body = self._body
        assert body is not None
        for event in body.feed(text):
            self._take_event(event)
        if body.broken and not self._opening:  # no mark will say where it ends
            self._end_call("", cut=True)

    def _take_event(self, event: CallEvent) -> None:
        # Escapes that were read may name half characters, which nothing could write as UTF-8.
        if not isinstance(event, Began):
            if not self._surplus:
                self._tell(ToolCallArguments(self.num_calls - 1, mended(event.text)))
            return
        event = Began(mended(event.name), event.id and mended(event.id))
        if self._told_here and not self._surplus:
            self.noted.append(CallRead(self.num_calls - 1))
        self._told_here += 1
        self._space = ""
        self._surplus = self._one_call and self.num_calls > 0
        if not self._surplus:
            self._tell(ToolCallBegun(self.num_calls, self._id(event), event.name))

    def _end_call(self, mark: str, cut: bool) -> None:
        body, space = self._body, self._space
        assert body is not None
        for event in body.end(cut):
            self._take_event(event)
        self._begin("content")
        self._body = None
        if not self._told_here:
            self._trims = False
            text = space + self._opening + body.unread + mark
            self.noted.append(CallUnreadable(len(text), "it isn't written as one"))
            self._tell(ContentPiece(text))
        elif body.broken:
            why = "what follows is no call" if body.unread else "its arguments have no end"
            self.noted.append(CallUnreadable(len(body.unread), why))
            if body.unread:
                self._tell_text(body.unread)
        elif not self._surplus:
            self.noted.append(CallRead(self.num_calls - 1))

    def _id(self, began: Began) -> str:
        if began.id:
            return began.id
        kind = "call" if self._calls is None else self._calls.new_id
        if kind == "numbered":  # counted over the whole conversation
            return f"functions.{began.name}:{self._num_earlier_calls + self.num_calls}"
        letters = "".join(secrets.choice(_ALPHABET) for _ in range(9 if kind == "nine" else 24))
        return letters if kind == "nine" else f"call_{letters}"

    def _tell(self, piece: Piece) -> None:
        if self._one_call and self.num_calls and isinstance(piece, ContentPiece):
            return  # the one call ends the answer
        if self._hides_reasoning and isinstance(piece, ReasoningPiece):
            return
        self._built.add(piece)
        self._pieces.append(piece)

    def _taken(self) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        return pieces
