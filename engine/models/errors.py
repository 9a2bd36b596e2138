"""Define the error of a model that can't be served correctly."""

from __future__ import annotations


class ModelError(Exception):
    """Report a model that can't be found, read or served. One line: what is wrong, what to do."""
