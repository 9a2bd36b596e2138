"""Decide how many replicas there should be: by their seats, their blocks, and who waits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

BUSY_SEATS = 0.75
"""Of all replicas' seats: the rest takes what comes while another replica starts."""
BUSY_BLOCKS = 0.8
"""Of all replicas' KV blocks: near full, requests preempt one another."""


def load_of(stats: Mapping[str, Any]) -> dict[str, float]:
    """Return what a replica reports, from what its server says at /load."""
    blocks = stats["kv_blocks"]
    requests = stats["num_requests_running"] + stats["num_requests_waiting"]
    return {
        "num_seats": stats["max_num_seqs"],
        "seats": requests / stats["max_num_seqs"],
        "blocks": blocks["used"] / max(blocks["total"], 1),
    }


def replicas_for(
    seats: Iterable[float], blocks: Iterable[float], queued: float, num_seats: float
) -> int:
    """Return how many replicas a load wants.

    seats, blocks: the shares in use at each replica, seats above 1 where requests wait. queued:
    requests that no replica has yet.
    """
    by_seats = (sum(seats) + queued / num_seats) / BUSY_SEATS
    by_blocks = sum(blocks) / BUSY_BLOCKS
    return max(1, math.ceil(max(by_seats, by_blocks)))


def policy(context: Any) -> tuple[int, dict[str, Any]]:
    """Return how many replicas there should be, and nothing to remember. Called by Ray.

    Ray applies the delays and the bounds of `autoscaling_config` to it.
    """
    told = {name: list(of.values()) for name, of in (context.aggregated_metrics or {}).items()}
    if not told.get("num_seats"):
        return context.target_num_replicas, {}
    queued = context.total_queued_requests or 0.0
    return replicas_for(told["seats"], told["blocks"], queued, told["num_seats"][0]), {}
