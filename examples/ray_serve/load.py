"""Ask the application as many clients do, and keep what each of them got."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import httpx

CLIENTS = 12
BACK_S = 150.0  # until a successor answers, on a busy machine


@dataclass
class Outcome:
    """Say what a client got for one request."""

    id: str
    replica: str = ""
    status: int = 0
    error: str = ""
    complete: bool = False
    begun: float = 0.0
    ended: float = 0.0
    tokens: int = 0
    cached: int = 0
    prompt: int = 0
    pieces: int = 0
    first_s: float = 0.0


def body_of(prompt: str, tokens: int) -> dict[str, Any]:
    """Make a request for a stream of exactly so many tokens."""
    return {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "temperature": 0,
            "stream": True, "stream_options": {"include_usage": True}}  # fmt: skip


async def ask(client: httpx.AsyncClient, request_id: str, prompt: str, tokens: int) -> Outcome:
    """Send one request as a stream, and read all of it."""
    got = Outcome(request_id, begun=time.monotonic())
    headers = {"X-Request-Id": request_id}
    text = ""
    async with client.stream(
        "POST", "/v1/completions", json=body_of(prompt, tokens), headers=headers
    ) as answer:
        got.status, got.replica = answer.status_code, answer.headers.get("x-replica", "")
        async for piece in answer.aiter_text():
            got.first_s = got.first_s or time.monotonic() - got.begun
            got.pieces += 1
            text += piece
    got.ended = time.monotonic()
    if got.status != 200:
        got.error = json.loads(text)["error"]["message"]
        return got
    *events, end = [
        line.removeprefix("data: ") for line in text.split("\n\n") if line[:5] == "data:"
    ]
    assert end == "[DONE]", f"{request_id} ended with {text[-200:]!r}"
    for event in map(json.loads, events):
        if "error" in event:
            got.error = event["error"]["message"]
        elif usage := event.get("usage"):
            got.complete, got.tokens = True, usage["completion_tokens"]
            got.prompt = usage["prompt_tokens"]
            got.cached = usage["prompt_tokens_details"]["cached_tokens"]
    assert got.complete != bool(got.error), f"{request_id} is neither whole nor an error"
    return got


@dataclass
class Load:
    """Keep some clients busy, each with one request after another, until told to stop."""

    client: httpx.AsyncClient
    name: str
    tokens: int = 400
    outcomes: list[Outcome] = field(default_factory=list)

    async def __aenter__(self) -> Load:
        self._over = asyncio.Event()
        self._tasks = [asyncio.create_task(self._ask_on(i)) for i in range(CLIENTS)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over.set()
        await asyncio.gather(*self._tasks)

    async def _ask_on(self, place: int) -> None:
        number = 0
        while not self._over.is_set():
            number += 1
            name = f"{self.name}-{place}-{number}"
            prompt = f"Story {name}: once upon a time"
            got = await ask(self.client, name, prompt, self.tokens)
            self.outcomes.append(got)
            if got.error:
                await asyncio.sleep(0.1)

    async def until(
        self, what: str, reached: Callable[[], bool], timeout_s: float = BACK_S
    ) -> None:
        """Wait for a condition. Raises TimeoutError that names it."""
        deadline = time.monotonic() + timeout_s
        while not reached():
            for task in self._tasks:
                if task.done():
                    task.result()
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {timeout_s:g} s: {what}")
            await asyncio.sleep(0.02)


def names(outcomes: Iterable[Outcome]) -> set[str]:
    """Return the replicas that answered."""
    return {got.replica for got in outcomes if got.complete}
