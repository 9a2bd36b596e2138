"""Convert what a program gives to a chat template into plain JSON types.

Objects have methods that a template could call, so no object reaches it, as with transformers.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from types import FunctionType, MethodType
from typing import Any


def plain(value: Any) -> Any:
    """Convert a value to plain JSON types.

    An object without such a form becomes its type's name.
    """
    if value is None or type(value) in (str, int, float, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):  # an enum, a NumPy number
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
    """Convert tools to schemas; annotations and docstring describe a Python function.

    Raises `ValueError` for anything else.
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
    """Convert documents for a template. Raises `TypeError` for one that isn't a dict."""
    for document in documents or []:
        if not isinstance(document, dict):
            raise TypeError('documents are dicts with "title" and "text"')
    return plain(documents)
