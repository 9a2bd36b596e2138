"""Read what a quantization config says, with an error that names the key."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from engine.models.errors import ModelError

LARGEST_GROUP = 1 << 20


class Said:
    """Read the keys of one config."""

    def __init__(self, method: str, config: dict[str, Any]) -> None:
        self.method, self.config = method, config

    def number(self, keys: str, served: Collection[int], default: int | None = None) -> int:
        """Return one of the numbers that are served. keys: names of the key, newest first."""
        names = keys.split()
        value = next((self.config[name] for name in names if name in self.config), default)
        if type(value) is not int or value not in served:
            listed = ", ".join(map(str, sorted(served)))
            raise ModelError(
                f"this {self.method} checkpoint's {names[0]} is {value!r}; served are {listed}."
            )
        return value

    def group(self, keys: str, default: int | None = None) -> int | None:
        """Return how many inputs share a scale; None: all of a row."""
        names = keys.split()
        value = next((self.config[name] for name in names if name in self.config), default)
        if value in (-1, None):
            return None
        if type(value) is not int or not 1 <= value <= LARGEST_GROUP:
            raise ModelError(
                f"this {self.method} checkpoint's {names[0]} is {value!r}; a number of inputs, or"
                " -1 for all, is due."
            )
        return value

    @staticmethod
    def groups(group: int | None) -> str:
        """Say in words which inputs share a scale."""
        return "one scale a row" if group is None else f"groups of {group}"
