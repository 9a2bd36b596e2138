"""State what form one request's text must have (StructuredOutputsParams).

Only the declaration is here. `text/form_to_grammar.py` turns it into a grammar, the worker holds
each token to that.
"""

from __future__ import annotations

from typing import Any

import msgspec

LARGEST = 131_072
"""Bytes of a schema, grammar or list of choices, as JSON: a larger one takes seconds to compile."""
MOST_LEVELS = 64
"""Levels of lists and objects in a schema."""
MOST_ENTRIES = 1_024
"""Entries of one object in a schema; each pair of optional properties costs."""
GRAMMAR_LIMITS: dict[str, Any] = {
    "max_grammar_size": 100_000,
    "step_max_items": 50_000,
    "max_items_in_row": 6_000,  # 1,024 optional properties make 4,100
    "max_lexer_states": 20_000,
}
"""The most that a grammar may cost, in llguidance's units: the slowest masks take some 20 ms."""
FORMS = ("json", "json_object", "regex", "choice", "grammar", "structural_tag")


class StructuredOutputsError(ValueError):
    """Report a form that can't be held. `field` names the part that is wrong."""

    def __init__(self, field: str, message: str):
        super().__init__(message)
        self.field = field


class StructuredOutputsParams(msgspec.Struct, kw_only=True, omit_defaults=True, frozen=True):
    """Hold the form of a text: exactly one of `FORMS`.

    Raises `StructuredOutputsError` for none or several, and for values of other types.
    """

    json: dict[str, Any] | bool | str | None = None  # a JSON Schema, or its text
    json_object: bool | None = None  # any JSON object
    regex: str | None = None  # in Rust's syntax; the whole text matches
    choice: list[str] | None = None  # the text is one of these
    grammar: str | None = None  # in Lark, or in GBNF (EBNF with ::=)
    structural_tag: dict[str, Any] | str | None = None  # free text, with schemas between marks
    disable_any_whitespace: bool = False  # JSON in one line, without spaces
    disable_additional_properties: bool = False  # an object has only the properties named
    whitespace_pattern: str | None = None  # what may stand between JSON's parts, a regex

    def __post_init__(self) -> None:
        given = [name for name in FORMS if getattr(self, name) not in (None, False)]
        if self.json is False:
            given.insert(0, "json")  # the schema that nothing fits, which is refused by name later
        if len(given) != 1:
            named = " and ".join(given) or "none of them"
            raise StructuredOutputsError(
                given[1] if given else "", f"give exactly one of {', '.join(FORMS)}; {named} came."
            )
        self._check_types()

    @property
    def form(self) -> str:
        """Return which of `FORMS` it is."""
        if self.json is False:
            return "json"
        return next(name for name in FORMS if getattr(self, name) not in (None, False))

    def _check_types(self) -> None:
        texts = {"regex": self.regex, "grammar": self.grammar}
        texts["whitespace_pattern"] = self.whitespace_pattern
        for name, value in texts.items():
            if value is not None and not isinstance(value, str):
                raise _wrong(name, value, "a string")
        for name in ("disable_any_whitespace", "disable_additional_properties"):
            if not isinstance(getattr(self, name), bool):
                raise _wrong(name, getattr(self, name), "true or false")
        if self.json is not None and not isinstance(self.json, dict | bool | str):
            raise _wrong("json", self.json, "a JSON Schema: an object, true, or its text")
        if self.json_object is not None and not isinstance(self.json_object, bool):
            raise _wrong("json_object", self.json_object, "true or false")
        tag = self.structural_tag
        if tag is not None and not isinstance(tag, dict | str):
            raise _wrong("structural_tag", tag, "an object or its text")
        choices = self.choice
        if choices is not None and (
            not isinstance(choices, list) or not all(isinstance(one, str) for one in choices)
        ):
            raise _wrong("choice", choices, "a list of strings")
        if choices is not None and not choices:
            raise StructuredOutputsError("choice", "choice is empty: no text could ever be right.")


def _wrong(name: str, value: Any, wanted: str) -> StructuredOutputsError:
    return StructuredOutputsError(name, f"{name} is {value!r:.80}; it must be {wanted}.")
