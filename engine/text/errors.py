"""Define the error of this package."""

from __future__ import annotations


class TextError(ValueError):
    """Report an unusable prompt, message or template: the caller's mistake, an HTTP 400.

    `param` is the dotted path of the field ("messages.0.content"); the message says what was wrong,
    the limit, and what to do.
    """

    def __init__(self, param: str, message: str):
        super().__init__(message)
        self.param = param
