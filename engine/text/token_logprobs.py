"""Convert the core's log-probabilities of tokens to ones that say the tokens' texts."""

from __future__ import annotations

import msgspec

from engine.core.messages import TokenLogprobs
from engine.text.tokenizer import Tokenizer

MANY_LOGPROBS = 1_000
"""Log-probabilities that are converted and written in about a millisecond."""


class Logprob(msgspec.Struct, kw_only=True):
    """Hold one token at one position, as the model itself rated it (before temperature and the
    rest)."""

    token_id: int
    logprob: float  # natural logarithm
    rank: int | None  # 1 = the most probable; None: not counted, of logprob_token_ids
    decoded_token: str
    bytes: bytes


class PositionLogprobs(msgspec.Struct):
    """Hold the token at a position, and its candidates.

    Candidates are the most probable tokens, best first, or those of logprob_token_ids.
    """

    chosen: Logprob
    top: list[Logprob]


def position_logprobs(
    tokenizer: Tokenizer, entry: TokenLogprobs, ranked: bool = True
) -> PositionLogprobs:
    """Convert the core's log-probabilities. `ranked`: candidates are the most probable, best
    first."""
    tops = enumerate(zip(entry.top_ids, entry.top_logprobs), start=1)
    return PositionLogprobs(
        chosen=_logprob(tokenizer, entry.token_id, entry.logprob, entry.rank),
        top=[_logprob(tokenizer, i, value, rank if ranked else None) for rank, (i, value) in tops],
    )


def _logprob(tokenizer: Tokenizer, token_id: int, logprob: float, rank: int | None) -> Logprob:
    token = tokenizer.token(token_id)
    return Logprob(
        token_id=token_id,
        logprob=logprob,
        rank=rank,
        decoded_token=token.text,
        bytes=token.bytes,
    )
