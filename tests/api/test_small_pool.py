"""64 streaming clients at once, a pool for about three of them: each gets its exact solo answer."""

from __future__ import annotations

import asyncio
import time

import httpx
import msgspec
import pytest

from engine.trace import events
from engine.trace.state import EngineState
from tests.support.cases import mostly

NUM_CLIENTS = 64
NUM_BLOCKS = 24  # of 16 tokens


def request(i: int) -> dict:
    """Prompts of 5 to 90 tokens, some with the same beginning; greedy and seeded ones."""
    shared = "the same beginning for some of us, " if i % 3 == 0 else ""
    return {
        "prompt": shared + f"client {i} says " + "a b c " * (i % 9),
        "max_tokens": 30 + i % 25,
        "temperature": 0.0 if i % 2 else 0.9,
        "seed": i,
        "ignore_eos": True,
        "stream": True,
    }


async def stream(client: httpx.AsyncClient, body: dict) -> str:
    pieces, done = [], False
    async with client.stream("POST", "/v1/completions", json=body) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                done = True
            elif line.startswith("data: "):
                chunk = msgspec.json.decode(line[6:])
                assert "error" not in chunk, chunk
                pieces += [choice["text"] for choice in chunk["choices"]]
    assert done
    return "".join(pieces)


async def all_at_once(url: str, bodies: list[dict]) -> list[str]:
    limits = httpx.Limits(max_connections=NUM_CLIENTS)
    async with httpx.AsyncClient(base_url=url, timeout=240, limits=limits) as client:
        return await asyncio.gather(*(stream(client, body) for body in bodies))


BODIES = [request(i) for i in range(NUM_CLIENTS)]


@pytest.fixture(scope="module")
def alone(start_server) -> list[str]:
    """Return each client's answer when it is the only client."""
    with start_server() as roomy:
        return [asyncio.run(all_at_once(roomy.url, [body]))[0] for body in BODIES]


def whole_record(server) -> tuple[list[events.Event], EngineState]:
    """Return the record and its fold, once its last events have come from the engine process."""
    deadline = time.monotonic() + 10
    while True:
        lines = server.http.get("/trace").content.splitlines()
        told = [msgspec.json.decode(line, type=events.AnyEvent) for line in lines]
        state = EngineState()
        for event in told:
            state.fold(event)
        state.check()
        if not sum(state.references) or time.monotonic() > deadline:
            return told, state
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("mode", mostly(["recompute", "swap", "auto"], "swap"))
def test_every_client_gets_its_solo_answer(start_server, alone, mode):
    flags = ["--num-gpu-blocks-override", str(NUM_BLOCKS), "--preemption-mode", mode]
    with start_server(*flags) as server:
        together = asyncio.run(all_at_once(server.url, BODIES))
        assert together == alone
        server.wait_until_idle(5)
        told, state = whole_record(server)
    modes = {e.mode for e in told if isinstance(e, events.RequestPreempted)}
    assert modes and (mode == "auto" or modes == {mode})
    # The record alone says the same: nothing is left in use.
    assert state.lost == 0 and state.num_blocks == NUM_BLOCKS
    assert sum(state.references) == 0 and not state.running and not state.waiting
