"""State which values an option's type takes, and convert text to such a value."""

from __future__ import annotations

import json
import math
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal


class ConfigError(ValueError):
    """Report an option with an impossible value, or two that contradict each other."""


@dataclass(frozen=True)
class OptionType:
    """Describe the values that an option takes."""

    base: type  # bool, int, float, str or dict; of each item if `many`
    choices: tuple[str, ...] = ()  # every possible value; none: any text
    optional: bool = False  # None is a value
    many: bool = False  # a list


_WORDS = {"half": "float16", "float": "float32"}
"""vLLM's other names for values of an option with choices."""

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")
_NUMBER = re.compile(r"(-?[0-9]{1,18}(?:\.[0-9]{1,9})?)([kmgtKMGT]?)")
_POWERS = "kmgt"


def kind_of(hint: Any) -> OptionType:
    """Read a field's annotation."""
    optional = many = False
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        parts = [part for part in typing.get_args(hint) if part is not type(None)]
        optional, hint = True, parts[0]
    if typing.get_origin(hint) is list:
        many, hint = True, typing.get_args(hint)[0]
    if typing.get_origin(hint) is Literal:
        return OptionType(str, typing.get_args(hint), optional, many)
    return OptionType(typing.get_origin(hint) or hint, (), optional, many)


def from_text(name: str, text: str | Sequence[str], kind: OptionType) -> Any:
    """Convert `text` to a value. `name` is the flag or variable, for the error.

    Whole numbers may end in k, m, g or t (thousands) or K, M, G or T (1,024s); `auto` leaves an
    optional number to the engine. Several texts are a JSON list, or separate words on the command
    line. Raises `ConfigError`.
    """
    if kind.many:
        words = [text] if isinstance(text, str) else list(text)
        if len(words) == 1 and words[0].lstrip().startswith("["):
            return _json(name, words[0], list)
        return words
    if not isinstance(text, str):
        raise ConfigError(f"{name} has {len(text)} values; it takes one.")
    if kind.base is dict:
        return _json(name, text, dict)
    if kind.base is bool:
        return _switch(name, text)
    if kind.base is int:
        return _whole_number(name, text, kind)
    if kind.base is float:
        try:
            return float(text)
        except ValueError:
            raise ConfigError(f"{name} is {text!r}; it must be a number.") from None
    return text


def settled(name: str, value: Any, kind: OptionType) -> Any:
    """Convert `value` to its one form. Raises `ConfigError` if it is of the wrong kind."""
    if kind.many and isinstance(value, str):
        value = [value]
    if value is None and kind.optional:
        return value
    if kind.many:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{name} is {value!r}; it must be a list of texts.")
        one = OptionType(kind.base, kind.choices)
        return [settled(name, item, one) for item in value]
    if kind.choices:
        value = _WORDS.get(value, value) if isinstance(value, str) else value
        if value not in kind.choices:
            raise ConfigError(f"{name} is {value!r}; choose one of {', '.join(kind.choices)}.")
        return value
    if kind.base is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ConfigError(f"{name} is {value}; it must be a number.")
        return float(value)
    if not isinstance(value, kind.base) or (kind.base is int and isinstance(value, bool)):
        raise ConfigError(f"{name} is {value!r}; it must be of type {kind.base.__name__}.")
    return value


def _switch(name: str, text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ConfigError(f"{name} is {text!r}; write 1 or 0.")


def _whole_number(name: str, text: str, kind: OptionType) -> int | None:
    if kind.optional and text in ("auto", "-1"):
        return None
    found = _NUMBER.fullmatch(text.strip())
    if found is not None:
        number, unit = found.groups()
        base = 1024 if unit.isupper() else 1000
        value = float(number) * base ** (_POWERS.index(unit.lower()) + 1) if unit else None
        if value is None and "." not in number:
            return int(number)
        if value is not None and value == int(value):
            return int(value)
    auto = ", or auto" if kind.optional else ""
    raise ConfigError(f"{name} is {text!r}; it must be a whole number, such as 2048 or 2k{auto}.")


def _json(name: str, text: str, base: type) -> Any:
    shape = "a JSON list of texts" if base is list else "a JSON object"
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{name} is {text!r}; it must be {shape} ({error}).") from None
    if not isinstance(value, base):
        raise ConfigError(f"{name} is {text!r}; it must be {shape}.")
    return value
