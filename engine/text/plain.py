"""Make plain JSON types of what a program hands to a chat template.

Objects have methods that a template could call; a template gets none of them, as with transformers.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from types import FunctionType, MethodType
from typing import Any


def plain(value: Any) -> Any:
    """Return a copy of dicts, lists, strings and numbers; what is none of these gives its name."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):  # an enum, a number of numpy
            return getattr(kind, f"__{kind.__name__}__")(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(plain(item) for item in value)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic):
        return plain(value.item())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: plain(getattr(value, field.name)) for field in fields}
    if callable(getattr(value, "model_dump", None)):  # pydantic
        return plain(value.model_dump())
    return f"<{type(value).__name__}>"


def plain_tools(tools: Any) -> Any:
    """Tools as schemas; a function of Python is described by its annotations and docstring.

    Raises `ValueError` for what is neither.
    """
    if tools is None:
        return None
    schemas = []
    for tool in tools:
        if isinstance(tool, dict):
            schemas.append(tool)
        elif isinstance(tool, FunctionType | MethodType):
            from transformers.utils import get_json_schema  # takes a second to import

            schemas.append(get_json_schema(tool))
        else:
            raise ValueError(f"a tool is a JSON schema or a function, not {type(tool).__name__}")
    return plain(schemas)


def plain_documents(documents: Any) -> Any:
    """Documents for a template. Raises `TypeError` for one that is no dict."""
    for document in documents or []:
        if not isinstance(document, dict):
            raise TypeError('documents are dicts with "title" and "text"')
    return plain(documents)
