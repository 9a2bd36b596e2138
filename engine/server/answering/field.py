"""Describe one field of a body: what is done with it."""

from __future__ import annotations

from typing import Any, NamedTuple

SERVED, NO_EFFECT, REFUSED = "served", "no effect", "refused"


class Field(NamedTuple):
    """Describe a field by name. `served`, `no_effect`, `refused`: the bodies in which it is that.

    `passes`: values that ask for nothing; a refused field may have them. null always passes.
    """

    name: str
    served: str = ""
    no_effect: str = ""
    refused: str = ""
    passes: tuple[Any, ...] = ()
    note: str = ""

    def verdict(self, body: str) -> str | None:
        """Return what is done with the field in a body; None if it is unknown there."""
        for verdict, bodies in (
            (SERVED, self.served),
            (NO_EFFECT, self.no_effect),
            (REFUSED, self.refused),
        ):
            if body in bodies.split():
                return verdict
        return None
