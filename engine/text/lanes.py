"""Do work on texts outside the event loop, so that nobody else waits for it.

Two lanes of few threads: what is long waits only for other long work, and what is short only for
short. So the longest texts can fill their lane, and ordinary requests still pass.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

LONG_TEXT = 4_000
"""Characters: what is shorter takes about a millisecond."""

_SHORT = ThreadPoolExecutor(2, "short text")
_LONG = ThreadPoolExecutor(2, "long text")


async def in_lane(work: Callable[[], T], long: bool) -> T:
    """The result of `work()`, done in a thread of the lane for `long` or short work."""
    return await asyncio.get_running_loop().run_in_executor(_LONG if long else _SHORT, work)
