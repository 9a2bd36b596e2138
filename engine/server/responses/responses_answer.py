"""Write an answer as OpenAI's Responses API does: items of thoughts, text and calls."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

import msgspec

from engine.server.answering.answer import position_json, token_name
from engine.server.answering.generation import Generation
from engine.server.answering.passed import InnerRequest
from engine.server.answering.piece_answer import NamedEvent, PieceAnswer
from engine.server.http.errors import ApiError
from engine.server.responses.output_items import CallItem, MessageItem, OutputItem, ReasoningItem
from engine.server.responses.responses_body import ResponsesRequest
from engine.text.messages.message_pieces import ContentPiece, Piece, ReasoningPiece, ToolCallBegun

Keep = Callable[[dict[str, Any]], bool]
"""Keeps an answer, and returns whether it did."""


class ResponsesAnswer(PieceAnswer):
    """Write the answer, in one body or in events. `keep` gets it when it is complete."""

    begins_at_once = True

    def __init__(
        self, generation: Generation, inner: InnerRequest, body: ResponsesRequest, keep: Keep | None
    ):
        super().__init__(generation, inner)
        self.body = body
        self.keep = keep
        self.created_at = int(time.time())
        self.items: list[OutputItem] = []
        self.is_open = False  # the last item goes on
        self.num_told = 0  # tokens whose log-probabilities are told
        self._sequence_number = 0

    def begin(self) -> None:
        for name in ("created", "in_progress"):
            self.tell(f"response.{name}", response=self._response("in_progress"))

    def take(self, piece: Piece) -> None:
        if isinstance(piece, ToolCallBegun):
            self._open(CallItem(self._new_id("fc_"), piece.id, piece.name))
            return
        if isinstance(piece, ContentPiece):
            if not self._goes_on(MessageItem):
                self._open(MessageItem(self._new_id("msg_")))
        elif isinstance(piece, ReasoningPiece) and not self._goes_on(ReasoningItem):
            self._open(ReasoningItem(self._new_id("rs_"), self._wants_summary))
        item = self.items[-1]
        logprobs = self._new_logprobs() if isinstance(item, MessageItem) else []
        for name, fields in item.delta(piece.text, logprobs):
            self._tell_of_item(name, **fields)

    def end(self) -> None:
        self._close("incomplete" if self._status() == "incomplete" else "completed")
        response = self._response(self._status())
        if self.keep is not None and not self.keep(response):
            self.keep = None
            response["store"] = False
        self.tell(f"response.{response['status']}", response=response)

    def failed(self, error: ApiError) -> list[NamedEvent]:
        code = "invalid_prompt" if error.status < 500 else "server_error"
        told = {"code": code, "message": error.message}
        self._sequence_number -= len(self.events)  # these are never sent, and numbers have no gap
        self.events.clear()
        if self.is_open:
            self.items[-1].status = "incomplete"
        self.tell("error", **told, param=None)
        failed = {**self._response("failed"), "error": told}
        self.tell("response.failed", response=failed)
        return self.events

    def whole(self) -> dict[str, Any]:
        self.build()
        return self._response(self._status())

    # ----------------------------------------------------------------------------------- its parts

    def tell(self, name: str, /, **fields: Any) -> None:
        """Add an event, with its number."""
        number, self._sequence_number = self._sequence_number, self._sequence_number + 1
        event = {"type": name, "sequence_number": number, **fields}
        self.events.append((name, msgspec.json.encode(event)))

    def _tell_of_item(self, name: str, /, **fields: Any) -> None:
        place = {"item_id": self.items[-1].id, "output_index": len(self.items) - 1}
        self.tell(f"response.{name}", **place, **fields)

    @staticmethod
    def _new_id(prefix: str) -> str:
        return prefix + uuid.uuid4().hex

    @property
    def _wants_summary(self) -> bool:
        return self.body.reasoning is not None and self.body.reasoning.summary is not None

    def _goes_on(self, kind: type[OutputItem]) -> bool:
        return self.is_open and isinstance(self.items[-1], kind)

    def _open(self, item: OutputItem) -> None:
        self._close()
        self.items.append(item)
        self.is_open = True
        place = len(self.items) - 1
        self.tell("response.output_item.added", output_index=place, item=item.begun())
        for name, fields in item.opened():
            self._tell_of_item(name, **fields)

    def _close(self, status: str = "completed") -> None:
        if not self.is_open:
            return
        item, self.is_open = self.items[-1], False
        item.status = status
        for name, fields in item.closed():
            self._tell_of_item(name, **fields)
        place = len(self.items) - 1
        self.tell("response.output_item.done", output_index=place, item=item.whole())

    def _new_logprobs(self) -> list[dict[str, Any]]:
        """Return the log-probabilities of the tokens since the last text."""
        if self.sequence.logprobs is None:
            return []
        new = self.sequence.logprobs[self.num_told :]
        self.num_told += len(new)
        return [position_json(position, token_name(None)) for position in new]

    def _status(self) -> str:
        reason = self.sequence.finish_reason
        if reason is None:
            return "in_progress"
        return "incomplete" if reason == "length" else "completed"

    def _response(self, status: str) -> dict[str, Any]:
        body, inner, ended = self.body, self.inner, status != "in_progress"
        why = {"reason": "max_output_tokens"} if status == "incomplete" else None
        effort = body.reasoning.effort if body.reasoning is not None else None
        summary = body.reasoning.summary if body.reasoning is not None else None
        form = body.text.format if body.text is not None else None
        return {
            "id": self.generation.id,
            "object": "response",
            "created_at": self.created_at,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": why,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": self.generation.service.config.model_name,
            "output": [item.whole() for item in self.items] if ended else [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "reasoning": {"effort": effort, "summary": summary},
            "store": self.keep is not None,
            "temperature": 1.0 if inner.temperature is None else inner.temperature,
            "text": {"format": form or {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": 1.0 if inner.top_p is None else inner.top_p,
            "truncation": body.truncation or "disabled",
            "usage": self._usage() if ended else None,
        }

    def _usage(self) -> dict[str, Any]:
        usage = self.generation.usage
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens or 0},
            "total_tokens": usage.total_tokens,
        }
