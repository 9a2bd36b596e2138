"""Read `--speculative-config`: how tokens are proposed before the model draws them.

Keys have vLLM's names. Whatever they say, the text is the same (rule 11).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.config.option_types import ConfigError

FLAG = "--speculative-config"
METHODS = ("ngram",)
PROPOSED = 7  # with the row before them 8 rows, which kernels compute together
LOOKUP_MIN, LOOKUP_MAX = 2, 4  # tokens that must be equal
MOST_PROPOSED = 64
SPECULATIVE_ROWS = 128
"""Rows of a step up to which tokens are proposed, where there aren't as many seats."""


@dataclass(frozen=True)
class Speculation:
    """Hold the settled values of the option."""

    method: str
    num_speculative_tokens: int  # proposed for a sequence in a step, at most
    prompt_lookup_min: int  # last tokens of a sequence that must be found in it again, at least
    prompt_lookup_max: int  # and at most: more are tried first


def speculation(given: Mapping[str, Any]) -> Speculation | None:
    """Return what the option asks for; None if it is empty. Raises `ConfigError`."""
    if not given:
        return None
    unknown = given.keys() - {
        "method",
        "num_speculative_tokens",
        "prompt_lookup_min",
        "prompt_lookup_max",
    }
    if given.get("method") not in METHODS:
        named = f"has the method {given['method']!r}" if "method" in given else "names no method"
        raise ConfigError(
            f'{FLAG} {named}; this version proposes tokens by "ngram": they are looked up in the'
            " sequence itself. A second model can't propose them."
        )
    if unknown:
        raise ConfigError(
            f"{FLAG} has {', '.join(sorted(map(repr, unknown)))}, which ngram doesn't know; it"
            " takes num_speculative_tokens, prompt_lookup_min and prompt_lookup_max. How many"
            " tokens are proposed adapts to what was accepted and to the size of the batch."
        )
    most = _number(given, "num_speculative_tokens", PROPOSED, MOST_PROPOSED)
    least = given.get("prompt_lookup_min")
    longest = _number(given, "prompt_lookup_max", max(LOOKUP_MAX, _as_number(least)), 1024)
    shortest = _number(given, "prompt_lookup_min", min(LOOKUP_MIN, longest), 1024)
    if shortest > longest:
        raise ConfigError(
            f"{FLAG} has prompt_lookup_min {shortest} above prompt_lookup_max {longest}; give a"
            " smaller one."
        )
    return Speculation("ngram", most, shortest, longest)


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
