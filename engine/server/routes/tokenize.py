"""Serve POST /tokenize and /detokenize: convert text with the model's tokenizer, and back."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from engine.server.answering.answer_schemas import Detokenized, Tokenized
from engine.server.answering.door import checked_route
from engine.server.answering.protocol import DetokenizeRequest, TokenizeRequest
from engine.server.answering.rendering import render
from engine.server.http.answers import json_response
from engine.server.service import Service
from engine.text.lanes import in_lane, lane_for


def router(service: Service) -> APIRouter:
    routes = APIRouter(route_class=checked_route(lambda: service.limits))

    @routes.post("/tokenize", response_model=Tokenized)
    async def tokenize(body: TokenizeRequest) -> Response:
        service.check_model(body.model)
        service.warn_of_unknown(body.check())
        text = service.ready_text()
        if body.messages is not None:
            prompt = await render(service, body)
        else:
            prompt = body.prompt or ""

        def answer() -> Response:
            tokens = text.tokenizer.encode(prompt, body.adds_special_tokens)
            texts = None
            if body.return_token_strs:
                texts = [text.tokenizer.token(token).text for token in tokens]
            content = {
                "count": len(tokens),
                "max_model_len": text.input.max_model_len,
                "tokens": tokens,
                "token_strs": texts,
            }
            return json_response(content)

        return await in_lane(lane_for(len(prompt)), answer)

    @routes.post("/detokenize", response_model=Detokenized)
    async def detokenize(body: DetokenizeRequest) -> Response:
        service.check_model(body.model)
        service.warn_of_unknown(body.check())
        text = service.ready_text()

        def answer() -> Response:
            text.input.check_known(body.tokens)
            prompt = text.tokenizer.decode(body.tokens, skip_special_tokens=False)
            return json_response({"prompt": prompt})

        return await in_lane(lane_for(len(body.tokens)), answer)

    return routes
