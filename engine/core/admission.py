"""Decide which requests the engine accepts, and settle their parameters before they are queued.

A request that could never be served is refused immediately, with the limit and what to do about it.
Later, no request is refused for lack of room: it waits, or is preempted.
"""

from __future__ import annotations

from hashlib import blake2b

from engine.config import EngineConfig
from engine.core.messages import CoreRequest, KVShape
from engine.rounding import ceil_div
from engine.trace.sequences import request_of


class RequestError(ValueError):
    """Report a request that can never be served. `param` names the field, the message the limit."""

    def __init__(self, param: str, message: str):
        super().__init__(message)
        self.param = param


class Admission:
    """Hold the limits of one engine: its model's context, its cache, its seats."""

    def __init__(self, config: EngineConfig, kv: KVShape):
        self.config = config
        self.kv = kv

    def check(self, core: CoreRequest, running_already: bool) -> int:
        """Return the request's real max_tokens. Raises RequestError if it could never be served.

        `running_already`: its id is in use.
        """
        kv, params = self.kv, core.params
        num_tokens = len(core.prompt_token_ids)
        if request_of(core.request_id) != core.request_id:
            raise RequestError(
                "request_id",
                f"request id {core.request_id!r} reads like a sequence of another request: it"
                " must not end with a dot and a number.",
            )
        if running_already:
            raise RequestError("request_id", f"request id {core.request_id!r} is running already.")
        if num_tokens == 0:
            raise RequestError("prompt", "The prompt is empty: it must have at least one token.")
        room = kv.max_model_len - num_tokens
        if room < (params.max_tokens != 0):
            raise RequestError(
                "prompt",
                f"This model's maximum context length is {kv.max_model_len} tokens; the prompt has"
                f" {num_tokens}, which leaves no room for an answer. Shorten it.",
            )
        max_tokens = room if params.max_tokens is None else min(params.max_tokens, room)
        # The last drawn token is never fed back, so it needs no slot.
        blocks = ceil_div(num_tokens + max(0, max_tokens - 1), kv.block_size)
        if blocks > kv.num_blocks:
            raise RequestError(
                "max_tokens",
                f"The request could need {blocks} KV blocks ({num_tokens} prompt and {max_tokens}"
                f" output tokens at {kv.block_size} a block); the whole cache has {kv.num_blocks}."
                " Ask for fewer tokens, or give the engine a larger cache.",
            )
        if params.n > self.config.max_num_seqs:
            raise RequestError(
                "n",
                f"n is {params.n}; at most {self.config.max_num_seqs} sequences run at once here.",
            )
        return max_tokens

    def seed(self, core: CoreRequest, arrival: int) -> int:
        """Return the request's seed, or draw one from the engine's seed and the arrival number.

        A drawn seed has 53 bits, which programs that read JSON numbers as doubles keep exactly.
        """
        if core.params.seed is not None:
            return core.params.seed
        text = f"{self.config.seed}/{arrival}".encode()
        return int.from_bytes(blake2b(text, digest_size=8).digest(), "little") >> 11
