"""Compare one replica with two on a machine whose cores are divided among them."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import replace
from typing import Any

import httpx

from engine.models.errors import ModelError
from engine.models.hub import find_model
from examples.ray_serve.load import BACK_S, Outcome, body_of, names
from examples.ray_serve.processes import Process, bind, descendants
from examples.ray_serve.replacing import replaced
from examples.ray_serve.settings import Settings

TOKENS = 64  # of an answer
WARM_S, MEASURED_S = 8.0, 40.0


async def one_core_each(client: httpx.AsyncClient, settings: Settings) -> dict[str, Any]:
    """Compare the speed of one replica on one core with that of two, each on a core of its own."""
    cores = sorted(os.sched_getaffinity(0))
    assert len(cores) >= 2, "this scene needs two cores"
    flags = [*settings.flags, "--model", own_weights("smollm2")]
    speeds = []
    for count in (1, 2):
        await replaced(replace(settings, flags=flags, replicas=count, max_replicas=count))
        for core, server in zip(cores, await servers_of(flags, count)):
            bind(server.pid, core)
        speed, got = await whole_answers(client, count * settings.num_seats)
        assert len(names(got)) == count
        speeds.append(speed)
    one, two = speeds
    told = f"tokens/s of {flags[-1]}"
    return {
        f"{told}, one replica": round(one),
        f"{told}, two": round(two),
        "gain, times": round(two / one, 2),
    }


def own_weights(name: str) -> str:
    """Return the name of a model if its weights can be had, else the pocket model's."""
    try:
        find_model(name, None, None)
    except ModelError:
        return "pocket"
    return name


async def servers_of(flags: list[str], count: int) -> list[Process]:
    """Wait until so many servers run, all of them with these flags; return them."""
    deadline = time.monotonic() + BACK_S
    while True:
        servers = [process for process in descendants() if process.kind == "server"]
        if len(servers) == count and all(" ".join(flags) in one.command for one in servers):
            return servers
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(servers)} servers run, where {count} should")
        await asyncio.sleep(0.2)


async def whole_answers(client: httpx.AsyncClient, clients: int) -> tuple[float, list[Outcome]]:
    """Ask for answers in one piece; return tokens/s, and the answers.

    Each piece of a stream costs Ray more than some tokens cost a small model, so streams would show
    Ray's speed.
    """
    got: list[Outcome] = []

    async def ask_on(place: int, until_s: float) -> None:
        number = 0
        while time.monotonic() < until_s:
            number += 1
            body = body_of(f"Story {place}-{number}: once upon a time", TOKENS)
            body = {**body, "stream": False, "stream_options": None}
            answer = (await client.post("/v1/completions", json=body)).raise_for_status()
            tokens = answer.json()["usage"]["completion_tokens"]
            name = answer.headers["x-replica"]
            ended = time.monotonic()
            got.append(Outcome(str(number), name, 200, complete=True, tokens=tokens, ended=ended))

    begun = time.monotonic() + WARM_S
    until_s = begun + MEASURED_S
    await asyncio.gather(*(ask_on(place, until_s) for place in range(clients)))
    counted = [one for one in got if begun <= one.ended < until_s]
    return sum(one.tokens for one in counted) / MEASURED_S, got
