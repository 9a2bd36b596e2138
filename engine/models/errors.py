"""What a model that can't be served right raises."""

from __future__ import annotations


class ModelError(Exception):
    """The model can't be found, read or served. One line: what is wrong, what to do."""
