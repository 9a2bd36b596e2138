"""Read `--speculative-config`: how tokens are proposed before the model draws them.

Keys have vLLM's names. Whatever they say, the text is the same (rule 11).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.config.option_types import ConfigError

FLAG = "--speculative-config"
PROPOSED = 7  # forced tokens: with the row before them 8 rows, which kernels compute together
LOOKED_UP = 15  # with the row before them a tile of matrix units
DRAFTED = 4  # each takes a pass of the draft model
LOOKUP_MIN, LOOKUP_MAX = 1, 16  # tokens that must be equal
MOST_PROPOSED = 64
SPECULATIVE_ROWS = 128
"""Rows of a step up to which tokens are proposed, where there aren't as many seats."""


@dataclass(frozen=True)
class Speculation:
    """Hold the settled values of the option."""

    method: str
    num_speculative_tokens: int  # proposed for a sequence in a step, at most
    prompt_lookup_min: int = 0  # last tokens of a sequence that must be found in it again, at least
    prompt_lookup_max: int = 0  # and at most: more are tried first
    model: str = ""  # the one that proposes, by the method "draft"


METHODS: dict[str, tuple[str, ...]] = {
    "ngram": ("prompt_lookup_min", "prompt_lookup_max"),
    "draft": ("model",),
}
"""What each method takes beside num_speculative_tokens."""


def speculation(given: Mapping[str, Any]) -> Speculation | None:
    """Return what the option asks for; None if it is empty. Raises `ConfigError`."""
    if not given:
        return None
    method = given.get("method")
    if not isinstance(method, str) or method not in METHODS:
        named = f"has the method {method!r}" if "method" in given else "names no method"
        raise ConfigError(
            f'{FLAG} {named}; this version proposes tokens by "ngram", which looks them up in the'
            ' sequence itself, or by "draft", a smaller model.'
        )
    taken = ("num_speculative_tokens", *METHODS[method])
    unknown = given.keys() - {"method", *taken}
    if unknown:
        raise ConfigError(
            f"{FLAG} has {', '.join(sorted(map(repr, unknown)))}, which {method} doesn't know; it"
            f" takes {', '.join(taken[:-1])} and {taken[-1]}. How many"
            " tokens are proposed adapts to what was accepted and to the size of the batch."
        )
    if method == "draft":
        return _draft(given)
    most = _number(given, "num_speculative_tokens", LOOKED_UP, MOST_PROPOSED)
    least = given.get("prompt_lookup_min")
    longest = _number(given, "prompt_lookup_max", max(LOOKUP_MAX, _as_number(least)), 1024)
    shortest = _number(given, "prompt_lookup_min", min(LOOKUP_MIN, longest), 1024)
    if shortest > longest:
        raise ConfigError(
            f"{FLAG} has prompt_lookup_min {shortest} above prompt_lookup_max {longest}; give a"
            " smaller one."
        )
    return Speculation("ngram", most, shortest, longest)


def _draft(given: Mapping[str, Any]) -> Speculation:
    model = given.get("model")
    if not isinstance(model, str) or not model:
        said = f"has the model {model!r}" if "model" in given else "names no model"
        raise ConfigError(
            f'{FLAG} {said}; "draft" needs one that is smaller and has the same vocabulary: a'
            " folder or a hub id."
        )
    most = _number(given, "num_speculative_tokens", DRAFTED, MOST_PROPOSED)
    return Speculation("draft", most, model=model)


def _as_number(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _number(given: Mapping[str, Any], name: str, default: int, most: int) -> int:
    value = given.get(name, default)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise ConfigError(
            f"{FLAG} has {name} {value!r}; it must be a whole number from 1 to {most}."
        )
    return value
