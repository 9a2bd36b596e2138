"""Check the values of a struct against its annotations, and say in words what was wrong.

msgspec checks what it decodes, not what a program passes: `max_tokens=2.5` would pass unnoticed
until distant code fails.
"""

from __future__ import annotations

import operator
import types
import typing
from collections.abc import Callable, Mapping
from functools import cache
from numbers import Real
from typing import Any, NamedTuple

import msgspec

LONGEST_SHOWN = 80  # characters of a wrong value in a message


class StructField(NamedTuple):
    """Describe one field of a struct."""

    name: str
    fits: frozenset[type]  # values of exactly these types need no further look
    settle: Callable[[Any], Any]  # the value in its one form; raises TypeError
    words: str  # what it must be


@cache
def fields_of(struct: type) -> tuple[StructField, ...]:
    """Read the annotations of a struct: numbers, texts, lists and dicts of them, or None."""
    hints = typing.get_type_hints(struct)
    names: tuple[str, ...] = struct.__struct_fields__  # type: ignore[attr-defined]
    return tuple(StructField(name, _fitting(hints[name]), *_reader(hints[name])) for name in names)


def wrong(field: StructField, value: Any) -> str:
    """Word the complaint about a value that `field.settle` refused."""
    shown = repr(value)
    if len(shown) > LONGEST_SHOWN:
        shown = shown[:LONGEST_SHOWN] + "…"
    return f"{field.name} is {shown}; it must be {field.words}."


def _fitting(hint: Any) -> frozenset[type]:
    """Return the plain types that an annotation accepts unchanged."""
    hints = typing.get_args(hint) if typing.get_origin(hint) not in (list, dict) else ()
    plain = {int, str, bool, float, types.NoneType}.intersection(hints or (hint,))
    return frozenset(plain | {int} if float in plain else plain)


def _reader(hint: Any) -> tuple[Callable[[Any], Any], str]:
    """Return (how a value is settled, what it must be in words) for an annotation."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return _one_of(typing.get_args(hint))
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is list:
        return _list_of(*_reader(arguments[0]), exact=_EXACT.get(arguments[0], ()))
    if origin is dict:
        return _dict_of(_reader(arguments[0])[0], _reader(arguments[1])[0])
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return _struct(hint), f"{hint.__name__} or a dict of its fields"
    return _PLAIN[hint]


def _struct(hint: type[msgspec.Struct]) -> Callable[[Any], Any]:
    """Read a struct, or a dict with its fields; what the struct itself raises is not caught."""

    def settle(value: Any) -> Any:
        if isinstance(value, hint):
            return value
        if not isinstance(value, Mapping) or not {*value}.issubset(hint.__struct_fields__):
            raise TypeError
        return hint(**value)

    return settle


def _one_of(hints: tuple[Any, ...]) -> tuple[Callable[[Any], Any], str]:
    readers = [_reader(hint) for hint in hints if hint is not types.NoneType]
    optional = types.NoneType in hints
    words = [reader[1] for reader in readers] + (["None"] if optional else [])

    def settle(value: Any) -> Any:
        if value is None and optional:
            return None
        for read, _ in readers:
            try:
                return read(value)
            except TypeError:
                continue
        raise TypeError

    return settle, " or ".join(words)


def _list_of(
    read: Callable[[Any], Any], words: str, exact: tuple[type, ...]
) -> tuple[Callable[[Any], Any], str]:
    """Read a list. exact: types of items that need no further look."""

    def settle(value: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise TypeError
        if type(value) is list and exact and {*map(type, value)}.issubset(exact):
            return value
        return [read(item) for item in value]

    many = words.removeprefix("a ").replace("list of", "lists of")
    return settle, f"a list of {many if many.startswith('lists') else many + 's'}"


def _dict_of(
    read_key: Callable[[Any], Any], read_value: Callable[[Any], Any]
) -> tuple[Callable[[Any], Any], str]:
    def settle(value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise TypeError
        return {read_key(key): read_value(item) for key, item in value.items()}

    return settle, "a dict from token ids (whole numbers) to numbers"


def _whole(value: Any) -> int:
    if type(value) is int:
        return value
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)  # numpy's integers have it too; a float has none


def _number(value: Any) -> float:
    if type(value) is float or type(value) is int:
        return value
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError
    return float(value)


def _exactly(wanted: type) -> Callable[[Any], Any]:
    def settle(value: Any) -> Any:
        if not isinstance(value, wanted):
            raise TypeError
        return value

    return settle


_PLAIN: dict[Any, tuple[Callable[[Any], Any], str]] = {
    int: (_whole, "a whole number"),
    float: (_number, "a number"),
    bool: (_exactly(bool), "True or False"),
    str: (_exactly(str), "a string"),
}
_EXACT: dict[Any, tuple[type, ...]] = {int: (int,), float: (int, float), str: (str,)}
