"""Declare the fields that each API of a chat passes on to the one inner request as they are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from pydantic import PrivateAttr

from engine.sampling_params import ParameterError
from engine.server.answering.protocol import Body, ChatRequest
from engine.server.http.errors import ApiError, bad_request
from engine.text.errors import TextError

FORM = "response_format"
Failure = ApiError | ParameterError | TextError


class ChatMessages(NamedTuple):
    """Hold the messages of a chat, and where each comes from in the outer request."""

    messages: list[dict[str, Any]]
    places: list[str]


class PassedFields(Body):
    """Declare what this engine's chats take beyond what other APIs know. `None`: the default."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    priority: int = 0
    cache_salt: str | None = None
    request_id: str | None = None
    trace: Literal["steps", "full"] | None = None
    truncate_prompt_tokens: int | None = None
    truncation_side: Literal["left", "right"] | None = None

    @property
    def passed(self) -> dict[str, Any]:
        """Return these fields, without those that are left out."""
        own = [name for name in PassedFields.model_fields if name not in Body.model_fields]
        given = {name: getattr(self, name) for name in own}
        return {name: value for name, value in given.items() if value is not None}


class InnerRequest(ChatRequest):
    """Hold a chat into which another API's request is translated.

    Its errors are told in the words of that request.
    """

    _ignored: list[str] = PrivateAttr(default_factory=list)
    _names: dict[str, str] = PrivateAttr(default_factory=dict)
    _places: list[str] = PrivateAttr(default_factory=list)

    @classmethod
    def of(
        cls,
        fields: dict[str, Any],
        *,
        ignored: list[str],
        names: dict[str, str],
        places: list[str],
    ) -> InnerRequest:
        """Make the request from the fields of a chat.

        ignored: what of the outer request has no effect. names: the outer names of fields that are
        called otherwise there. places: where each of the messages stands in the outer request.
        """
        made = cls(**{name: value for name, value in fields.items() if value is not None})
        made._ignored, made._names, made._places = ignored, names, places
        return made

    def check(self) -> list[str]:
        return [*super().check(), *self._ignored]

    def keep_messages(self, kept: Sequence[int]) -> None:
        """Remove all messages but those at these places."""
        self.messages = [self.messages[place] for place in kept]
        self._places = [self._places[place] for place in kept]

    def told(self, error: Failure) -> ApiError:
        """Return an error as the outer request's: with its own names of fields and places."""
        if isinstance(error, ApiError) and error.param is None:
            return error
        message, param = str(error), error.param or ""
        inner, outer = self._renamed(param)
        if inner:
            names = f"{re.escape(inner)}|structured_outputs" if inner == FORM else re.escape(inner)
            message = re.sub(rf"\b(?:{names})\b", outer, message, count=1)
        param = outer + param.removeprefix(inner)
        if param.startswith("tools."):  # outside, what a chat has in "function" is in the tool
            schema = self._names["parameters"]
            for part, own in ((".function.parameters", f".{schema}"), (".function", "")):
                param, message = param.replace(part, own), message.replace(part, own)
        if isinstance(error, ApiError):
            return ApiError(error.status, message, param, error.headers)
        return bad_request(message, param)

    def _renamed(self, param: str) -> tuple[str, str]:
        """Return the start of a field's path that is called otherwise outside, and that name."""
        first, _, rest = param.partition(".")
        place, _, _ = rest.partition(".")
        if first == "messages" and place.isdecimal() and int(place) < len(self._places):
            return f"messages.{place}", self._places[int(place)]
        for name, outer in self._names.items():
            if param == name or param.startswith(f"{name}."):
                return name, outer
        return "", ""
