"""Run the engine process: the core and the worker, apart from HTTP and text.

Its loop takes the orders that arrived, computes one step, and sends its tokens. Without work it
sleeps until an order arrives. It ends on `Stop`, on a failure, and with its parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from loguru import logger

from engine.config import EngineConfig
from engine.core.admission import RequestError
from engine.core.engine_core import EngineCore
from engine.core.garbage_collection import quiet_collector
from engine.core.grammar_gate import GrammarGate
from engine.core.messages import CoreOutput
from engine.core.named_scheduler import named_scheduler
from engine.models.hub import find_draft, find_model
from engine.one_line import one_line
from engine.server import logs
from engine.server.link import wire
from engine.server.link.channel import Channel, Closed
from engine.trace.events import EngineFailed, RequestRefused
from engine.trace.files import unpack
from engine.trace.packing_recorder import PackingRecorder
from engine.trace.recorder import Recorder

Progress = Callable[[str], None]
Load = Callable[[EngineConfig, Recorder, Progress], Any]
"""Makes the executor, which has `.kv` (KVShape) and `.execute(plan) -> StepOutput`, and `.cores` if
its threads may be bound."""


DOING = {
    "download": "downloading",
    "convert": "converting",
    "load": "loading the weights of",
}


class Ends(NamedTuple):
    """Hold the engine process's ends of its channels."""

    orders: list[socket.socket]  # of each server process: orders come in, news go out
    record: socket.socket  # events go out


def load_worker(config: EngineConfig, recorder: Recorder, progress: Progress) -> Any:
    """Load the model and return the real executor."""

    def bytes_done(what: str, done: int, total: int) -> None:
        share = done / total if total else 1.0
        progress(f"{DOING[what]} {config.model}: {share:.0%} of {total / 1e6:,.0f} MB")

    # Before importing torch, which takes seconds: report a missing model immediately.
    find_model(config.model, config.revision, config.hf_token, bytes_done, config.download_dir)
    find_draft(config, bytes_done)
    progress("importing torch")
    # NumPy's BLAS, which nothing here uses, takes a buffer for each thread: 40 MB on two cores.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from engine.server.link.surroundings import surroundings
    from engine.worker.model_runner import ModelRunner

    recorder.record(surroundings(config))
    progress(f"loading {config.model}")
    runner = ModelRunner(config, recorder)
    runner.load(bytes_done)
    if not config.async_scheduling:
        runner.cores.hold()  # until this process ends; its loop runs on this thread
    return runner


def run_engine(config: EngineConfig, ends: Ends, load: Load = load_worker) -> None:
    """Run the process. Each failure is sent as one `Failed` message; then the exit code is 1."""
    end_with_parent()
    # A terminal or a platform signals the whole group: the server decides when the engine stops.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logs.configure(config)
    servers = [Channel(end, wire.decode_order) for end in ends.orders]
    events = Channel(ends.record, unpack)
    recorder = PackingRecorder(events.send, config.trace, text=config.trace_text == "on")
    failed = False
    try:
        scheduler = named_scheduler(
            config.scheduler_cls
        )  # before the model: a typo is told at once
        executor = load(config, recorder, Stages(servers))
        core = EngineCore(config, executor, recorder, scheduler)
        cores = getattr(executor, "cores", None)
        ready = wire.encode(wire.Ready(executor.kv, cores.own_cpus if cores else []))
        for server in servers:
            server.send(ready)
        with quiet_collector():
            loop = EngineLoop(core, servers[0]) if len(servers) == 1 else SharedLoop(core, servers)
            loop.run()
        core.close()
        if getattr(executor, "others", None) is not None:
            executor.close()
    except Closed:
        failed = True
    except Exception as error:
        failed = True
        message = what_failed(error)
        if not type(error).__module__.startswith("engine."):  # an unforeseen error
            logger.error("{}", "".join(traceback.format_exception(error)))
        recorder.record(EngineFailed(message=message))
        for server in servers:
            with contextlib.suppress(Closed):
                server.send(wire.encode(wire.Failed(message)))
    recorder.close()
    sys.exit(1 if failed else 0)


class EngineLoop:
    """Take one server's orders and compute steps."""

    def __init__(self, core: EngineCore, server: Channel[wire.Order]):
        self.core = core
        self.server = server
        self.stopped = False
        self._gate = GrammarGate(core, self._later)
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._woken: tuple[socket.socket, socket.socket] | None = None  # of other threads' calls
        self._booked = wire.Booked([], [], 0)  # not told yet
        others = getattr(core.executor, "others", None)  # processes that compute with this one
        self._watches = others is not None
        if others is not None:
            self._woken = socket.socketpair()
            others.watch(lambda: self._later(others.check))

    def run(self) -> None:
        while not self.stopped:
            took_orders = self._take_orders(wait=not self.core.has_work)
            if self.core.has_work:
                self._tell_step(self.core.step())
            elif took_orders:  # an abort may have ended the last work: report what is left
                self._tell_step([])

    def _take_orders(self, wait: bool) -> bool:
        """Carry out the orders that have arrived; return whether there were any.

        With `wait`, sleep until one arrives.
        """
        if wait and (self._gate or self._watches):
            self._sleep_until_called()
            wait = False
        orders = self.server.receive(wait)
        if orders is None:
            self.stopped = True  # the server is gone
            return False
        for order in orders:
            if isinstance(order, wire.Add):
                self._gate.add(order.request, partial(self._settled, order.number))
            else:
                self._carry_out(order)
        self._call()
        if self._booked.accepted or self._booked.refused:
            told, self._booked = self._booked, wire.Booked([], [], 0)
            told.num_waiting = self.core.num_waiting
            self._tell(told)
        return bool(orders)

    def _carry_out(self, order: wire.Order) -> None:
        """Carry out an order that needs no answer."""
        if isinstance(order, wire.TellTokenizer):
            self._gate.set_tokenizer(order.source)
        elif isinstance(order, wire.Abort):
            self._gate.abort(order.request_id, order.why)
        elif isinstance(order, wire.Finish):
            self.core.finish(order.request_id, order.index, order.stop_reason)
        else:
            self.stopped = True

    def _call(self) -> None:
        """Make the calls that other threads asked for."""
        while not self._calls.empty():
            self._calls.get()()

    def _settled(self, number: int, error: Exception | None) -> None:
        """Note what became of an order; the server is told after all orders are carried out."""
        if error is None:
            self._booked.accepted.append(number)
        elif isinstance(error, RequestError):
            self._booked.refused.append(wire.Refusal(number, error.param, str(error)))
        else:
            raise error

    def _later(self, call: Callable[[], None]) -> None:
        """Let the loop call `call`, and wake it; from any thread."""
        self._calls.put(call)
        if self._woken is not None:
            self._woken[1].send(b"\0")

    def _sleep_until_called(self) -> None:
        """Sleep until an order arrives or another thread calls."""
        if self._woken is None:
            self._woken = socket.socketpair()
        woken = self._woken[0]
        while self._calls.empty():  # a byte may be of a call that was made long ago
            servers = self._filenos()
            ready = select.select([*servers, woken.fileno()], [], [])[0]
            if woken.fileno() in ready:
                woken.recv(2**12)
            if not servers.isdisjoint(ready):
                return

    def _filenos(self) -> set[int]:
        """Return the descriptors at which orders arrive."""
        return {self.server.fileno()}

    def _tell_step(self, outputs: list[CoreOutput]) -> None:
        self._tell(wire.Step(outputs, self.core.stats()))

    def _tell(self, news: wire.News) -> None:
        self.server.send(wire.encode(news))


class SharedLoop(EngineLoop):
    """Take the orders of several servers, and answer each request to the server that sent it.

    The first server also gets the state after each step. A request's id belongs to one server
    while it is open, and only that one may end it. What a server that has ended leaves is aborted.
    """

    def __init__(self, core: EngineCore, servers: list[Channel[wire.Order]]):
        super().__init__(core, servers[0])
        self.servers = servers  # those that have not ended
        self._owners: dict[str, Channel[wire.Order]] = {}  # by request id
        self._booked_by = {server: wire.Booked([], [], 0) for server in servers}

    def _filenos(self) -> set[int]:
        return {server.fileno() for server in self.servers}

    def _take_orders(self, wait: bool) -> bool:
        if wait:
            if self._gate:
                self._sleep_until_called()
            else:
                select.select(list(self._filenos()), [], [])
        took = False
        for server in list(self.servers):
            orders = server.receive(wait=False)
            if orders is None:
                self._ended(server)
                took = True
                continue
            took = took or bool(orders)
            for order in orders:
                self._take(server, order)
        self._call()
        for server, booked in list(self._booked_by.items()):
            if booked.accepted or booked.refused:
                self._booked_by[server] = wire.Booked([], [], 0)
                booked.num_waiting = self.core.num_waiting
                self._tell_to(server, booked)
        return took

    def _take(self, server: Channel[wire.Order], order: wire.Order) -> None:
        if isinstance(order, wire.Add):
            self._add(server, order)
        elif isinstance(order, (wire.Abort, wire.Finish)):
            if self._owners.get(order.request_id) is server:
                self._carry_out(order)
                self._forget(order.request_id)
        elif not isinstance(order, wire.Stop) or server is self.server:
            self._carry_out(order)

    def _add(self, server: Channel[wire.Order], order: wire.Add) -> None:
        request_id, most = order.request.request_id, self.core.config.max_num_queued_reqs
        refusal = None
        if request_id in self._owners:
            message = f"request_id {request_id!r} is in use."
            refusal = wire.Refusal(order.number, "request_id", message)
        elif self.core.num_waiting >= most:  # no server knows how many the others have sent
            message = f"{self.core.num_waiting} requests wait already, and at most {most} may."
            refusal = wire.Refusal(order.number, None, f"{message} Try later.", is_busy=True)
        if refusal is not None:
            self.core.record(RequestRefused(request_id=request_id, why=refusal.message))
            self._booked_by[server].refused.append(refusal)
            return
        self._owners[request_id] = server

        def settled(error: Exception | None) -> None:
            self._booked = self._booked_by.get(server, self._booked)
            self._settled(order.number, error)
            if error is not None:
                self._owners.pop(request_id, None)

        self._gate.add(order.request, settled)

    def _forget(self, request_id: str) -> None:
        """Forget whose a request was, once none of its sequences is left."""
        if request_id not in self.core.books.groups and not self._gate.holds(request_id):
            self._owners.pop(request_id, None)

    def _ended(self, server: Channel[wire.Order]) -> None:
        if server is self.server:
            self.stopped = True
            return
        self.servers.remove(server)
        del self._booked_by[server]
        for request_id in [name for name, owner in self._owners.items() if owner is server]:
            self._gate.abort(request_id, "its API server process has ended")
            del self._owners[request_id]

    def _tell_step(self, outputs: list[CoreOutput]) -> None:
        stats = self.core.stats()
        by_server: dict[Channel[wire.Order], list[CoreOutput]] = {self.server: []}
        for output in outputs:
            owner = self._owners.get(output.request_id)
            if owner is not None:
                by_server.setdefault(owner, []).append(output)
                if output.finish_reason is not None:
                    self._forget(output.request_id)
        for server, its in by_server.items():
            self._tell_to(server, wire.Step(its, stats))

    def _tell_to(self, server: Channel[wire.Order], news: wire.News) -> None:
        if server is self.server:
            server.send(wire.encode(news))
            return
        with contextlib.suppress(Closed):  # the next `receive` says so
            server.send(wire.encode(news))


class Stages:
    """Report the progress of loading to the server, at most every `EVERY_S`; from any thread."""

    EVERY_S = 0.2

    def __init__(self, servers: list[Channel[wire.Order]]):
        self.servers = servers
        self._lock = threading.Lock()
        self._last_s = 0.0

    def __call__(self, stage: str) -> None:
        with self._lock:
            now = time.monotonic()
            if now - self._last_s >= self.EVERY_S:
                self._last_s = now
                for server in self.servers:
                    server.send(wire.encode(wire.Loading(stage)))


def what_failed(error: BaseException) -> str:
    """Describe an error for a person, in one line. The engine's own errors are such lines
    already."""
    text = one_line(error, 1000) or "no message"
    ours = type(error).__module__.startswith("engine.") or isinstance(error, OSError)
    return text if ours else f"{type(error).__name__}: {text}"


def end_with_parent() -> None:
    """Have the kernel kill this process when the server dies, however it dies (Linux)."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == 1 and os.getpid() != 1:
            sys.exit(1)  # the parent died before that call
