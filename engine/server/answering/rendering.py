"""Render conversations outside the event loop, within limits of time and length."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from engine.server.answering.protocol import Conversation
from engine.server.http.errors import bad_request
from engine.server.service import Service
from engine.text.characters import mended
from engine.text.lanes import FOREIGN, LONG, LONG_TEXT, in_lane, in_lane_within, lane_for
from engine.text.template_process import RENDER_S

FEW_MESSAGES = 64


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
        try:
            prompt = await in_lane_within(_lane(body), work, RENDER_S)
        except TimeoutError:
            raise bad_request(
                f"The chat template took more than {RENDER_S:g} s for these messages and was "
                "stopped. Send fewer or shorter ones.",
                "messages",
            ) from None
    service.limits.check_prompt(prompt, "messages")
    return mended(prompt)


def _lane(body: Conversation) -> ThreadPoolExecutor:
    if len(body.messages) > FEW_MESSAGES:
        return LONG
    sizes = (_size(message.get("content")) for message in body.messages)
    return lane_for(sum(sizes))


def _size(content: Any) -> int:
    return len(content) if isinstance(content, str) else LONG_TEXT + 1 if content else 0
