"""Serve POST /v1/responses, OpenAI's newer API, and what it kept of earlier answers."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from engine.sampling_params import ParameterError
from engine.server.answering.door import checked_route
from engine.server.answering.passed import InnerRequest
from engine.server.answering.rendering import render
from engine.server.answering.translated import (
    FEW_PARTS,
    TranslatedReply,
    count_parts,
    translated,
)
from engine.server.http.answers import JsonResponse, json_response
from engine.server.http.auth import key_place
from engine.server.http.errors import ApiError, bad_request
from engine.server.responses.response_schemas import (
    DeletedResponse,
    InputTokens,
    ItemList,
    ResponseObject,
)
from engine.server.responses.response_store import REFERENCE, KeptResponse
from engine.server.responses.responses_answer import ResponsesAnswer
from engine.server.responses.responses_body import InputFields, InputTokensRequest, ResponsesRequest
from engine.server.responses.responses_inner import (
    AskedItems,
    asked_items,
    inner_input,
    inner_response,
    not_kept,
)
from engine.server.responses.truncation import truncate
from engine.server.service import Service
from engine.text.errors import TextError
from engine.text.lanes import in_lane, lane_for

ROUTE = "/v1/responses"


def router(service: Service) -> APIRouter:
    routes = APIRouter(route_class=checked_route(lambda: service.limits))
    store = service.responses

    @routes.post(ROUTE, response_model=ResponseObject)
    async def create(body: ResponsesRequest, http: Request) -> Response:
        service.check_model(body.model)
        unknown = body.check()
        owner = key_place(http.scope)

        def translate() -> tuple[AskedItems, InnerRequest]:
            items = asked_items(body, store, owner)
            return items, inner_response(body, items, store, owner, unknown)

        items, inner = await translated(_is_long(body), translate)

        def keep(response: dict[str, Any]) -> bool:
            return store.keep(owner, response, items.given, items.before)

        kept = keep if body.store and store.max_bytes else None
        return TranslatedReply(
            service,
            http,
            inner,
            prefix="resp_",
            write=lambda generation: ResponsesAnswer(generation, inner, body, kept),
            prepare=(lambda: truncate(service, inner)) if body.truncation == "auto" else None,
        )

    @routes.post(f"{ROUTE}/input_tokens", response_model=InputTokens)
    async def input_tokens(body: InputTokensRequest, http: Request) -> Response:
        service.check_model(body.model)
        unknown = body.check()
        owner = key_place(http.scope)

        def translate() -> InnerRequest:
            items = asked_items(body, store, owner)
            return inner_input(body, items, store, owner, unknown)

        inner = await translated(_is_long(body), translate)
        try:
            service.warn_of_unknown(inner.check())
            if body.truncation == "auto":
                await truncate(service, inner)
            prompt = await render(service, inner)
        except (ApiError, ParameterError, TextError) as error:
            raise inner.told(error) from None
        encode = service.ready_text().tokenizer.encode
        tokens = await in_lane(lane_for(len(prompt)), lambda: encode(prompt, False))
        return json_response({"object": "response.input_tokens", "input_tokens": len(tokens)})

    def found(response_id: str, http: Request) -> KeptResponse:
        kept = store.get(key_place(http.scope), response_id)
        if kept is None:
            raise not_kept(response_id, store, "response_id")
        return kept

    @routes.get(ROUTE + "/{response_id}", response_model=ResponseObject)
    async def retrieve(response_id: str, http: Request, stream: bool = False) -> Response:
        if stream:
            raise bad_request("stream is for answers in the background, and there are none.",
                              "stream")  # fmt: skip
        return JsonResponse(found(response_id, http).response)

    @routes.delete(ROUTE + "/{response_id}", response_model=DeletedResponse)
    async def delete(response_id: str, http: Request) -> Response:
        found(response_id, http)
        store.remove(key_place(http.scope), response_id)
        return json_response({"id": response_id, "object": "response", "deleted": True})

    @routes.post(ROUTE + "/{response_id}/cancel", include_in_schema=False)
    async def cancel(response_id: str, http: Request) -> Response:
        found(response_id, http)
        raise bad_request(
            "Only answers in the background can be cancelled, and there are none: close the "
            "connection of a request to end it."
        )

    @routes.get(ROUTE + "/{response_id}/input_items", response_model=ItemList)
    async def input_items(
        response_id: str,
        http: Request,
        limit: int = Query(20, ge=1, le=100),
        order: Literal["asc", "desc"] = "desc",
        after: str = Query("", max_length=128),
    ) -> Response:
        items = found(response_id, http).given()
        if order == "desc":
            items.reverse()
        places = [place for place, item in enumerate(items) if item["id"] == after]
        if after and not places:
            raise bad_request("after is the id of none of the items.", "after")
        rest = items[places[0] + 1 :] if after else items
        page = rest[:limit]
        return json_response({
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(rest) > limit,
        })  # fmt: skip

    return routes


def _is_long(body: InputFields) -> bool:
    """Return whether a translation may take more than a millisecond or two."""
    if body.previous_response_id is not None or isinstance(body.input, str):
        return body.previous_response_id is not None
    refers = any(item.get("type") == REFERENCE for item in body.input)
    return refers or count_parts(body.input) > FEW_PARTS
