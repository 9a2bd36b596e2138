"""Write the parts of an answer that completions and chat share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from starlette.responses import Response

from engine.text.output import PositionLogprobs, Usage

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
) -> list[dict[str, dict[str, Any]] | None] | None:
    """Return the probable tokens at each position of the prompt, by token id; None for the
    first."""
    if positions is None:
        return None
    answer: list[dict[str, dict[str, Any]] | None] = []
    for position in positions:
        if position is None:
            answer.append(None)
            continue
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
        answer.append(by_id)
    return answer


class ChunkWriter:
    """Write chunks with the same first keys, `head`, which are encoded once."""

    def __init__(self, head: dict[str, Any]):
        self._head = msgspec.json.encode(head)[:-1] + b","

    def chunk(self, rest: dict[str, Any]) -> bytes:
        """Return `head` with the keys of `rest`, which has at least one."""
        return self._head + msgspec.json.encode(rest)[1:]


def json_response(body: Any) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")
