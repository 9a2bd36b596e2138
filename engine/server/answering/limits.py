"""Limit every list and string of a request, before it is used.

A field without limits of its own has `Bound()`, so a new field always has some. Limits that follow
from the model are exact: a longer value could never be served.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from engine.core.messages import CoreRequest
from engine.sampling_params import MAX_LOGPROBS, WHOLE_VOCABULARY
from engine.server.answering.protocol import (
    Body,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from engine.server.answering.tools import LARGEST_TOOLS
from engine.server.http.errors import ApiError, bad_request
from engine.server.messages.messages_body import CountTokensRequest, MessagesRequest
from engine.server.responses.responses_body import InputTokensRequest, ResponsesRequest
from engine.structured_outputs import LARGEST, MOST_ENTRIES, MOST_LEVELS

REQUESTS: tuple[type[Body], ...] = (
    CompletionRequest,
    ChatRequest,
    TokenizeRequest,
    DetokenizeRequest,
    MessagesRequest,
    CountTokensRequest,
    ResponsesRequest,
    InputTokensRequest,
)
DECLARED = frozenset[str]().union(*(request.model_fields for request in REQUESTS))
"""The fields that act. All others are refused by name, or have no effect."""

MOST_FIELDS = 256
MOST_KEY_CHARACTERS = 128
MOST_MESSAGES = 8_192
MOST_SEQUENCES = 1_024
"""Answers that one request may ask for: its prompts times `n`."""
MOST_RULES = 400_000  # cost of the lists of parameters, see `RULES`, times the prompts
MOST_LOGPROBS = 2_097_152
"""Log-probabilities in one answer, candidates included: some 150 MB of JSON."""
LEAST_PROMPT_CHARACTERS = 65_536  # allowed with every model: so many take milliseconds
LEAST_TOKENS = 131_072  # tokens that /detokenize takes with every model


RULES = {"allowed_token_ids": 1, "stop_token_ids": 1, "logit_bias": 4, "bad_words": 4}
"""What an entry costs the engine to read, 30 ns being 1; it reads them for each prompt."""
FORMS = ("response_format", "structured_outputs", "structural_tag", "guided_json",
         "guided_regex", "guided_choice", "guided_grammar", "output_config", "text")  # fmt: skip


class Bound(NamedTuple):
    """Limit what a field may hold, at each of its levels."""

    characters: int = 4_096  # of each string, and of each key of an object
    entries: int = 1_024  # of each list and object
    levels: int = 32


class Limits:
    """Hold the limits of each field, for one model.

    `longest_token`: characters of the longest token of the vocabulary. `max_prompts`: prompts that
    the queue could ever hold. `max_logprobs`: candidates beside a token, −1 for no limit.
    """

    def __init__(
        self,
        max_model_len: int = 2**20,
        vocab_size: int = 2**20,
        longest_token: int = 16,
        max_prompts: int = 1_024,
        max_logprobs: int = MAX_LOGPROBS,
    ):
        characters = max(max_model_len * longest_token, LEAST_PROMPT_CHARACTERS)
        self.prompt_characters = characters
        self._why = (
            f"{max_model_len:,} tokens of context × {longest_token} characters of the longest token"
            if characters > LEAST_PROMPT_CHARACTERS
            else f"the context is {max_model_len:,} tokens"
        )
        self._max_prompts = max_prompts
        self._max_model_len = max_model_len
        candidates = vocab_size if max_logprobs == WHOLE_VOCABULARY else max_logprobs
        # One answer as long as the context may always have as many as --max-logprobs allows.
        self._most_logprobs = max(MOST_LOGPROBS, (candidates + 1) * max_model_len)
        self._default = Bound()
        self._bounds = {
            "prompt": Bound(characters, max(max_model_len, LEAST_TOKENS)),
            "messages": Bound(characters, MOST_MESSAGES),
            "tools": Bound(LARGEST_TOOLS, MOST_ENTRIES, MOST_LEVELS + 4),
            "documents": Bound(characters),
            "chat_template": Bound(characters=262_144),
            "chat_template_kwargs": Bound(characters=65_536),
            "system": Bound(characters, MOST_MESSAGES),
            "input": Bound(characters, MOST_MESSAGES),
            "instructions": Bound(characters),
            "metadata": Bound(characters=512, entries=16, levels=1),
            "stop": Bound(characters=1_024),
            "stop_sequences": Bound(characters=1_024),
            "bad_words": Bound(characters=256),
            "allowed_token_ids": Bound(entries=vocab_size),
            "logit_bias": Bound(characters=18),  # a key is a token id
            **dict.fromkeys(FORMS, Bound(LARGEST, LARGEST // 2, MOST_LEVELS + 4)),
            "tokens": Bound(entries=max(max_model_len, LEAST_TOKENS)),
        }

    def check(self, body: dict[str, Any]) -> None:
        """Raise `ApiError` 400, naming field and limit, if something in `body` is too long."""
        if len(body) > MOST_FIELDS:
            raise bad_request(f"The body has {len(body):,} fields; at most {MOST_FIELDS} are read.")
        for name, value in body.items():
            if len(name) > MOST_KEY_CHARACTERS:
                shown = f"{name[:40]}…"
                raise bad_request(
                    f"The name of the field {shown!r} has {len(name):,} characters; at most "
                    f"{MOST_KEY_CHARACTERS} are allowed.",
                    shown,
                )
            if isinstance(value, (str, list, dict)) and name in DECLARED:
                self._check(value, self._bounds.get(name, self._default), name)
        self._check_sequences(body)

    def too_many(self, field: str, number: int, limit: int, what: str) -> ApiError:
        """Make the error for a field with more things (`what`) than can be read."""
        entries = self._bounds.get(field, self._default).entries
        if field == "prompt" and what != "commas":
            entries = self._max_prompts  # only token ids may be more
        return bad_request(
            f"{field} has {number:,} {what}; at most {limit:,} are read, and at most {entries:,} "
            "entries of a list. Send less, or several requests.",
            field,
        )

    def check_prompt(self, text: str, field: str) -> None:
        """Raise `ApiError` 400 if a text has more characters than any prompt of this model can
        have."""
        if len(text) > self.prompt_characters:
            raise bad_request(
                f"{field} has {len(text):,} characters; at most {self.prompt_characters:,} are "
                f"taken ({self._why}). Shorten it.",
                field,
            )

    def check_logprobs(self, requests: Sequence[CoreRequest], field: str, copies: int) -> None:
        """Raise `ApiError` 400 if an answer may have more log-probabilities than one can hold.

        `field` asks for those of the answer's tokens; `copies`: how often the answer has those of
        its prompts.
        """
        of_prompts = of_answers = 0
        for request in requests:
            params, length = request.params, len(request.prompt_token_ids)
            if params.prompt_logprobs is not None:
                of_prompts += copies * (params.prompt_logprobs + 1) * length
            if params.logprobs is not None:
                candidates = max(params.logprobs, len(params.logprob_token_ids or ()))
                room = self._max_model_len - length
                tokens = room if params.max_tokens is None else min(params.max_tokens, room)
                of_answers += params.n * (candidates + 1) * tokens
        if of_prompts + of_answers > self._most_logprobs:
            raise bad_request(
                f"The answer may have {of_prompts + of_answers:,} log-probabilities, {of_prompts:,}"
                f" of them the prompt's, and an answer has at most {self._most_logprobs:,}. Ask for"
                f" fewer, with a smaller {field}, prompt_logprobs, n or max_tokens, or send fewer"
                " or shorter prompts.",
                "prompt_logprobs" if of_prompts > of_answers else field,
            )

    def _check(
        self, value: str | list[Any] | dict[str, Any], bound: Bound, path: str, level: int = 0
    ) -> None:
        if isinstance(value, str):
            if len(value) > bound.characters == self.prompt_characters:
                self.check_prompt(value, path)
            if len(value) > bound.characters:
                raise _too_long(path, len(value), "characters", bound.characters)
            return
        if len(value) > bound.entries:
            raise _too_long(path, len(value), "entries", bound.entries)
        if level >= bound.levels:
            raise bad_request(
                f"{path} is nested too deeply; at most {bound.levels} levels are allowed.", path
            )
        if isinstance(value, dict):
            for key in value:
                if len(key) > bound.characters:
                    shown = f"{path}.{key[:40]}…"
                    raise _too_long(shown, len(key), "characters in a key", bound.characters)
        entries: Iterable[tuple[Any, Any]] = (
            value.items() if isinstance(value, dict) else enumerate(value)
        )
        for key, item in entries:
            if isinstance(item, (str, list, dict)):
                self._check(item, bound, f"{path}.{key}", level + 1)

    def _check_sequences(self, body: dict[str, Any]) -> None:
        prompt, n = body.get("prompt"), body.get("n")
        prompts = len(prompt) if isinstance(prompt, list) and _are_prompts(prompt) else 1
        if prompts > self._max_prompts:
            raise bad_request(
                f"prompt has {prompts:,} prompts; at most {self._max_prompts:,} fit into the queue "
                "(--max-num-queued-reqs). Send several requests.",
                "prompt",
            )
        if prompts > 1 and isinstance(n, int) and prompts * n > MOST_SEQUENCES:
            raise bad_request(
                f"n is {n} for {prompts:,} prompts, {prompts * n:,} answers; a request may ask for "
                f"at most {MOST_SEQUENCES:,}. Send several requests.",
                "n",
            )
        costs = {
            name: weight * len(body[name])
            for name, weight in RULES.items()
            if isinstance(body.get(name), (list, dict))
        }
        if prompts > 1 and prompts * sum(costs.values()) > MOST_RULES:
            most = max(costs, key=costs.__getitem__)
            raise bad_request(
                f"{most} has {len(body[most]):,} entries for {prompts:,} prompts; entries times"
                f" prompts may be at most {MOST_RULES // RULES[most]:,}. Send several requests.",
                most,
            )


def _are_prompts(entries: list[Any]) -> bool:
    return bool(entries) and not isinstance(entries[0], int)


def _too_long(path: str, number: int, what: str, limit: int) -> Exception:
    return bad_request(f"{path} has {number:,} {what}; at most {limit:,} are allowed.", path)
