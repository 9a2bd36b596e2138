"""Find out how a model writes calls and reasoning, from its chat template.

The template renders a known call, and each format tries to read it: the one that reads the same
call is the model's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from engine.config import ConfigError
from engine.text.chat_template import ChatTemplate
from engine.text.errors import TextError
from engine.text.messages.formats import (
    CALL_FORMATS,
    FORMATS,
    REASONING,
    REASONING_FORMATS,
    CallFormat,
    ReasoningFormat,
)
from engine.text.messages.marks import PlainText
from engine.text.messages.message_pieces import AssistantMessage
from engine.text.messages.parser import MessageParser
from engine.trace.events import EngineFormatsFound

AUTO, NONE = "auto", "none"
_NAME, _KEY, _VALUE = "probe_tool", "probe_key", "probe value"
_PARAMETERS = {"type": "object", "properties": {_KEY: {"type": "string"}}, "required": [_KEY]}
_TOOLS = [
    {
        "type": "function",
        "function": {"name": _NAME, "description": "Probe.", "parameters": _PARAMETERS},
    }
]
_ASKS = {"role": "user", "content": "Hello."}


class MessageFormats(NamedTuple):
    """Hold how a model writes calls and reasoning (None: it is not known to), and why that was
    found."""

    calls: CallFormat | None = None
    reasoning: ReasoningFormat | None = None
    takes_tools: bool = False  # the template writes tools into the prompt
    why: str = ""

    def event(self) -> EngineFormatsFound:
        """Make the event that says what was found."""
        names = [made.name if made is not None else "" for made in (self.calls, self.reasoning)]
        return EngineFormatsFound(calls=names[0], reasoning=names[1], why=self.why)


def find_formats(chat: ChatTemplate, calls: str = AUTO, reasoning: str = AUTO) -> MessageFormats:
    """Find the formats of a model. `calls`, `reasoning`: names of formats, "auto" or "none".

    Raises `ConfigError` for a name that is none of these.
    """
    _check_name("--tool-call-parser", calls, CALL_FORMATS)
    _check_name("--reasoning-parser", reasoning, REASONING_FORMATS)
    without, with_tools = _rendered(chat, [_ASKS], None), _rendered(chat, [_ASKS], _TOOLS)
    takes_tools = with_tools is not None and _NAME in with_tools and with_tools != without
    reasons: list[str] = []
    found = CALL_FORMATS.get(calls)
    if found is not None:
        reasons.append(f"calls as {calls}, by --tool-call-parser")
    elif calls == AUTO:
        found = _calls_of(chat)
        if found is not None:
            reasons.append(f"calls as {found.name}, as the chat template writes them")
    thinks = REASONING_FORMATS.get(reasoning)
    if thinks is not None:
        reasons.append(f"reasoning as {reasoning}, by --reasoning-parser")
    elif reasoning == AUTO:
        thinks = _reasoning_of(chat)
        if thinks is not None:
            reasons.append(f"reasoning between {thinks.begin} and {thinks.end}, which the chat "
                           "template has")  # fmt: skip
    return MessageFormats(found, thinks, takes_tools, "; ".join(reasons))


def _check_name(flag: str, name: str, formats: Mapping[str, object]) -> None:
    known = (AUTO, NONE, *sorted(formats))
    if name not in known:
        raise ConfigError(f"{flag} is {name!r}; choose one of {', '.join(known)}.")


def _calls_of(chat: ChatTemplate) -> CallFormat | None:
    call = {"name": _NAME, "arguments": {_KEY: _VALUE}}
    calls = [{"id": "probe0001", "type": "function", "function": call}]
    texts = answers_written(chat, [_ASKS], calls, _TOOLS)
    if not texts:
        return _named_in(chat.text)
    return next((made for made in FORMATS for text in texts if reads(made, text)), None)


def answers_written(
    chat: ChatTemplate, messages: list[dict[str, Any]], calls: list[dict[str, Any]], tools: Any
) -> list[str]:
    """Return what the template writes of an answer with calls; several texts if its beginning
    isn't certain, none if it writes none.

    The answer's mark may share its first letters with what a prompt ends with.
    """
    answer = {"role": "assistant", "content": None, "tool_calls": calls}
    text = _rendered(chat, [*messages, answer], tools, begins_answer=False)
    if text is None:
        return []
    before = [_rendered(chat, messages, tools, begins) for begins in (True, False)]
    cuts = dict.fromkeys(_common(text, other) for other in before if other is not None)
    return [text[cut:] for cut in cuts]


def _named_in(template: str) -> CallFormat | None:
    """Return the format whose marks stand in the text of a template that renders no call."""
    for made in FORMATS:
        if made.hint in template and any(mark in template for mark in made.begin):
            return made
    return None


def reads(made: CallFormat, written: str) -> bool:
    """Return whether a format reads the known call, and nothing else, in what was written."""
    message = read(made, written, {_NAME: _PARAMETERS})
    return [(call.name, _object(call.arguments)) for call in message.tool_calls] == [
        (_NAME, {_KEY: _VALUE})
    ]


def read(made: CallFormat, written: str, schemas: Mapping[str, Any]) -> AssistantMessage:
    """Read a text in which every mark is written out."""
    parser = MessageParser(PlainText(), made, None, (), schemas=schemas)
    parser.feed(written, ())
    parser.end("stop")
    return parser.message


def _reasoning_of(chat: ChatTemplate) -> ReasoningFormat | None:
    text = chat.text
    return next(
        (
            made
            for made in REASONING
            if (made.begin in text and made.end in text) or (made.hint and made.hint in text)
        ),
        None,
    )


def _rendered(
    chat: ChatTemplate, messages: list[dict[str, Any]], tools: Any, begins_answer: bool = True
) -> str | None:
    variables = {} if tools is None else {"tools": tools}
    try:
        return chat.render(
            messages, add_generation_prompt=begins_answer, chat_template_kwargs=variables
        )
    except TextError:
        return None


def _common(text: str, other: str) -> int:
    """Return how many characters at the beginning of two texts are the same."""
    return next(
        (place for place, (a, b) in enumerate(zip(text, other)) if a != b),
        min(len(text), len(other)),
    )


def _object(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
