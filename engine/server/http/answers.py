"""Write the parts of an answer that completions and chat share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from engine.text.output import PositionLogprobs, Usage

PIECE_BYTES = 2**20
LOWEST_LOGPROB = -9999.0  # JSON has no −∞


def visible_logprob(value: float) -> float:
    """Return `value`, or a very small number for the −∞ of an excluded token."""
    return max(value, LOWEST_LOGPROB)


def token_name(as_token_id: bool | None) -> Callable[[int, str], str]:
    """Choose how log-probabilities name a token: by its text or by its id.

    return_tokens_as_token_ids asks for ids, which are unique.
    """
    if as_token_id:
        return lambda token_id, text: f"token_id:{token_id}"
    return lambda token_id, text: text


def usage_json(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def prompt_logprobs_json(
    positions: Sequence[PositionLogprobs | None] | None,
) -> msgspec.Raw | None:
    """Encode the probable tokens at each position of the prompt, by token id; None for the
    first."""
    return None if positions is None else encoded(map(_by_id, positions))


def _by_id(position: PositionLogprobs | None) -> dict[str, dict[str, Any]] | None:
    if position is None:
        return None
    by_id: dict[str, dict[str, Any]] = {}
    for candidate in [*position.top, position.chosen]:
        by_id.setdefault(
            str(candidate.token_id),
            {
                "logprob": visible_logprob(candidate.logprob),
                "rank": candidate.rank,
                "decoded_token": candidate.decoded_token,
            },
        )
    return by_id


class ChunkWriter:
    """Write chunks with the same first keys, `head`, which are encoded once."""

    def __init__(self, head: dict[str, Any]):
        self._head = msgspec.json.encode(head)[:-1] + b","

    def chunk(self, rest: dict[str, Any]) -> bytes:
        """Return `head` with the keys of `rest`, which has at least one."""
        return self._head + msgspec.json.encode(rest)[1:]


class JsonResponse(Response):
    """Send encoded JSON; a long one in pieces, so that other clients are served between them."""

    media_type = "application/json"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if len(self.body) <= PIECE_BYTES:
            await super().__call__(scope, receive, send)
            return
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        for start in range(0, len(self.body), PIECE_BYTES):
            piece = bytes(self.body[start : start + PIECE_BYTES])
            more = start + PIECE_BYTES < len(self.body)
            await send({"type": "http.response.body", "body": piece, "more_body": more})
            await asyncio.sleep(0)


def encoded(parts: Iterable[Any]) -> msgspec.Raw:
    """Encode a list entry by entry: one long call of the encoder would stop all threads."""
    return msgspec.Raw(b"[" + b",".join(msgspec.json.encode(part) for part in parts) + b"]")


def json_response(body: Any) -> Response:
    return JsonResponse(msgspec.json.encode(body))
