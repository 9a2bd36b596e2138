"""Read prompts as programs write them: texts, token ids, dicts, and generators and arrays of
them."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from engine.text.errors import TextError

KEYS = ("prompt", "prompt_token_ids", "cache_salt")
KINDS = 'a text, a list of token ids, or a dict with "prompt" or "prompt_token_ids"'


class GivenPrompt(NamedTuple):
    """Hold one prompt: its text, its token ids, or both; if both, the ids are computed."""

    text: str | None
    token_ids: list[int] | None
    cache_salt: str = ""

    @property
    def content(self) -> str | list[int]:
        return self.token_ids if self.token_ids is not None else self.text or ""


def read_prompts(prompts: Any) -> list[GivenPrompt]:
    """Read one prompt, or an iterable of many; integers are one prompt's tokens.

    Raises `TextError` for anything else.
    """
    prompts = _plain(prompts)
    if isinstance(prompts, str | Mapping):
        return [read_prompt(prompts, "prompts")]
    if not isinstance(prompts, Iterable) or isinstance(prompts, bytes | bytearray):
        raise _no_prompt(prompts, "prompts")
    many = [_plain(prompt) for prompt in prompts]
    if many and _is_number(many[0]):
        return [read_prompt(many, "prompts")]
    return [read_prompt(prompt, f"prompts.{place}") for place, prompt in enumerate(many)]


def read_prompt(prompt: Any, path: str = "prompt") -> GivenPrompt:
    """Read one prompt. path: its place, for errors. Raises `TextError`."""
    prompt = _plain(prompt)
    if isinstance(prompt, str):
        return GivenPrompt(prompt, None)
    if isinstance(prompt, Mapping):
        return _of_dict(prompt, path)
    if isinstance(prompt, list | tuple | range):
        return GivenPrompt(None, _token_ids(prompt, path))
    raise _no_prompt(prompt, path)


def _of_dict(prompt: Mapping[str, Any], path: str) -> GivenPrompt:
    given = {name: value for name, value in prompt.items() if value is not None}
    for name in given:
        if name not in KEYS:
            raise TextError(f"{path}.{name}", f"{path} has {name!r}; give {', '.join(KEYS)} only.")
    for name in ("prompt", "cache_salt"):
        if not isinstance(given.get(name, ""), str):
            raise TextError(f"{path}.{name}", f"{path}.{name} must be a string.")
    ids = _plain(given.get("prompt_token_ids"))
    if ids is None and "prompt" not in given:
        raise _no_prompt(prompt, path)
    if ids is not None:
        if not isinstance(ids, list | tuple | range):
            raise TextError(
                f"{path}.prompt_token_ids", f"{path}.prompt_token_ids must be a list of token ids."
            )
        ids = _token_ids(ids, f"{path}.prompt_token_ids")
    return GivenPrompt(given.get("prompt"), ids, given.get("cache_salt", ""))


def _plain(value: Any) -> Any:
    """Convert arrays and tensors to lists."""
    return value.tolist() if hasattr(value, "tolist") else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _token_ids(items: Iterable[Any], path: str) -> list[int]:
    ids = []
    for place, item in enumerate(items):
        try:
            if isinstance(item, bool):
                raise TypeError
            ids.append(operator.index(item))
        except TypeError:
            raise TextError(
                path, f"{path} has {item!r:.80} at place {place}, where a token id is expected."
            ) from None
    return ids


def _no_prompt(value: Any, path: str) -> TextError:
    return TextError(path, f"{path} is of type {type(value).__name__}; give {KINDS}.")
