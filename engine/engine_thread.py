"""Run the loop of an engine on a thread of this process: orders in, news out.

It owns the core: nothing else touches the core while the thread runs. All news of a step
go to the event loop that asked, in one call.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import queue
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from engine.core.engine_core import EngineCore
from engine.core.grammar_gate import GrammarGate
from engine.core.messages import CoreOutput, CoreRequest, GrammarTokenizer
from engine.counts import Counts


class News(NamedTuple):
    """Hold what a step brought for one request."""

    output: CoreOutput
    at_ns: int  # time.monotonic_ns of the step


@dataclass(eq=False)
class NewsQueue:
    """Receive the news of one request. Use it only on its event loop."""

    loop: asyncio.AbstractEventLoop
    news: list[News] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    failure: BaseException | None = None  # why no more news will come

    def put(self, news: list[News], failure: BaseException | None = None) -> None:
        self.news += news
        self.failure = self.failure or failure
        self.changed.set()

    async def take(self) -> list[News]:
        """Return all news since the last call; wait for the first. Raises the failure."""
        while not self.news:
            if self.failure is not None:
                raise self.failure
            self.changed.clear()
            await self.changed.wait()
        taken, self.news = self.news, []
        return taken


class EngineThread:
    """Run the engine that `load` makes, in the thread where it is loaded.

    bound: held while the thread runs. counts: gets every step.
    """

    def __init__(
        self,
        load: Callable[[], tuple[EngineCore, AbstractContextManager[None]]],
        counts: Counts,
    ):
        """Wait until the engine is loaded. Raises what `load` raises."""
        self._load = load
        self._counts = counts
        self._orders: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._open: dict[str, NewsQueue] = {}  # of the thread: by request id
        self._ended = ""  # why the thread takes no more orders
        self._lock = threading.Lock()  # guards the end: no order may arrive after it unnoticed
        self._loaded = threading.Event()
        self._load_error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()
        self._loaded.wait()
        if self._load_error is not None:
            self._thread.join()
            raise self._load_error

    # ------------------------------------------------------------------------------ from outside

    def add(self, request: CoreRequest, news_queue: NewsQueue) -> None:
        """Serve a request; a refusal comes as the failure of its queue.

        Raises `RuntimeError` after the thread's end.
        """
        self._order(lambda: self._add(request, news_queue))

    def set_grammar_tokenizer(self, source: GrammarTokenizer) -> None:
        """Say which tokens there are, before a request that has a grammar."""
        self._order(lambda: self._gate.set_tokenizer(source))

    def finish(self, request_id: str, index: int, stop_reason: str) -> None:
        """End one sequence of a request: a stop string was found in its text."""
        self._order(lambda: self.core.finish(request_id, index, stop_reason))

    def release(self, request_id: str, news_queue: NewsQueue, why: str) -> None:
        """Release a request, however it ended; what still runs of it is aborted."""
        with contextlib.suppress(RuntimeError):  # the thread has ended, and released all
            self._order(lambda: self._release(request_id, news_queue, why))

    async def ask(self, question: Callable[[EngineCore], Any]) -> Any:
        """Return the answer to a question that only the thread can ask.

        Raises `RuntimeError` after its end.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()

        def ask() -> None:
            try:
                settle = functools.partial(answer.set_result, question(self.core))
            except Exception as error:
                settle = functools.partial(answer.set_exception, error)
            _tell(loop, lambda: None if answer.done() else settle())

        self._order(ask)
        return await answer

    def stop(self, why: str) -> None:
        """End the thread after the current step; every open request fails with `why`."""
        with contextlib.suppress(RuntimeError):
            self._order(lambda: self._end(why))
        self._thread.join()

    def _order(self, order: Callable[[], None]) -> None:
        with self._lock:
            if self._ended:
                raise RuntimeError(self._ended)
            self._orders.put(order)

    # ------------------------------------------------------------------------------ on the thread

    def _run(self) -> None:
        try:
            self.core, bound = self._load()
            self._gate = GrammarGate(self.core, self._orders.put)
        except BaseException as error:
            self._load_error = error
            return
        finally:
            self._loaded.set()
        with bound:
            try:
                while not self._ended:
                    self._take_orders()
                    if not self._ended and self.core.has_work:
                        self._step()
            except BaseException as error:  # of the worker: no step can follow
                self._end(f"the engine failed: {type(error).__name__}: {error}")

    def _take_orders(self) -> None:
        """Carry out what has been ordered; without work, sleep until something is ordered."""
        if not self.core.has_work:
            self._orders.get()()
        while not self._ended and not self._orders.empty():
            self._orders.get()()

    def _step(self) -> None:
        outputs = self.core.step()
        self._counts.stepped(self.core.stats())
        now = time.monotonic_ns()
        by_loop: dict[asyncio.AbstractEventLoop, dict[NewsQueue, list[News]]] = {}
        for output in outputs:
            news_queue = self._open.get(output.request_id)
            if news_queue is not None:
                queues = by_loop.setdefault(news_queue.loop, {})
                queues.setdefault(news_queue, []).append(News(output, now))
        for loop, queues in by_loop.items():
            if not _tell(loop, functools.partial(_deliver, queues)):
                self._forget_loop(loop)

    def _add(self, request: CoreRequest, news_queue: NewsQueue) -> None:
        def settled(error: Exception | None) -> None:
            if error is not None:  # this request is refused, the others continue
                if self._open.get(request.request_id) is news_queue:
                    del self._open[request.request_id]
                _tell(news_queue.loop, functools.partial(news_queue.put, [], error))

        self._open.setdefault(request.request_id, news_queue)
        self._gate.add(request, settled)

    def _release(self, request_id: str, news_queue: NewsQueue, why: str) -> None:
        """Release only what this queue asked for: another request may have the id by now."""
        if self._open.get(request_id) is news_queue:
            del self._open[request_id]
            self._gate.abort(request_id, why)

    def _forget_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Release the requests of a closed event loop: nobody waits for their news."""
        for request_id, news_queue in list(self._open.items()):
            if news_queue.loop is loop:
                self._release(request_id, news_queue, "its event loop was closed")

    def _end(self, why: str) -> None:
        with self._lock:
            self._ended = why
        while not self._orders.empty():  # answer the orders that are left: somebody waits for each
            with contextlib.suppress(Exception):
                self._orders.get()()
        for request_id, news_queue in self._open.items():
            with contextlib.suppress(Exception):
                self._gate.abort(request_id, why)
            failure = RuntimeError(why)
            _tell(news_queue.loop, functools.partial(news_queue.put, [], failure))
        self._open.clear()


def _deliver(queues: dict[NewsQueue, list[News]]) -> None:
    for news_queue, news in queues.items():
        news_queue.put(news)


def _tell(loop: asyncio.AbstractEventLoop, call: Callable[[], object]) -> bool:
    """Call `call` on an event loop; return False if it is closed."""
    try:
        loop.call_soon_threadsafe(call)
    except RuntimeError:
        return False
    return True
