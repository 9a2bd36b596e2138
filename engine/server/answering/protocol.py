"""The bodies of the requests: which fields there are, of what type, and which we refuse.

Three kinds of field: those declared below act; those in `UNSUPPORTED` are known to clients of such
APIs but can't be served here, so they are refused by name rather than ignored; any other field is
accepted and has no effect (a warning in the record names it).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from engine.sampling_params import SamplingParams
from engine.server.answering.unsupported import UNSUPPORTED, WITHOUT_EFFECT
from engine.server.http.errors import bad_request


def _token_id_keys(value: Any) -> Any:
    """JSON has only strings for keys: `{"50256": -100}` names token 50256."""
    if isinstance(value, dict):
        try:
            return {int(key): bias for key, bias in value.items()}
        except ValueError:
            raise ValueError("the keys must be token ids") from None
    return value


def _prompt_kind(value: Any) -> Any:
    """One clear complaint in place of one for each member of the union."""
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


class StreamOptions(BaseModel):
    """What a stream says beside its text."""

    model_config = ConfigDict(strict=True, extra="forbid")
    include_usage: bool = False  # one last chunk with the usage
    continuous_usage_stats: bool = False  # the usage so far on every chunk
    include_obfuscation: bool = False  # padding against eavesdroppers; none is ever added


class GenerationRequest(BaseModel):
    """The fields that completions and chat share. `None` always means the default."""

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())

    model: str | None = None
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
    truncate_prompt_tokens: int | None = None
    add_special_tokens: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: int = 0
    cache_salt: str | None = None
    request_id: str | None = None
    return_token_ids: bool | None = None
    trace: Literal["steps", "full"] | None = None  # record this request at level full

    _SAMPLING = (
        "n", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty",
        "presence_penalty", "seed", "stop", "stop_token_ids", "include_stop_str_in_output",
        "ignore_eos", "min_tokens", "prompt_logprobs", "logit_bias", "allowed_token_ids",
        "bad_words", "skip_special_tokens", "truncate_prompt_tokens",
    )  # fmt: skip

    def check(self) -> list[str]:
        """Raise `ApiError` for what can't be served; return the unknown fields, which have no
        effect."""
        extra = self.model_extra or {}
        for name, value in extra.items():
            harmless = UNSUPPORTED.get(name)
            if harmless is not None and value is not None and value not in harmless:
                raise bad_request(f"{name} is not supported by this server. Leave it out.", name)
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
        return sorted(extra.keys() - UNSUPPORTED.keys() - WITHOUT_EFFECT)

    def take_defaults(self, defaults: Mapping[str, Any]) -> None:
        """Fill in the model's sampling defaults where the body says nothing."""
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

    def sampling_params(self) -> SamplingParams:
        """The sampling parameters, fresh for each prompt. Raises `ParameterError`."""
        given = {name: getattr(self, name) for name in self._SAMPLING}
        return SamplingParams(
            **{name: value for name, value in given.items() if value is not None},
            max_tokens=self.token_limit,
            logprobs=self.num_logprobs,
        )

    @property
    def token_limit(self) -> int | None:
        raise NotImplementedError

    @property
    def num_logprobs(self) -> int | None:
        raise NotImplementedError


class CompletionRequest(GenerationRequest):
    """POST /v1/completions"""

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

    def sampling_params(self) -> SamplingParams:
        params = super().sampling_params()
        if self.echo and self.logprobs is not None and params.prompt_logprobs is None:
            params.prompt_logprobs = self.logprobs  # the echoed prompt has log-probabilities too
        return params

    def prompts(self) -> list[str | list[int]]:
        """One entry for each prompt: text, or token ids."""
        prompt = self.prompt
        return prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]


class Conversation(BaseModel):
    """The fields that turn messages into a prompt; /tokenize takes them too."""

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())

    messages: list[dict[str, Any]]
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False

    @property
    def begins_answer(self) -> bool:
        """Whether the prompt ends with the beginning of an answer: unless said otherwise, if it
        can."""
        if self.add_generation_prompt is None:
            return not self.continue_final_message
        return self.add_generation_prompt

    def check_messages(self) -> None:
        """Raise `ApiError` for parts of messages that are known but would have no effect here."""
        for place, message in enumerate(self.messages):
            for name in ("function_call", "audio"):
                if message.get(name):
                    raise bad_request(
                        f"{name} in a message is not supported by this server.",
                        f"messages.{place}.{name}",
                    )


class ChatRequest(Conversation, GenerationRequest):
    """POST /v1/chat/completions"""

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
        if self.top_logprobs is not None and not self.logprobs:
            raise bad_request("top_logprobs needs logprobs: true.", "top_logprobs")
        if self.top_logprobs is not None and not 0 <= self.top_logprobs <= 20:
            raise bad_request(
                f"top_logprobs is {self.top_logprobs}; it must be in [0, 20].", "top_logprobs"
            )
        self.check_messages()
        return unknown

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


class TokenizeRequest(Conversation):
    """POST /tokenize, with a prompt or with messages"""

    model: str | None = None
    messages: list[dict[str, Any]] | None = None  # type: ignore[assignment]
    prompt: str | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one_of_two(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self

    @property
    def adds_special_tokens(self) -> bool:
        """By default to a prompt; the template of messages writes them itself."""
        return self.messages is None if self.add_special_tokens is None else self.add_special_tokens


class DetokenizeRequest(BaseModel):
    """POST /detokenize"""

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())
    model: str | None = None
    tokens: list[int]
