"""Start the engine process, send it requests, and distribute their news: the server's side.

    entries = client.claim(ids, mailbox) · client.send(entry, request) · await entry.until_booked()
    await mailbox.take(): all that came since the last call
    client.release(entry, why) · client.finish(entry, index, stop) · client.stats · client.state

A watchdog waits for the engine process itself: when it ends, every open request fails immediately,
and when it hangs, after `--engine-timeout` (`pulse`).
"""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from loguru import logger

from engine.config import EngineConfig
from engine.core.messages import CoreRequest, GrammarTokenizer, KVShape, StepStats
from engine.server.http.errors import ApiError, bad_request, unavailable
from engine.server.link import wire
from engine.server.link.channel import Frames, framed
from engine.server.link.engine_start import EngineStart, Load
from engine.server.link.mailbox import Mailbox, Reader
from engine.server.link.open_requests import OpenRequest, OpenRequests
from engine.server.link.other_cores import OtherCores
from engine.server.link.pulse import Pulse, cpu_seconds

RETRY_AFTER_S = 5
EXIT_TIMEOUT_S = 3.0
AT_ONCE = 64  # readers that get their news before other work of the event loop has a turn


class EngineEnd(NamedTuple):
    """Hold a further server process's way to the engine that the first one has started."""

    end: socket.socket
    pid: int  # of the engine process


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
        load: Load | None = None,
        shared: EngineEnd | None = None,
        engine: EngineStart | None = None,
    ):
        """Take the `shared` engine of another server process, or `engine`; None: start one.

        load: what the one that is started calls for its executor; None: the real one.
        """
        self.config = config
        self.state = "loading"
        self.stage = "starting the engine process"
        self.kv: KVShape | None = None
        self.stats = StepStats()
        self.requests = OpenRequests()
        self._on_ready, self._on_failure, self._on_step = on_ready, on_failure, on_step
        self._load = load
        self._shared = shared
        self.engine: EngineStart | None = None  # None: another server process has it
        if shared is None:
            self.engine = engine or EngineStart(config.api_server_count)
            self._end = self.engine.end
        else:
            self._end = shared.end
        self._channel: asyncio.Transport | None = None
        self._connection_lost = False
        self._cores = OtherCores()
        self._pulse = Pulse(config.engine_timeout, lambda: cpu_seconds(self.pid or 0))
        self._heard = False  # since the last tick of the pulse
        self.grammar_tokenizer: Callable[[], GrammarTokenizer] | None = None
        self._told_tokenizer = False
        self._given_up = ""  # why no requests are taken any more
        self._unanswered_order = False  # one was sent, and nothing has come since
        self._fresh: dict[Reader, None] = {}  # those with news that aren't handed over yet

    # ------------------------------------------------------------------------------ life

    async def start(self) -> None:
        """Talk to the engine process, and start it if it isn't.

        Call on the main thread: the process ends with its thread.
        """
        self._loop = asyncio.get_running_loop()
        self._channel, _ = await self._loop.create_unix_connection(
            lambda: _News(self), sock=self._end
        )
        if self.engine is not None:
            if self.engine.sentinel is None:
                self.engine.run(self.config, self._load)
            assert self.engine.sentinel is not None
            self._loop.add_reader(self.engine.sentinel, self._process_ended)

    def abort_all(self, why: str) -> None:
        """Fail every open request, and take no new ones: their callers get a 503 that says why."""
        self._given_up = why
        for entry in self.requests:
            if entry.in_core:
                self._send(wire.Abort(entry.id, why))
        self._fail_requests(unavailable(why, RETRY_AFTER_S))

    async def stop(self) -> None:
        """End the engine process: ask first, then kill it; at once if it still loads."""
        reads_orders = self.state != "loading"
        self.state = "stopped" if self.state != "failed" else self.state
        self.abort_all("The server is shutting down.")
        engine = self.engine
        if engine is not None and engine.sentinel is not None:
            self._loop.remove_reader(engine.sentinel)
            self._send(wire.Stop())
            deadline = self._loop.time() + (EXIT_TIMEOUT_S if reads_orders else 0)
            while engine.is_alive and self._loop.time() < deadline:
                await asyncio.sleep(0.02)
            engine.close()
        if self._channel is not None:
            self._channel.close()
        self._cores.come_back()

    @property
    def pid(self) -> int | None:
        """Return the engine process's id."""
        if self._shared is not None:
            return self._shared.pid
        return None if self.engine is None else self.engine.pid

    # ------------------------------------------------------------------------------ requests

    @property
    def num_waiting(self) -> int:
        """Return how many requests wait, including those on their way to the core."""
        return self.stats.num_waiting + self.requests.num_unbooked

    def claim(self, request_ids: Sequence[str], mailbox: Mailbox) -> list[OpenRequest]:
        """Claim these ids, and places in the queue, all or none.

        Their news go to `mailbox`. Release each entry at its end. Raises `ApiError` 503 when there
        is no engine or no room, and `IdInUse`.
        """
        if self.state != "ready" or self._given_up:
            raise unavailable(self._given_up or self.stage, RETRY_AFTER_S)
        limit = self.config.max_num_queued_reqs  # the engine of several servers keeps it itself
        if self.config.api_server_count == 1 and self.num_waiting + len(request_ids) > limit:
            raise unavailable(
                f"{self.num_waiting} requests wait already, and at most {limit} may. Try later.",
                RETRY_AFTER_S,
            )
        return self.requests.claim(request_ids, mailbox)

    def send(self, entry: OpenRequest, request: CoreRequest) -> None:
        """Send the request of a claimed entry. Await `until_booked`: the core may still refuse it.

        Raises `ApiError`: 400 when the request can't be encoded, and its failure when it is open
        no more.
        """
        if entry not in self.requests:
            entry.mailbox.check()
            raise unavailable("The request was given up.", RETRY_AFTER_S)
        try:  # before anything is booked
            order = wire.encode(wire.Add(entry.number, request))
        except (OverflowError, UnicodeError) as error:
            raise bad_request(f"The request can't be sent to the engine: {error}.") from None
        if request.params.grammar is not None and not self._told_tokenizer:
            assert self.grammar_tokenizer is not None
            self._send(wire.TellTokenizer(self.grammar_tokenizer()))
            self._told_tokenizer = True
        entry.num_sequences = request.params.n
        self._write(order)

    def release(self, entry: OpenRequest, why: str) -> None:
        """Release a request that nobody waits for; abort it in the core if it may be there."""
        if self.requests.release(entry) and entry.in_core:
            self._send(wire.Abort(entry.id, why))

    def finish(self, entry: OpenRequest, index: int, stop: str) -> None:
        """End one sequence: its text is complete, because `stop` was found in it."""
        if entry in self.requests and index in entry.unfinished:
            self._send(wire.Finish(entry.id, index, stop))
            entry.unfinished -= {index}
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
            self._watch(self._loop.time())  # only now: loading may take any time
            self._on_ready(news.kv)
        else:
            self.fail(news.message)

    def _take_step(self, news: wire.Step) -> None:
        get, fresh = self.requests.get, self._fresh
        for output in news.outputs:
            entry = get(output.request_id)
            # What comes before it is booked is of an earlier request with the same id.
            if entry is None or output.index not in entry.unfinished:
                continue
            reader = entry.reader
            reader.put(output)
            fresh[reader] = None
            if output.finish_reason is not None:
                entry.unfinished -= {output.index}
                self._forget_if_finished(entry)
        self.stats = news.stats
        self._on_step(news.stats)

    def _hand_over(self) -> None:
        """Give each reader its news, all that came together at once; some readers a turn."""
        fresh = list(self._fresh)
        self._fresh.clear()
        if len(fresh) > AT_ONCE:  # new requests and other connections get a turn between
            self._fresh.update(dict.fromkeys(fresh[AT_ONCE:]))
            self._loop.call_soon(self._hand_over)
        now = time.monotonic()
        for reader in fresh[:AT_ONCE]:
            reader.hand_over(now)

    def _take_booked(self, news: wire.Booked) -> None:
        self.stats.num_waiting = news.num_waiting
        for number in news.accepted:
            self.requests.book(number)
        for refusal in news.refused:
            entry = self.requests.refused(refusal.number)
            if entry is not None:
                entry.mailbox.fail(
                    unavailable(refusal.message, RETRY_AFTER_S)
                    if refusal.is_busy
                    else bad_request(refusal.message, refusal.param)
                )

    def _forget_if_finished(self, entry: OpenRequest) -> None:
        if not entry.unfinished:
            self.requests.release(entry)

    def _send(self, order: wire.Order) -> None:
        self._write(wire.encode(order))

    def _write(self, order: bytes) -> None:
        # What the engine hasn't read yet waits here without limit, so this never blocks.
        if self._channel is not None:
            self._channel.write(framed(order))
            self._unanswered_order = True

    # ------------------------------------------------------------------------------ failure

    def _disconnected(self) -> None:
        """Handle the end of the connection; everything the engine sent has been read."""
        self._channel = None
        self._connection_lost = True
        self._say_how_it_ended()

    def _process_ended(self) -> None:
        assert self.engine is not None and self.engine.sentinel is not None
        self._loop.remove_reader(self.engine.sentinel)
        self.engine.wait()
        self._say_how_it_ended()

    def _say_how_it_ended(self) -> None:
        if self.engine is None:
            self.fail("The engine process ended.")
            return
        code = self.engine.exit_code
        if code is None or not self._connection_lost:
            return  # the other of the two calls follows immediately
        how = (
            f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        )
        self.fail(f"The engine process {how}.")

    @property
    def silent_s(self) -> float:
        """Return for how long the engine has owed news."""
        return self._pulse.silent_s

    @property
    def looks_hung(self) -> bool:
        """Return whether the engine is shown as stalled; see `Pulse`."""
        return self.state == "ready" and self._pulse.looks_hung

    def _watch(self, last_s: float) -> None:
        """Fail if the engine hangs; do this again at the next tick."""
        if self.state != "ready":
            return
        now_s = self._loop.time()
        owes = self._unanswered_order or any(entry.in_core for entry in self.requests)
        why = self._pulse.tick(now_s - last_s, self._heard, owes)
        self._heard = False
        if why and self._shared is None:  # the first server process ends all
            self.fail(f"The engine process hangs: {why}.")
        else:
            self._loop.call_later(self._pulse.tick_s, self._watch, now_s)

    def fail(self, message: str) -> None:
        """Fail every open request, because the engine is gone. Only the first reason counts."""
        if self.state not in ("loading", "ready"):
            return
        self.state, self.stage = "failed", message
        logger.error("The engine failed: {}", message)
        self._fail_requests(ApiError(500, f"The engine failed: {message}"))
        self._on_failure(message)

    def _fail_requests(self, error: ApiError) -> None:
        for entry in self.requests:
            self.requests.release(entry)
            entry.mailbox.fail(error)


class _News(asyncio.Protocol):
    """Pass the engine's messages to its client."""

    def __init__(self, client: EngineClient):
        self.client = client
        self._frames = Frames()

    def data_received(self, data: bytes) -> None:
        self.client._heard, self.client._unanswered_order = True, False
        for message in self._frames.feed(data):
            self.client._take(wire.decode_news(message))
        self.client._hand_over()

    def connection_lost(self, exc: Exception | None) -> None:
        self.client._disconnected()
