"""Select the lines of the record about some requests: `GET /trace?request_id=…`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import msgspec

_PLANNED, _FINISHED = b'{"kind":"step.planned"', b'{"kind":"step.finished"'
_FACTS = (
    b'{"kind":"engine.started"',
    b'{"kind":"engine.model_loaded"',
    b'{"kind":"engine.divided"',
    b'{"kind":"engine.kv_sized"',
)


class _Head(msgspec.Struct):
    step: int = 0


_step_of = msgspec.json.Decoder(_Head).decode


def lines_about(lines: Iterable[bytes], request_ids: Iterable[str]) -> Iterator[bytes]:
    """Yield every event about one of the requests, in order, one line of JSON each.

    Included are events that name the request, a sequence of it ("x.1") or a prompt of it ("x:1");
    the steps that computed for them, to their end; and the engine's facts. This is enough for the
    life of these requests, but not for a replay: the other requests are left out.
    """
    wanted = [name.encode() for name in request_ids]
    # No letter may stand before or after a name: cmpl-1 is not cmpl-12. Nor is it cmpl-1.p2, which
    # the second server process made of another client's header.
    one = b"(?:" + b"|".join(map(re.escape, wanted)) + b")"
    names = re.compile(rb"(?<![\w-])" + one + rb"(?::\d+)?(?:\.\d+)?(?![\w-]|\.p\d)")
    steps: set[int] = set()
    for line in lines:
        if line.startswith(_FACTS):
            yield line
        elif line.startswith(_FINISHED):
            if _step_of(line).step in steps:
                yield line
        elif any(name in line for name in wanted) and names.search(line):  # `in` is the faster test
            if line.startswith(_PLANNED):
                steps.add(_step_of(line).step)
            yield line
