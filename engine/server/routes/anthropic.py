"""Serve POST /v1/messages and /v1/messages/count_tokens, Anthropic's API."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from engine.sampling_params import ParameterError
from engine.server.answering.door import checked_route
from engine.server.answering.rendering import render
from engine.server.answering.translated import (
    FEW_PARTS,
    TranslatedReply,
    count_parts,
    translated,
)
from engine.server.http.answers import json_response
from engine.server.http.errors import ApiError
from engine.server.messages.message_schemas import AnthropicMessage, TokenCount
from engine.server.messages.messages_answer import MessagesAnswer
from engine.server.messages.messages_body import CountTokensRequest, MessagesRequest
from engine.server.messages.messages_inner import inner_count, inner_request
from engine.server.service import Service
from engine.text.errors import TextError
from engine.text.lanes import in_lane, lane_for


def router(service: Service) -> APIRouter:
    routes = APIRouter(route_class=checked_route(lambda: service.limits))

    @routes.post("/v1/messages", response_model=AnthropicMessage)
    async def messages(body: MessagesRequest, http: Request) -> Response:
        service.check_model(body.model)
        unknown = body.check()
        is_long = count_parts(body.messages) > FEW_PARTS
        inner = await translated(is_long, lambda: inner_request(body, unknown))
        request_id = http.headers.get("x-request-id", "")
        return TranslatedReply(
            service,
            http,
            inner,
            prefix="msg_",
            write=lambda generation: MessagesAnswer(generation, inner, request_id),
        )

    @routes.post("/v1/messages/count_tokens", response_model=TokenCount)
    async def count_tokens(body: CountTokensRequest) -> Response:
        service.check_model(body.model)
        unknown = body.check()
        is_long = count_parts(body.messages) > FEW_PARTS
        inner = await translated(is_long, lambda: inner_count(body, unknown))
        try:
            service.warn_of_unknown(inner.check())
            prompt = await render(service, inner)
        except (ApiError, ParameterError, TextError) as error:
            raise inner.told(error) from None
        encode = service.ready_text().tokenizer.encode
        tokens = await in_lane(lane_for(len(prompt)), lambda: encode(prompt, False))
        return json_response({"input_tokens": len(tokens)})

    return routes
