"""Read the options of tokenizing that programs pass as `tokenization_kwargs`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.text.errors import TextError
from engine.text.prompts import GivenPrompt
from engine.text.tokenizer import Tokenizer

NAMES = ("add_special_tokens", "truncation", "max_length")


@dataclass(frozen=True)
class Tokenizing:
    """Hold how texts become tokens."""

    add_special_tokens: bool = True
    max_length: int | None = None  # tokens, special ones included; None: all

    @classmethod
    def of(cls, options: Mapping[str, Any] | None, add_special_tokens: bool) -> Tokenizing:
        """Read `tokenization_kwargs`. add_special_tokens: used if they don't set it.

        Raises `TextError` for an option that isn't supported.
        """
        options = dict(options or {})
        for name in options:
            if name not in NAMES:
                raise TextError(
                    f"tokenization_kwargs.{name}",
                    f"tokenization_kwargs has {name!r}; {', '.join(NAMES)} are served.",
                )
        for name in ("add_special_tokens", "truncation"):
            if not isinstance(options.get(name, True), bool):
                raise TextError(
                    f"tokenization_kwargs.{name}", f"tokenization_kwargs.{name} is not a bool."
                )
        length = options.get("max_length")
        if length is not None and (type(length) is not int or length < 1):
            raise TextError(
                "tokenization_kwargs.max_length",
                f"tokenization_kwargs.max_length is {length!r:.80}; it must be at least 1.",
            )
        if (length is not None) != options.get("truncation", False):
            raise TextError(
                "tokenization_kwargs.truncation",
                "tokenization_kwargs needs truncation=True and max_length together.",
            )
        return cls(options.get("add_special_tokens", add_special_tokens), length)

    def prompt(self, tokenizer: Tokenizer, given: GivenPrompt) -> str | list[int]:
        """Return the prompt to pass on: the text, or token ids if it must be cut."""
        content = given.content
        if self.max_length is None or not isinstance(content, str):
            return content
        return tokenizer.encode_at_most(content, self.max_length, self.add_special_tokens)
