"""Start the engine process, send it requests, and distribute their news: the server's side.

    client.add(request, mailbox) → await mailbox.take(): all that came since the last call
    client.abort(id) · client.finish(id, index, stop) · client.stats · client.state

A watchdog waits for the engine process itself: when it ends, every open request fails immediately.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
import socket
from collections.abc import Callable

from loguru import logger

from engine.config import EngineConfig
from engine.core.messages import CoreRequest, KVShape, StepStats
from engine.server.http.errors import ApiError, bad_request, unavailable
from engine.server.link import wire
from engine.server.link.channel import Frames, framed
from engine.server.link.engine_process import Ends, Load, load_worker, run_engine
from engine.server.link.mailbox import Mailbox, OpenRequest
from engine.server.link.other_cores import OtherCores

RETRY_AFTER_S = 5
EXIT_TIMEOUT_S = 3.0


class EngineClient:
    """Talk to one engine process from one asyncio loop.

    `state` is "loading", "ready", "failed" or "stopped"; `stage` describes the progress or the
    failure. `on_ready(kv)`, `on_failure(message)` and `on_step(stats)` are called on the loop.
    """

    def __init__(
        self,
        config: EngineConfig,
        on_ready: Callable[[KVShape], None],
        on_failure: Callable[[str], None],
        on_step: Callable[[StepStats], None],
        load: Load = load_worker,
    ):
        self.config = config
        self.state = "loading"
        self.stage = "starting the engine process"
        self.kv: KVShape | None = None
        self.stats = StepStats()
        self.requests: dict[str, OpenRequest] = {}
        self._on_ready, self._on_failure, self._on_step = on_ready, on_failure, on_step
        self._load = load
        self._num_unbooked = 0
        self._end, engines_end = socket.socketpair()
        self.record_end, engines_record_end = socket.socketpair()  # receives the record's events
        self._engines_ends = Ends(engines_end, engines_record_end)
        self._channel: asyncio.Transport | None = None
        self._connection_lost = False
        self._cores = OtherCores()
        self._process: multiprocessing.process.BaseProcess | None = None

    # ------------------------------------------------------------------------------ life

    async def start(self) -> None:
        """Start the engine process. Call on the main thread: the process ends with its thread."""
        self._loop = asyncio.get_running_loop()
        self._channel, _ = await self._loop.create_unix_connection(
            lambda: _News(self), sock=self._end
        )
        # Spawn: a fresh interpreter, with none of this process's threads, locks or CUDA state.
        self._process = multiprocessing.get_context("spawn").Process(
            target=run_engine, args=(self.config, self._engines_ends, self._load), name="engine"
        )
        self._process.start()
        for end in self._engines_ends:
            end.close()  # the engine process has its own copy now, and closes it at its end
        self._loop.add_reader(self._process.sentinel, self._process_ended)

    def abort_all(self, why: str) -> None:
        """Fail every open request: its caller gets a 503 that says why."""
        for request_id in self.requests:
            self._send(wire.Abort(request_id, why))
        self._fail_requests(unavailable(why, RETRY_AFTER_S))

    async def stop(self) -> None:
        """End the engine process: ask first, then kill it."""
        self.state = "stopped" if self.state != "failed" else self.state
        self.abort_all("The server is shutting down.")
        process = self._process
        if process is not None:
            self._loop.remove_reader(process.sentinel)
            self._send(wire.Stop())
            deadline = self._loop.time() + EXIT_TIMEOUT_S
            while process.is_alive() and self._loop.time() < deadline:
                await asyncio.sleep(0.02)
            if process.is_alive():
                process.kill()
            process.join()
        if self._channel is not None:
            self._channel.close()
        self._cores.come_back()

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    # ------------------------------------------------------------------------------ requests

    @property
    def num_waiting(self) -> int:
        """Return how many requests wait, including those on their way to the core."""
        return self.stats.num_waiting + self._num_unbooked

    def check_room(self, num_requests: int) -> None:
        """Raise a 503 `ApiError` when the queue has no room for this many more."""
        limit = self.config.max_num_queued_reqs
        if self.num_waiting + num_requests > limit:
            raise unavailable(
                f"{self.num_waiting} requests wait already, and at most {limit} may. Try later.",
                RETRY_AFTER_S,
            )

    def add(self, request: CoreRequest, mailbox: Mailbox) -> OpenRequest:
        """Send a request; its news go to `mailbox`. Await its `booked`: the core may still refuse
        it.

        Raises `ApiError`: 503 when there is no engine, 400 when the id is in use.
        """
        if self.state != "ready":
            raise unavailable(self.stage, RETRY_AFTER_S)
        if request.request_id in self.requests:
            raise bad_request(f"request_id {request.request_id!r} is in use.", "request_id")
        entry = self.requests[request.request_id] = OpenRequest(request, mailbox)
        self._num_unbooked += 1
        self._send(wire.Add(request))
        return entry

    def abort(self, request_id: str, why: str) -> None:
        """Abort a request that nobody waits for. Does nothing if it has ended."""
        entry = self.requests.pop(request_id, None)
        if entry is None:
            return
        if not entry.booked.done():
            self._num_unbooked -= 1
            entry.booked.cancel()
        if entry.unfinished:
            self._send(wire.Abort(request_id, why))

    def finish(self, request_id: str, index: int, stop: str) -> None:
        """End one sequence: its text is complete, because `stop` was found in it."""
        entry = self.requests.get(request_id)
        if entry is not None and index in entry.unfinished:
            entry.unfinished.discard(index)
            self._send(wire.Finish(request_id, index, stop))
            self._forget_if_finished(entry)

    # ------------------------------------------------------------------------------ news

    def _take(self, news: wire.News) -> None:
        if self.state not in ("loading", "ready"):
            return
        if isinstance(news, wire.Step):
            self._take_step(news)
        elif isinstance(news, wire.Booked):
            self._take_booked(news)
        elif isinstance(news, wire.Loading):
            self.stage = news.stage
        elif isinstance(news, wire.Ready):
            self.state, self.stage, self.kv = "ready", "ready", news.kv
            self._cores.leave(news.own_cpus)
            self._on_ready(news.kv)
        else:
            self.fail(news.message)

    def _take_step(self, news: wire.Step) -> None:
        for output in news.outputs:
            entry = self.requests.get(output.request_id)
            if entry is not None:
                entry.deliver(output)
                if output.finish_reason is not None:
                    self._forget_if_finished(entry)
        self.stats = news.stats
        self._on_step(news.stats)

    def _take_booked(self, news: wire.Booked) -> None:
        self.stats.num_waiting = news.num_waiting
        for request_id in news.accepted:
            entry = self.requests.get(request_id)
            if entry is not None and not entry.booked.done():
                self._num_unbooked -= 1
                entry.booked.set_result(None)
        for refusal in news.refused:
            entry = self.requests.pop(refusal.request_id, None)
            if entry is not None and not entry.booked.done():
                self._num_unbooked -= 1
                entry.fail(bad_request(refusal.message, refusal.param))

    def _forget_if_finished(self, entry: OpenRequest) -> None:
        if not entry.unfinished:
            self.requests.pop(entry.id, None)

    def _send(self, order: wire.Order) -> None:
        # What the engine hasn't read yet waits here without limit, so this never blocks.
        if self._channel is not None:
            self._channel.write(framed(wire.encode(order)))

    # ------------------------------------------------------------------------------ failure

    def _disconnected(self) -> None:
        """Handle the end of the connection; everything the engine sent has been read."""
        self._channel = None
        self._connection_lost = True
        self._say_how_it_ended()

    def _process_ended(self) -> None:
        assert self._process is not None
        self._loop.remove_reader(self._process.sentinel)
        self._process.join()
        self._say_how_it_ended()

    def _say_how_it_ended(self) -> None:
        process = self._process
        if process is None or process.exitcode is None or not self._connection_lost:
            return  # the other of the two calls follows immediately
        code = process.exitcode
        how = (
            f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        )
        self.fail(f"The engine process {how}.")

    def fail(self, message: str) -> None:
        """Fail every open request, because the engine is gone. Only the first reason counts."""
        if self.state not in ("loading", "ready"):
            return
        self.state, self.stage = "failed", message
        logger.error("The engine failed: {}", message)
        self._fail_requests(ApiError(500, f"The engine failed: {message}"))
        self._on_failure(message)

    def _fail_requests(self, error: ApiError) -> None:
        for entry in list(self.requests.values()):
            entry.fail(error)
        self.requests.clear()
        self._num_unbooked = 0


class _News(asyncio.Protocol):
    """Pass the engine's messages to its client."""

    def __init__(self, client: EngineClient):
        self.client = client
        self._frames = Frames()

    def data_received(self, data: bytes) -> None:
        for message in self._frames.feed(data):
            self.client._take(wire.decode_news(message))

    def connection_lost(self, exc: Exception | None) -> None:
        self.client._disconnected()
