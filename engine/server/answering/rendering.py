"""Render conversations within limits of time and length, all but short ones off the event loop."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from engine.server.answering.protocol import Conversation
from engine.server.http.errors import bad_request
from engine.server.service import Service
from engine.text.characters import mended
from engine.text.lanes import FOREIGN, LONG, LONG_TEXT, in_lane, in_lane_within, lane_for
from engine.text.template_process import RENDER_S

FEW_MESSAGES = 64
FEWEST_MESSAGES = 16
SHORT_CHARACTERS = 1_000
CHARACTERS_OF_A_TOOL = 1_000  # templates write its definition as JSON
QUICK_S = 0.002
"""A short conversation is rendered on the event loop if the last one of the model's template took
no longer than this: a thread costs more than such a template does."""


async def render(service: Service, body: Conversation) -> str:
    """Render the conversation with the model's template, or with the body's own.

    Raises `ApiError` 503 or 400, or `TextError`.
    """
    work = functools.partial(
        service.ready_text().chat.render,
        body.messages,
        chat_template=body.chat_template,
        add_generation_prompt=body.begins_answer,
        continue_final_message=body.continue_final_message,
        chat_template_kwargs=body.template_variables,
    )
    if body.chat_template is not None:
        if not service.config.trust_request_chat_template:
            raise bad_request(
                "chat_template is a program, and this server runs none of its clients'. Leave it "
                "out, or start the server with --trust-request-chat-template.",
                "chat_template",
            )
        prompt = await in_lane(FOREIGN, work)
    else:
        start = time.perf_counter()
        prompt = await _with_own_template(service, body, work)
        if _is_short(body):
            service.short_render_s = time.perf_counter() - start
    service.limits.check_prompt(prompt, "messages")
    return mended(prompt)


async def _with_own_template(service: Service, body: Conversation, work: Callable[[], str]) -> str:
    if service.short_render_s <= QUICK_S and _is_short(body):
        return work()
    try:
        return await in_lane_within(_lane(body), work, RENDER_S)
    except TimeoutError:
        raise bad_request(
            f"The chat template took more than {RENDER_S:g} s for these messages and was "
            "stopped. Send fewer or shorter ones.",
            "messages",
        ) from None


def _is_short(body: Conversation) -> bool:
    """Return whether little is to be rendered, of known size: texts alone, no variables."""
    return (
        len(body.messages) <= FEWEST_MESSAGES
        and not body.template_variables
        and sum(map(_size_of_message, body.messages)) <= SHORT_CHARACTERS
    )


def _size_of_message(message: dict[str, Any]) -> int:
    content = message.get("content")
    if isinstance(content, str) and message.keys() <= {"role", "content"}:
        return len(content)
    return LONG_TEXT


def _lane(body: Conversation) -> ThreadPoolExecutor:
    if len(body.messages) > FEW_MESSAGES:
        return LONG
    sizes = (_size(message.get("content")) for message in body.messages)
    return lane_for(sum(sizes) + CHARACTERS_OF_A_TOOL * len(body.tools or ()))


def _size(content: Any) -> int:
    return len(content) if isinstance(content, str) else LONG_TEXT + 1 if content else 0
