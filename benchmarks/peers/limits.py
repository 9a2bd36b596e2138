"""State the limits that every system is given, so that none is slowed or helped by its defaults."""

from __future__ import annotations

MAX_MODEL_LEN = 2048
"""Tokens of the longest sequence: what the smallest shapes have."""

CACHE_BYTES = 4 * 2**30
"""Of memory for keys and values: all requests of a workload fit at once."""

LLAMA_SLOTS = 16
"""llama.cpp divides its cache into slots of one length; more requests wait for a free one."""

LLAMA_SLOT_TOKENS = 1152
"""Tokens of a slot: the longest request of the workloads has 1,025."""
