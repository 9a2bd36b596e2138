"""Find which scheme a layer has by a compressed-tensors config, by the library's own rules.

Targets and `ignore` are lists of names of layers, of patterns, which begin with "re:" and must fit
a name from its first letter on, and of classes of torch. The most exact target counts: a name, then
a pattern, then a class. Patterns are the author's and may take long: the engine never runs them,
for the tensors say which layers are quantized; only `glasshouse plan` has no tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from engine.models.errors import ModelError

LINEAR, EMBEDDING = ("Linear", "Module"), ("Embedding", "Module")
"""Classes that a layer is of, by their names."""
PATTERN = "re:"
HEAD_LAYER = "lm_head"


def groups_of(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the groups of layers that a config describes. Raises `ModelError`: none is a dict."""
    said = config.get("config_groups") or {}
    groups = [one for one in said.values() if one] if isinstance(said, dict) else [said]
    if not all(isinstance(one, dict) for one in groups):
        raise ModelError(f"this compressed-tensors checkpoint's config_groups is {str(said)[:60]}.")
    return groups


def scheme_of(
    config: dict[str, Any], layer: str, classes: tuple[str, ...] = LINEAR
) -> dict[str, Any] | None:
    """Return the group of the config that a layer is in; None: it is in none, or ignored.

    layer: its whole name, "model.layers.0.mlp.up_proj". Raises `ModelError` for what is no pattern.
    """
    if any(_names(one, layer) or one in classes for one in _strings(config.get("ignore"))):
        return None
    schemes = {
        target: group for group in groups_of(config) for target in _strings(group.get("targets"))
    }
    targets = sorted(schemes, key=lambda one: (PATTERN in one, one))
    found = [one for one in targets if _names(one, layer)] or [
        one for one in targets if one in classes
    ]
    return schemes[found[0]] if found else None


def _names(target: str, layer: str) -> bool:
    if target.startswith(PATTERN):
        return _pattern(target.removeprefix(PATTERN)).match(layer) is not None
    return target == layer


@lru_cache(maxsize=1024)
def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except (re.error, RecursionError, OverflowError):
        raise ModelError(
            f"this compressed-tensors checkpoint names layers by {text[:60]!r}, which is no regular"
            " expression."
        ) from None


def _strings(said: Any) -> Iterable[str]:
    said = [said] if isinstance(said, str) else said or ()
    if not isinstance(said, list | tuple) or not all(isinstance(one, str) for one in said):
        raise ModelError(f"this compressed-tensors checkpoint names layers by {str(said)[:60]}.")
    return said
