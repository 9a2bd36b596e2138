"""State how one request wants its tokens drawn (SamplingParams).

Validated once, here, for the server and for `LLM` alike.
"""

from __future__ import annotations

import copy

import msgspec

from engine.field_types import fields_of, wrong
from engine.structured_outputs import StructuredOutputsError, StructuredOutputsParams

MAX_STOP_STRINGS = 64  # OpenAI takes 4; harnesses for code send more, and each costs a little
MAX_LOGPROBS = 20
WHOLE_VOCABULARY = -1  # as a number of log-probabilities
MAX_LOGPROB_TOKEN_IDS = 128
WHAT_FITS = -1  # as truncate_prompt_tokens
LEAST_REPETITION_PENALTY = 1e-4
"""Logits are divided by it and then by the temperature: the quotient must stay a finite float32."""
SEED_LIMIT = 2**63


class ParameterError(ValueError):
    """Report a sampling parameter out of its range.

    `param` names it; the message says what was wrong and the limit.
    """

    def __init__(self, param: str, message: str):
        super().__init__(message)
        self.param = param


class SamplingParams(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Hold the parameters of one request, with the names that vLLM's and OpenAI's users know.

    Raises `ParameterError` when a value is of another type or out of range. They apply in the order
    of `worker/sampling/sampler.py`.
    """

    n: int = 1  # sequences to draw from the same prompt
    temperature: float = 1.0  # 0 = always the most probable token
    top_p: float = 1.0
    top_k: int = 0  # 0 or −1 = off
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    stop: list[str] | str | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    max_tokens: int | None = 16  # None = up to the context length; 0 = compute the prompt only
    min_tokens: int = 0
    logprobs: int | None = None  # candidates beside each token; −1 = the whole vocabulary
    prompt_logprobs: int | None = None  # as logprobs, of the prompt's tokens
    logprob_token_ids: list[int] | None = None  # candidates instead of the most probable ones
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    bad_words_token_ids: list[list[int]] | None = None  # filled in by `text`, from bad_words
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True  # if the tokenizer writes any
    truncate_prompt_tokens: int | None = None  # −1 = as many as leave room for one token
    truncation_side: str = "left"  # "left" keeps the last tokens, "right" the first
    structured_outputs: StructuredOutputsParams | None = None  # the form of the text
    grammar: str | None = None  # filled in by `text`, from structured_outputs

    def __post_init__(self) -> None:
        self._check_types()
        if isinstance(self.stop, str):
            self.stop = [self.stop]
        if self.top_k == -1:
            self.top_k = 0
        self._check_range("n", self.n, 1, 128)
        self._check_range("temperature", self.temperature, 0.0, 100.0)
        self._check_range("top_p", self.top_p, 0.0, 1.0, low_open=True)
        self._check_range("top_k", self.top_k, 0, 2**31)
        self._check_range("min_p", self.min_p, 0.0, 1.0)
        self._check_range(
            "repetition_penalty", self.repetition_penalty, LEAST_REPETITION_PENALTY, 100.0
        )
        self._check_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        self._check_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        if self.seed is not None:
            self._check_range("seed", self.seed, -SEED_LIMIT, SEED_LIMIT - 1)
        if self.max_tokens is not None:
            self._check_range("max_tokens", self.max_tokens, 0, 2**31)
            if self.min_tokens > self.max_tokens:
                raise ParameterError(
                    "min_tokens",
                    f"min_tokens is {self.min_tokens}, more than max_tokens, {self.max_tokens}.",
                )
        self._check_range("min_tokens", self.min_tokens, 0, 2**31)
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if value is not None:  # the engine decides how many are allowed
                self._check_range(name, value, WHOLE_VOCABULARY, 2**31)
        if self.logprob_token_ids is not None:
            if not 0 < len(self.logprob_token_ids) <= MAX_LOGPROB_TOKEN_IDS:
                raise ParameterError(
                    "logprob_token_ids",
                    f"logprob_token_ids has {len(self.logprob_token_ids)} ids; give 1 to"
                    f" {MAX_LOGPROB_TOKEN_IDS}.",
                )
            self.logprobs = 0
        if self.stop is not None:
            if len(self.stop) > MAX_STOP_STRINGS:
                raise ParameterError(
                    "stop",
                    f"stop has {len(self.stop)} strings; at most {MAX_STOP_STRINGS} are allowed.",
                )
            if any(not s for s in self.stop):
                raise ParameterError(
                    "stop", "stop contains an empty string, which would end every text at once."
                )
        if self.truncate_prompt_tokens not in (None, WHAT_FITS):
            self._check_range("truncate_prompt_tokens", self.truncate_prompt_tokens, 1, 2**31)
        if self.truncation_side not in ("left", "right"):
            raise ParameterError(
                "truncation_side",
                f"truncation_side is {self.truncation_side!r}; it must be 'left' or 'right'.",
            )
        if self.logit_bias is not None:
            for value in self.logit_bias.values():
                self._check_range("logit_bias", value, -100.0, 100.0)
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise ParameterError(
                "allowed_token_ids", "allowed_token_ids is empty: no token could ever be drawn."
            )
        if self.n > 1 and self.temperature == 0.0:
            raise ParameterError(
                "n", "n > 1 with temperature 0 would give the same text n times; use n = 1."
            )

    @staticmethod
    def _check_range(
        name: str, value: float, low: float, high: float, low_open: bool = False
    ) -> None:
        if value != value or value < low or value > high or (low_open and value == low):
            bracket = "(" if low_open else "["
            raise ParameterError(name, f"{name} is {value}; it must be in {bracket}{low}, {high}].")

    def _check_types(self) -> None:
        for field in fields_of(type(self)):
            value = getattr(self, field.name)
            if type(value) in field.fits:
                continue
            try:
                settled = field.settle(value)
            except TypeError:
                raise ParameterError(field.name, wrong(field, value)) from None
            except StructuredOutputsError as error:
                where = f"{field.name}.{error.field}" if error.field else field.name
                raise ParameterError(where, f"{field.name}: {error}") from None
            if settled is not value:  # a tuple becomes a list, a NumPy number one of Python's
                setattr(self, field.name, settled)

    def clone(self) -> SamplingParams:
        """Return parameters that are equal and share no list or dict with these."""
        return copy.deepcopy(self)

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise `ParameterError` if a token id in the parameters isn't below `vocab_size`."""
        named = {
            "stop_token_ids": self.stop_token_ids or [],
            "allowed_token_ids": self.allowed_token_ids or [],
            "logit_bias": list(self.logit_bias or {}),
            "logprob_token_ids": self.logprob_token_ids or [],
        }
        for name, ids in named.items():
            if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
                bad = [token_id for token_id in ids if not 0 <= token_id < vocab_size]
                raise ParameterError(
                    name,
                    f"{name} names {'token' if len(bad) == 1 else 'tokens'} {_some(bad)}; the"
                    f" vocabulary has ids 0 to {vocab_size - 1}.",
                )

    def with_limits(self, vocab_size: int, max_logprobs: int) -> SamplingParams:
        """Return these parameters with numbers of log-probabilities that an engine can give.

        Raises `ParameterError`, see `number_of_logprobs`.
        """
        found = {}
        for name in ("logprobs", "prompt_logprobs"):
            asked = getattr(self, name)
            if asked is not None:
                number = number_of_logprobs(name, asked, vocab_size, max_logprobs)
                if number != asked:
                    found[name] = number
        return msgspec.structs.replace(self, **found) if found else self

    def changed(self) -> dict:
        """Return the parameters that differ from their defaults, by name."""
        return msgspec.to_builtins(self)


def number_of_logprobs(name: str, asked: int, vocab_size: int, max_logprobs: int) -> int:
    """Return how many candidates `asked` means: −1 is the whole vocabulary.

    `name` is the parameter's; `max_logprobs`: how many the engine gives, −1 for no limit. Raises
    `ParameterError` for more than that.
    """
    number = vocab_size if asked == WHOLE_VOCABULARY else asked
    if max_logprobs != WHOLE_VOCABULARY and number > max_logprobs:
        told = f"{asked}, all {number} tokens" if asked == WHOLE_VOCABULARY else f"{asked}"
        raise ParameterError(
            name,
            f"{name} is {told}; this engine gives at most {max_logprobs}. --max-logprobs sets the"
            " limit.",
        )
    return number


def _some(numbers: list[int], most: int = 10) -> str:
    """Name the first of some numbers, and how many more there are."""
    more = f" and {len(numbers) - most} more" if len(numbers) > most else ""
    return ", ".join(map(str, numbers[:most])) + more
