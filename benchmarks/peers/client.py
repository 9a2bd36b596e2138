"""Send requests to any server: streamed completions of token ids, all at once.

The client shares the cores with the server that it measures, so it does as little as it can: it
reads bytes, notes when the first and the last of an answer's body came, and parses them only after
all answers are there.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass

from benchmarks.workloads import Job, Run, Workload

EVENT = b"data: "
DONE = b"data: [DONE]"


class WrongAnswer(RuntimeError):
    """Report that a server refused, or didn't give what was asked for."""


@dataclass
class Answer:
    """Hold one streamed answer: all bytes of the connection, and seconds since the run's start."""

    data: bytes
    first_s: float
    end_s: float


def request_bytes(job: Job, model: str, host: str) -> bytes:
    """Make the whole HTTP request. The connection ends with the answer."""
    body = json.dumps(
        {
            "model": model,
            "prompt": job.prompt,
            "max_tokens": job.num_output,
            "temperature": 0.0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            "cache_prompt": False,  # llama.cpp's: nothing is reused between requests
        }
    ).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


def completion_tokens(data: bytes) -> int:
    """Return how many tokens an answer has, as its usage says. Raises `WrongAnswer`."""
    if not data.startswith(b"HTTP/1.1 200"):
        raise WrongAnswer(f"the server answered {data[:300]!r}")
    for line in reversed(data.splitlines()):
        if line.startswith(EVENT) and not line.startswith(DONE):
            usage = json.loads(line[len(EVENT) :]).get("usage")
            if usage:
                return usage["completion_tokens"]
    raise WrongAnswer(f"the answer has no usage; it ends so: {data[-300:]!r}")


class _Connection(asyncio.Protocol):
    """Send one request, and keep what comes."""

    def __init__(self, request: bytes, started: float):
        self.request = request
        self.started = started
        self.pieces: list[bytes] = []
        self.first_s = 0.0
        self.done: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.pieces.append(data)
        # The head may come before the first token is drawn; a data line comes only with it.
        if not self.first_s and EVENT in data:
            self.first_s = time.perf_counter() - self.started

    def connection_lost(self, exc: Exception | None) -> None:
        end = time.perf_counter() - self.started
        if exc is not None:
            self.done.set_exception(exc)
        else:
            self.done.set_result(Answer(b"".join(self.pieces), self.first_s, end))


async def _answers(host: str, port: int, requests: list[bytes]) -> tuple[list[Answer], float]:
    loop = asyncio.get_running_loop()
    started = time.perf_counter()
    connections = await asyncio.gather(
        *(
            loop.create_connection(lambda r=request: _Connection(r, started), host, port)
            for request in requests
        )
    )
    answers = await asyncio.gather(*(protocol.done for _, protocol in connections))
    return list(answers), time.perf_counter() - started


def run(workload: Workload, host: str, port: int, model: str) -> Run:
    """Run the workload over HTTP. Raises `WrongAnswer`, also when a token is missing."""
    requests = [request_bytes(job, model, f"{host}:{port}") for job in workload.jobs]
    answers, total = asyncio.run(_answers(host, port, requests))
    for job, answer in zip(workload.jobs, answers):
        if (got := completion_tokens(answer.data)) != job.num_output:
            raise WrongAnswer(f"{got} tokens came, {job.num_output} were asked for")
    return Run(total, min(a.first_s for a in answers), [a.end_s for a in answers])
