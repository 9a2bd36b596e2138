"""Read and check the body of a request: no half characters, nothing too long.

This happens in one place, before a body becomes a request model, so that no later code has to check
again. Text that goes to the model is mended: half of a surrogate pair, which is no character and
can't be written as UTF-8, becomes U+FFFD. Anywhere else it is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from engine.server.answering.limits import DECLARED, Limits
from engine.server.http.errors import ApiError, ClientLeft, bad_request
from engine.text.characters import HALF, mended
from engine.text.lanes import LONG, in_lane

LARGE_BODY = 65_536  # bytes: reading a smaller one takes less than a millisecond
MOST_COMMAS = 1_000_000  # a batch of token ids: 8 prompts of 131,072, or 128 of 8,192
MOST_STRINGS = 65_536  # 8,192 messages of 4 keys and their values; keys count, too
MOST_BRACKETS = 100_000
"""A parser can't be interrupted and lets no other thread run, so what it makes is counted before it
starts. A number costs it some 30 ns, a key some 500 ns."""

FOR_THE_MODEL = frozenset(
    {"prompt", "messages", "system", "input", "instructions", "tools", "documents"}
)
LARGEST_INTEGER = 2**63 - 1
_DIGITS = bytes.maketrans(b"0123456789", b"0" * 10)
_LONG_NUMBER = b"0" * 19  # the shortest number that may exceed 64 bits


def checked_route(limits: Callable[[], Limits]) -> type[APIRoute]:
    """Make a kind of route whose JSON bodies are read and checked against `limits()`."""

    class CheckedRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()
            if self.body_field is None:
                return handle

            async def checked(request: Request) -> Response:
                if _is_json(request):
                    request = _Read(request, await _read(request, limits()))
                return await handle(request)

            return checked

    return CheckedRoute


class _Read(Request):
    """Hold a request whose body has been read."""

    def __init__(self, request: Request, content: Any):
        super().__init__(request.scope, request.receive)
        self._body = b" "  # FastAPI asks whether there is a body
        self._content = content

    async def json(self) -> Any:
        return self._content


def _is_json(request: Request) -> bool:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/json" or (
        kind.startswith("application/") and kind.endswith("+json")
    )


async def _read(request: Request, limits: Limits) -> Any:
    try:
        body = await request.body()
    except ClientDisconnect:
        raise ClientLeft from None
    if len(body) < LARGE_BODY:
        return read_body(body, limits)
    return await in_lane(LONG, lambda: read_body(body, limits))


def read_body(body: bytes, limits: Limits) -> Any:
    """Read and check a JSON body. Raises `ApiError` or `RequestValidationError`."""
    if len(body) > LARGE_BODY:
        _check_size(body, limits)
    try:
        content = _parsed(body)
    except UnicodeDecodeError as error:
        raise bad_request(f"The body is not UTF-8, at byte {error.start:,}.") from None
    except json.JSONDecodeError as error:
        problem = {"type": "json_invalid", "loc": ("body", error.pos), "ctx": {"error": error.msg}}
        raise RequestValidationError([problem]) from None
    except RecursionError:
        raise bad_request("The body is nested too deeply.") from None
    except ValueError:  # Python reads no integer of more than 4,300 digits
        raise bad_request(
            f"The body has an integer that is too long; at most {LARGEST_INTEGER} is taken."
        ) from None
    if isinstance(content, dict):
        try:  # the parser takes more levels than the functions that walk through them
            limits.check(content)
            if b"\\u" in body or _LONG_NUMBER in body.translate(_DIGITS):
                content = {
                    _checked_key(name, ""): _mended(value, name, name in FOR_THE_MODEL)
                    for name, value in content.items()
                }
        except RecursionError:
            raise bad_request("The body is nested too deeply.") from None
    return content


def _parsed(body: bytes) -> Any:
    """Parse JSON with the faster parser, or with the one that takes half characters and infinity.

    Raises the latter's errors.
    """
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return json.loads(body.decode())


def _check_size(body: bytes, limits: Limits) -> None:
    for count, limit, what in _COUNTED:
        number = count(body)
        if number <= limit:
            continue
        field, number = _fullest(body, count)
        if number > limit:
            raise limits.too_many(field, number, limit, what)
        raise ApiError(
            413,
            f"The body has {count(body):,} {what}; at most {limit:,} are read. Send less, or "
            "several requests.",
        )


def _fullest(body: bytes, count: Callable[[bytes], int]) -> tuple[str, int]:
    """Return the field with the most of what is counted. Other fields' values are skipped, so this
    is fast."""
    try:
        fields = _unread(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return "", 0
    counts = {name: count(bytes(getattr(fields, name))) for name in sorted(DECLARED)}
    name = max(counts, key=counts.__getitem__)
    return name, counts[name]


def _num_strings(body: bytes) -> int:
    """Count the strings of JSON, keys included; if they are few, the most that it can have."""
    if body.count(b'"') <= 2 * MOST_STRINGS:
        return body.count(b'"') // 2
    unescaped = body.replace(b"\\\\", b"")  # what is left before a quote escapes it
    return (unescaped.count(b'"') - unescaped.count(b'\\"')) // 2


def _mended(value: Any, path: str, for_the_model: bool) -> Any:
    """Return `value` without half characters. Raises `ApiError` for what can't be mended."""
    if isinstance(value, str):
        if for_the_model:
            return mended(value)
        return _whole(value, path)
    if isinstance(value, list):
        return [_mended(item, f"{path}.{place}", for_the_model) for place, item in enumerate(value)]
    if isinstance(value, dict):
        return {
            _checked_key(key, path): _mended(item, f"{path}.{key}", for_the_model)
            for key, item in value.items()
        }
    if type(value) is int and not -LARGEST_INTEGER - 1 <= value <= LARGEST_INTEGER:
        digits = str(value)
        told = digits if len(digits) <= 24 else f"an integer of {len(digits.lstrip('-'))} digits"
        raise bad_request(
            f"{path} is {told}; it must be in [{-LARGEST_INTEGER - 1}, {LARGEST_INTEGER}].", path
        )
    return value


def _checked_key(key: str, path: str) -> str:
    where = f"{path}.{key}" if path else key
    return _whole(key, where.encode(errors="backslashreplace").decode())


def _whole(text: str, path: str) -> str:
    half = HALF.search(text)
    if half is not None:
        raise bad_request(
            f"{path} has half of a surrogate pair, \\u{ord(half[0]):04x}, which is no character. "
            "Send whole characters.",
            path,
        )
    return text


_COUNTED: list[tuple[Callable[[bytes], int], int, str]] = [
    (lambda body: body.count(b","), MOST_COMMAS, "commas"),
    (lambda body: body.count(b"[") + body.count(b"{"), MOST_BRACKETS, "lists and objects"),
    (_num_strings, MOST_STRINGS, "strings and keys"),
]
_unread = msgspec.json.Decoder(
    msgspec.defstruct("Unread", [(name, msgspec.Raw, msgspec.Raw()) for name in sorted(DECLARED)])
).decode
