"""Run the loop of the engine process: take orders, compute a step, send its tokens.

Without work it sleeps until an order arrives.
"""

from __future__ import annotations

import contextlib
import queue
import select
import socket
from collections.abc import Callable
from functools import partial

from engine.core.admission import RequestError
from engine.core.engine_core import EngineCore
from engine.core.grammar_gate import GrammarGate
from engine.core.messages import CoreOutput
from engine.server.link import wire
from engine.server.link.channel import Channel


class Bookings:
    """Gather what became of one server's requests, until it is told."""

    def __init__(self) -> None:
        self._booked = wire.Booked([], [], 0)

    def settled(self, number: int, error: Exception | None) -> None:
        """Note what became of the request of this order."""
        if error is None:
            self._booked.accepted.append(number)
        elif isinstance(error, RequestError):
            self.refused(wire.Refusal(number, error.param, str(error)))
        else:
            raise error

    def refused(self, refusal: wire.Refusal) -> None:
        self._booked.refused.append(refusal)

    def take(self, num_waiting: int) -> wire.Booked | None:
        """Return what isn't told yet, None if there is nothing."""
        booked = self._booked
        if not booked.accepted and not booked.refused:
            return None
        self._booked = wire.Booked([], [], 0)
        booked.num_waiting = num_waiting
        return booked


class EngineLoop:
    """Take one server's orders and compute steps."""

    def __init__(self, core: EngineCore, server: Channel[wire.Order]):
        self.core = core
        self.server = server
        self.stopped = False
        self._gate = GrammarGate(core, self._later)
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._woken: tuple[socket.socket, socket.socket] | None = None  # of other threads' calls
        self._bookings = Bookings()
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
            self._sleep()
            wait = False
        orders = self.server.receive(wait)
        if orders is None:
            self.stopped = True  # the server is gone
            return False
        for order in orders:
            if isinstance(order, wire.Add):
                self._gate.add(order.request, partial(self._bookings.settled, order.number))
            else:
                self._carry_out(order)
        self._call()
        # All orders are carried out: now the server is told what became of them.
        booked = self._bookings.take(self.core.num_waiting)
        if booked is not None:
            self.server.send(wire.encode(booked))
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

    def _later(self, call: Callable[[], None]) -> None:
        """Let the loop call `call`, and wake it; from any thread."""
        self._calls.put(call)
        if self._woken is not None:
            # A loop that always has work reads no bytes. Where there is no room, some wait already.
            with contextlib.suppress(BlockingIOError):
                self._woken[1].send(b"\0", socket.MSG_DONTWAIT)

    def _sleep(self) -> None:
        """Sleep until an order arrives or another thread calls."""
        if self._woken is None:
            self._woken = socket.socketpair()
        woken = self._woken[0]
        while self._calls.empty():  # a byte may be of a call that was made long ago
            came = self._wait(woken.fileno())
            if woken.fileno() in came:
                woken.recv(2**12)
            if came != {woken.fileno()}:
                return

    def _wait(self, woken: int) -> set[int]:
        """Wait until an order arrives or `woken` is readable; return the descriptors of both."""
        return set(select.select([self.server.fileno(), woken], [], [])[0])

    def _tell_step(self, outputs: list[CoreOutput]) -> None:
        self.server.send(wire.encode(wire.Step(outputs, self.core.stats())))
