"""Declare the bodies of the requests: the fields that act, and their types.

The table in `fields.py` says what is done with other fields; one that isn't in it either is
accepted and has no effect (a warning in the record names it). null means the same as leaving a
field out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from engine.sampling_params import SamplingParams
from engine.server.answering.fields import unknown_fields
from engine.server.answering.form_fields import FormFields
from engine.server.answering.taking_apart import rules_for
from engine.server.answering.tools import ToolFields
from engine.server.http.errors import bad_request
from engine.text.messages.found import MessageFormats
from engine.text.messages.rules import MessageRules

_TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,9}")  # each id has one way to write it
_MOST_NAMED = 10


def _token_id_keys(value: Any) -> Any:
    """Convert an object's keys to token ids.

    JSON keys are strings: `{"50256": -100}` names token 50256.
    """
    if not isinstance(value, dict):
        return value
    bad = [str(key) for key in value if not _TOKEN_ID.fullmatch(str(key))]
    if bad:
        named = ", ".join(f"{key[:20]!r}" for key in bad[:_MOST_NAMED])
        more = f" and {len(bad) - _MOST_NAMED} more" if len(bad) > _MOST_NAMED else ""
        raise ValueError(f'the keys must be token ids, such as "50256"; not so {named}{more}')
    return {int(key): bias for key, bias in value.items()}


def _prompt_kind(value: Any) -> Any:
    """Check the kind of a prompt, for one clear error in place of one for each member of the
    union."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        kinds = {type(item) for item in value}
        if kinds == {str} or kinds == {int}:
            return value
        if kinds == {list} and all(type(token) is int for item in value for token in item):
            return value
    raise ValueError(
        "it must be a string, a list of strings, a list of token ids or a list of such lists, "
        "and not empty"
    )


Prompt = Annotated[Any, BeforeValidator(_prompt_kind)]


class NullLeftOut(BaseModel):
    """Accept a JSON object in which null means the same as leaving a field out, whatever its
    type."""

    @model_validator(mode="before")
    @classmethod
    def _leave_null_out(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if value is not None}


class StreamOptions(NullLeftOut):
    """Declare what a stream has beside its text."""

    model_config = ConfigDict(strict=True, extra="forbid")
    include_usage: bool = False  # one last chunk with the usage
    continuous_usage_stats: bool = False  # the usage so far on every chunk
    include_obfuscation: bool = False  # padding against eavesdroppers, which is never added


class Body(NullLeftOut):
    """Declare what all bodies share. `kind`: the body's name in the table of fields."""

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())
    kind: ClassVar[str]

    model: str | None = None

    def check(self) -> list[str]:
        """Raise `ApiError` for what can't be served; return the unknown fields, which have no
        effect."""
        return unknown_fields(self.kind, self.model_extra or {})


class GenerationRequest(FormFields, Body):
    """Declare the fields that completions and chat share. `None` always means the default."""

    n: int | None = None
    best_of: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: Annotated[dict[int, float] | None, BeforeValidator(_token_id_keys)] = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None
    truncation_side: Literal["left", "right"] | None = None
    logprob_token_ids: list[int] | None = None
    add_special_tokens: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: int = 0
    cache_salt: str | None = None
    request_id: str | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    trace: Literal["steps", "full"] | None = None  # record this request at level full

    LOGPROBS: ClassVar[str] = "logprobs"  # the field with the number of candidates
    _SAMPLING = (
        "n", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty",
        "presence_penalty", "seed", "stop", "stop_token_ids", "include_stop_str_in_output",
        "ignore_eos", "min_tokens", "prompt_logprobs", "logit_bias", "allowed_token_ids",
        "bad_words", "skip_special_tokens", "spaces_between_special_tokens",
        "truncate_prompt_tokens", "truncation_side",
    )  # fmt: skip

    def check(self) -> list[str]:
        unknown = super().check()
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise bad_request(
                "best_of is not supported, unless it equals n. Leave it out.", "best_of"
            )
        if self.stream_options is not None and not self.stream:
            raise bad_request("stream_options needs stream: true.", "stream_options")
        if self.max_tokens is not None and self.max_tokens < self.fewest_tokens:
            raise bad_request(
                f"max_tokens is {self.max_tokens}; it must be at least {self.fewest_tokens}.",
                "max_tokens",
            )
        if self.cache_salt == "":
            raise bad_request(
                "cache_salt is empty, and would share cached blocks with everybody. Leave it out, "
                "or send a secret.",
                "cache_salt",
            )
        if self.logprob_token_ids and self.num_logprobs is None:
            raise bad_request("logprob_token_ids needs logprobs.", "logprob_token_ids")
        return unknown

    def take_defaults(self, defaults: Mapping[str, Any]) -> None:
        """Fill in the model's sampling defaults for fields that the body leaves out."""
        for name, value in defaults.items():
            if getattr(self, name) is None:
                setattr(self, name, value)

    @property
    def fewest_tokens(self) -> int:
        return 1

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def continuous_usage(self) -> bool:
        return self.include_usage and bool(
            self.stream_options and self.stream_options.continuous_usage_stats
        )

    def message_rules(
        self, formats: MessageFormats, prompts: Sequence[str | list[int]]
    ) -> MessageRules | None:
        """Return how the answers are taken apart; None if they are plain text."""
        return None

    def sampling_params(self) -> SamplingParams:
        """Make sampling parameters, new ones for each prompt. Raises `ParameterError`."""
        given = {name: getattr(self, name) for name in self._SAMPLING}
        return SamplingParams(
            **{name: value for name, value in given.items() if value is not None},
            structured_outputs=self.form[0],
            max_tokens=self.token_limit,
            logprobs=self.num_logprobs,
            logprob_token_ids=self.logprob_token_ids or None,
        )

    @property
    def token_limit(self) -> int | None:
        raise NotImplementedError

    @property
    def times_prompt_logprobs(self) -> int:
        """Return how often the answer has the log-probabilities of each prompt."""
        return 1

    @property
    def num_logprobs(self) -> int | None:
        raise NotImplementedError


class CompletionRequest(GenerationRequest):
    """Declare the body of POST /v1/completions."""

    kind = "completions"
    prompt: Prompt
    echo: bool | None = None
    logprobs: int | None = None

    @property
    def fewest_tokens(self) -> int:
        return 0 if self.echo else 1

    @property
    def token_limit(self) -> int | None:
        return 16 if self.max_tokens is None else self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def times_prompt_logprobs(self) -> int:
        echoed = bool(self.echo) and self.logprobs is not None
        return (self.n or 1) * (echoed + (self.prompt_logprobs is not None))

    def sampling_params(self) -> SamplingParams:
        params = super().sampling_params()
        if self.echo and self.logprobs is not None and params.prompt_logprobs is None:
            params.prompt_logprobs = self.logprobs  # the echoed prompt has log-probabilities, too
        return params

    def prompts(self) -> list[str | list[int]]:
        """Return one entry for each prompt: text, or token ids."""
        prompt = self.prompt
        return prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]


class Conversation(ToolFields, Body):
    """Declare the fields that turn messages into a prompt. /tokenize takes them, too."""

    messages: list[dict[str, Any]]
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False

    @property
    def begins_answer(self) -> bool:
        """Return whether the prompt ends with the beginning of an answer: by default, if it can."""
        if self.add_generation_prompt is None:
            return not self.continue_final_message
        return self.add_generation_prompt

    @property
    def template_variables(self) -> dict[str, Any]:
        """Return the variables that the template gets beside the messages."""
        given = self.chat_template_kwargs or {}
        return {"tools": self.choice.tools, **given} if self.choice.may_call else given

    def check_messages(self) -> None:
        """Raise `ApiError` for tools that can't be read, and for known parts of messages that
        would have no effect here."""
        _ = self.choice
        for place, message in enumerate(self.messages):
            for name in ("function_call", "audio"):
                if message.get(name):
                    raise bad_request(
                        f"{name} in a message is not supported by this server.",
                        f"messages.{place}.{name}",
                    )


class ChatRequest(Conversation, GenerationRequest):
    """Declare the body of POST /v1/chat/completions."""

    kind = "chat"
    LOGPROBS = "top_logprobs"
    reasoning_effort: str | None = None
    include_reasoning: bool | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    def check(self) -> list[str]:
        unknown = super().check()
        if self.max_completion_tokens is not None and self.max_completion_tokens < 1:
            raise bad_request(
                f"max_completion_tokens is {self.max_completion_tokens}; it must be at least 1.",
                "max_completion_tokens",
            )
        if self.top_logprobs and not self.logprobs:
            raise bad_request("top_logprobs needs logprobs: true.", "top_logprobs")
        self.check_messages()
        return unknown

    def message_rules(
        self, formats: MessageFormats, prompts: Sequence[str | list[int]]
    ) -> MessageRules | None:
        return rules_for(
            self.choice,
            formats,
            self.messages,
            prompts[0],
            one_call=self.parallel_tool_calls is False or self.choice.kind == "named",
            skip_special_tokens=self.skip_special_tokens is not False,
            hides_reasoning=self.include_reasoning is False,
        )

    @property
    def token_limit(self) -> int | None:
        return (
            self.max_completion_tokens
            if self.max_completion_tokens is not None
            else self.max_tokens
        )

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def template_variables(self) -> dict[str, Any]:
        given = super().template_variables
        if self.reasoning_effort is None:
            return given
        effort = self.reasoning_effort
        return {"reasoning_effort": effort, "enable_thinking": effort != "none", **given}


class TokenizeRequest(Conversation):
    """Declare the body of POST /tokenize, with a prompt or with messages."""

    kind = "tokenize"
    messages: list[dict[str, Any]] | None = None  # type: ignore[assignment]
    prompt: str | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one_of_two(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self

    def check(self) -> list[str]:
        unknown = super().check()
        if self.messages is not None:
            self.check_messages()
        return unknown

    @property
    def adds_special_tokens(self) -> bool:
        """Return whether special tokens are added.

        The default is yes for a prompt, and no for messages, whose template writes them.
        """
        return self.messages is None if self.add_special_tokens is None else self.add_special_tokens


class DetokenizeRequest(Body):
    """Declare the body of POST /detokenize."""

    kind = "detokenize"
    tokens: list[int]
