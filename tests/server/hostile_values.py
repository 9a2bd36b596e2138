"""Values that might break a field, and bodies with them in each field of the request models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

HALF = "\ud83d"
DEEP: Any = 1
for _ in range(60):
    DEEP = [DEEP]

VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 10**9, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, -(2**63),
    2**64, 10**300, -(10**300), 0.0, -0.0, 0.5, 1e-320, 1e308, float("inf"), float("-inf"),
    float("nan"),
    "", " ", "a", "\0", "\x1b[2J", HALF, f"a{HALF}\udc00", "\u202e", "9" * 5000, "1_0", "é" * 300,
    "{% for x in range(9) %}{{ x }}{% endfor %}", "{{", "../../etc/passwd", "a" * 70_000,
    [], [[]], [0], [-1], [2**63], [10**300], [None], [True], ["a"], [""], [HALF], [1.5], [[1]],
    [{}], [1, "a"], ["a"] * 2_000, [1] * 2_000, [[1]] * 2_000, DEEP,
    {}, {"a": 1}, {"1": 1}, {"1": 1e400}, {"-1": 1}, {"9" * 30: 1}, {"1": HALF}, {HALF: 1},
    {"": {}},
    {"role": "user", "content": "a"}, [{"role": "user", "content": "a"}], {"type": "text"},
    [{"role": "user", "content": HALF}], [{"role": HALF, "content": [{"type": "text", "text": 1}]}],
    [{"role": "assistant", "content": None, "tool_calls": [{"function": {"name": 1}}]}],
    {str(i): i for i in range(2_000)},
]  # fmt: skip


def bodies(model: type[BaseModel], base: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """`base` with each field of `model` set to each value, and with fields nobody knows."""
    for name in (*model.model_fields, "colour", HALF, "x" * 300, "tools", "response_format"):
        for value in VALUES:
            yield {**base, name: value}
