"""Whatever ends a request early, and wherever: nothing of it is left, and the next one is served.

The engine process is a real one with the fake executor; the application is called as uvicorn calls
it, without a socket, so that a test can stop it at each of its awaits.
"""

from __future__ import annotations

import asyncio
import itertools
import json

import pytest

from engine.config import EngineConfig
from engine.server.app import create_app
from engine.server.http.connection import BODY
from engine.server.service import Service
from engine.text.lanes import SHORT, in_lane_within
from tests.server.early_ends import Fault, Injected, Points
from tests.server.fake_engine import expected_text, fake

STREAM = {"prompt": "ab", "max_tokens": 3, "stream": True, "trace": "full"}
WHOLE = {"prompt": ["ab", "cd"], "max_tokens": 3, "n": 2, "request_id": "mine"}
STOPS = {"prompt": "a" * 300, "max_tokens": 200, "stop": [expected_text(b"a" * 300, 4)[-2:]]}
CHAT = {"messages": [{"role": "user", "content": "ab"}], "max_tokens": 2, "stream": True}
REQUESTS = [
    ("/v1/completions", STREAM),
    ("/v1/completions", WHOLE),
    ("/v1/completions", STOPS),
    ("/v1/chat/completions", CHAT),
]
MOST_POINTS = 400


class Straight:
    """Stands for a connection that takes two pieces, then none until something was sent."""

    def __init__(self, parts):
        self.parts = parts

    def write(self, data):
        self.parts.append(data)
        return len(self.parts) % 2 == 0


class Called:
    """The application in this thread's event loop. `max_num_queued_reqs` is so small that one
    place that leaks is noticed."""

    def __init__(self, folder, **options):
        self.loop = asyncio.new_event_loop()
        config = EngineConfig(model=str(folder), log_format="off", max_num_queued_reqs=2, **options)
        self.service = Service(config, fake())
        self.app = create_app(self.service)
        self.loop.run_until_complete(self._start())

    async def _start(self):
        await self.service.start()
        while self.service.state != "ready":
            assert self.service.state == "loading", self.service.detail
            await asyncio.sleep(0.01)

    def close(self):
        self.loop.run_until_complete(self.service.stop())
        self.loop.close()

    async def call(self, route, body, left):
        """(status, body) of an answer; `left` is set when the client leaves."""
        asked, status, parts = False, 0, []

        async def receive():
            nonlocal asked
            if not asked:
                asked = True
                return {"type": "http.request", "body": json.dumps(body).encode()}
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            nonlocal status
            status = message.get("status", status)
            parts.append(message.get("body", b""))
            await asyncio.sleep(0)

        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
            "scheme": "http", "path": route, "raw_path": route.encode(), "query_string": b"",
            "root_path": "", "headers": [(b"content-type", b"application/json"), (b"host", b"a")],
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "state": {},
            BODY: Straight(parts),
        }  # fmt: skip
        await self.app(scope, receive, send)
        return status, b"".join(parts)

    async def expect_nothing_left(self, what):
        """Every table is empty, every count 0, here and in the engine, and two requests fit into
        the queue."""
        service, client = self.service, self.service.client
        assert service.num_open == 0, what
        assert len(client.requests) == client.requests.num_unbooked == 0, what
        assert not service.recorder.full_requests, what
        for _ in range(500):
            stats = client.stats
            if not (stats.num_running or stats.num_waiting or stats.blocks_used):
                break
            await asyncio.sleep(0.005)
        else:
            raise AssertionError(f"the engine still has work: {what}, {stats}")
        assert client.num_waiting == 0, what
        body = {"prompt": ["x", "y"], "max_tokens": 2, "request_id": "mine"}
        status, answer = await self.call("/v1/completions", body, asyncio.Event())
        assert status == 200, (what, answer)
        texts = [choice["text"] for choice in json.loads(answer)["choices"]]
        assert texts == [expected_text(b"x", 2), expected_text(b"y", 2)], what

    async def end_at(self, at, route, body, how):
        """Let the client leave, or cancel the request's task, at await number `at`. Returns whether
        there was such a point."""
        left = asyncio.Event()
        points = Points(at, lambda: None)
        loop = asyncio.get_running_loop()
        loop.set_task_factory(points.task)
        try:
            task = loop.create_task(self.call(route, body, left))
            points.act = left.set if how == "leave" else task.cancel
            await asyncio.wait({task}, timeout=30)
            assert task.done(), f"{how} at {at}: the request hangs"
        finally:
            loop.set_task_factory(None)
        if not task.cancelled() and task.exception() is not None:
            raise task.exception()
        return points.count >= at

    async def raise_at(self, at, route, body):
        """Raise in call number `at` of the functions of ours. Returns whether there was one."""
        task = asyncio.ensure_future(self.call(route, body, asyncio.Event()))
        engines = asyncio.current_task()
        fault = Fault(at, lambda: asyncio.current_task() not in (None, engines))
        with fault:
            await asyncio.wait({task}, timeout=30)
        assert task.done(), f"{fault.where} raises: the request hangs"
        error = task.exception()
        assert error is None or isinstance(error, Injected), error
        return fault.count >= at


async def interrupt():
    """Work that took too long. CPython 3.11 hangs in a traced call afterwards if the interrupt is
    still pending."""

    def endless():
        while True:
            pass

    with pytest.raises(TimeoutError):
        await in_lane_within(SHORT, endless, 0.05)


@pytest.fixture(scope="module")
def called(tokenizer_folder):
    running = Called(tokenizer_folder)
    running.loop.run_until_complete(interrupt())
    yield running
    running.close()


@pytest.mark.parametrize(("route", "body"), REQUESTS)
@pytest.mark.parametrize("how", ["leave", "cancel"])
def test_a_request_may_end_at_every_await(called, route, body, how):
    async def everywhere():
        for at in range(1, MOST_POINTS):
            more = await called.end_at(at, route, body, how)
            await called.expect_nothing_left(f"{how} at await {at}")
            if not more:
                return at
        raise AssertionError("there is no end of it")

    assert called.loop.run_until_complete(everywhere()) > 8


@pytest.mark.parametrize(
    ("route", "body"),
    [REQUESTS[0], *(pytest.param(*one, marks=pytest.mark.full) for one in REQUESTS[1:])],
)
def test_every_call_may_raise(called, route, body):
    async def everywhere():
        await called.call(route, body, asyncio.Event())  # starts the threads that it needs
        for at in itertools.count(1):
            more = await called.raise_at(at, route, body)
            await called.expect_nothing_left(f"call {at} raises")
            if not more:
                return at

    assert called.loop.run_until_complete(everywhere()) > 30
