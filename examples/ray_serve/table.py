"""Write the tables of docs/SCALING.md, from results.json and what was measured on a GPU."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from examples.ray_serve.relay import INTERVAL_S

RESULTS = Path(__file__).with_name("results.json")
GPU = RESULTS.parents[2] / "benchmarks" / "results" / "gpu-nvidia-h200.json"
NAMES = {
    "first-token": "time to the first token, one request at a time",
    "cost": "12 streams at once",
    "server-killed": "kill −9 of a replica's server, under load",
    "replica-killed": "kill −9 of a replica, under load",
    "update": "both replicas replaced, under load",
    "scaled": "one replica of at most two, more requests than seats",
    "one-core-each": "one replica, then two, each on a core of its own; answers in one piece",
    "affinity": "6 questions about each of 25 texts, by prefix",
    "round-robin": "the same, in turn",
}
USERS = (1_000, 100_000, 1_000_000)
TOKENS_A_REQUEST, REQUESTS_A_MINUTE = 300, 1
BUSY = 0.7  # of what a GPU can do, on average: the rest is for the busiest hour


def results() -> dict[str, dict[str, Any]]:
    """Return what `examples.ray_serve.check` wrote."""
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def checked_table() -> str:
    """List what was tried, and what came of it."""
    lines = ["| tried | outcome |", "|---|---|"]
    for name, figures in results().items():
        told = "; ".join(f"{what}: {figure:,}" for what, figure in figures.items())
        lines.append(f"| {NAMES[name]} | {told} |")
    return "\n".join(lines)


def limits_table() -> str:
    """Compute what numbers of users need."""
    cost = results()["cost"]
    router_us = cost["proxy, µs a piece"] + cost["door, µs a piece"]
    relay_us = cost["replica, µs a piece"]
    speed = next(
        row
        for row in json.loads(GPU.read_text(encoding="utf-8"))["speed"]
        if (row["shape"], row["requests"]) == ("qwen3-0.6b", 256)
    )
    gpu = speed["tokens_per_s"]
    stream = gpu / speed["requests"]  # tokens/s
    pieces_a_stream = min(stream, 1 / INTERVAL_S)
    most = 1e6 / router_us
    lines = [
        f"An H200 makes {gpu:,.0f} tokens/s of Qwen3-0.6B for {speed['requests']} requests, "
        f"{stream:.0f} each: an answer takes {TOKENS_A_REQUEST / stream:.1f} s. A piece costs the "
        f"router (proxy and door) {router_us:,} µs: a core carries {most:,.0f} pieces a second, "
        f"which are {most / pieces_a_stream:,.0f} streams of {pieces_a_stream:.0f} a second.",
        "",
        "| users | tokens/s | GPUs | open streams | pieces/s | cores of routers | of replicas |",
        "|---|---|---|---|---|---|---|",
    ]
    for users in USERS:
        tokens = users * TOKENS_A_REQUEST * REQUESTS_A_MINUTE / 60
        streams = tokens / stream
        pieces = streams * pieces_a_stream
        lines.append(
            f"| {users:,} | {tokens:,.0f} | {math.ceil(tokens / (BUSY * gpu)):,} | {streams:,.0f} "
            f"| {pieces:,.0f} | {pieces * router_us / 1e6:,.1f} | {pieces * relay_us / 1e6:,.1f} |"
        )
    return "\n".join(lines)
