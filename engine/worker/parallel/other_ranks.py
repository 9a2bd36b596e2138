"""Tell the other ranks' processes from rank 0 what to compute, and watch them.

A rank that ends, however it ends, closes its connection. Whoever waits for its numbers on a CPU
then learns it from the kernel of the system (`ranks.cpp`), and a thread that watches the
connections says which rank it was. On GPUs the device waits, and the host looks meanwhile what that
thread has found. A rank that lives but doesn't answer is noticed after the engine's patience.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, cast

from engine.config import EngineConfig
from engine.kernels.ranks import JoinFailed, RankLost, RankSilent
from engine.trace.events import RankShare
from engine.worker.memory.kv_sizing import KVMemory
from engine.worker.parallel.rank_messages import (
    Loaded,
    Measured,
    Meet,
    RankFailed,
    Start,
    receive,
    send,
)
from engine.worker.parallel.rank_processes import TOLD_S, RankProcesses, shared_file
from engine.worker.platforms.platform import Place, Platform

AWAIT_S = 0.05
"""Seconds between two looks whether a rank that is to answer still lives."""
PATIENCE = 5
"""How many times `--engine-timeout` rank 0 waits for a rank that lives. Ranks compute as much as
each other, but one may be slow once, as when its pages come from a disk."""


class OtherRanks:
    """Hold the processes of ranks 1, 2, …: `wait_until_loaded`, then `tell` what to compute."""

    def __init__(self, config: EngineConfig, folder: Path, platform: Platform) -> None:
        """Start the processes, which begin to load the model in `folder`.

        platform: of all ranks. Raises `ConfigError` if ranks can't be joined here.
        """
        self.size = config.tensor_parallel_size
        self._patience_s = PATIENCE * config.engine_timeout
        file = shared_file(platform.bytes_to_join(self.size))
        self._processes = RankProcesses()
        self._connections = self._processes.connections
        self.shares: list[RankShare] = []  # of ranks 1, 2, …, when they are loaded
        self.lost = ""  # which rank is gone, and how it ended
        self._found = threading.Event()  # set when `lost` is
        self._ended = False  # whether it is a rank that has ended by itself
        self._answers: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        self._on_lost: Callable[[], None] = lambda: None
        try:
            for rank in range(1, self.size):
                connection = self._processes.start(file, self.size, self._patience_s)
                its = replace(config, model=str(folder), tokenizer=None)
                with contextlib.suppress(OSError):  # it has ended: `wait_until_loaded` says how
                    send(connection, Start(its, rank))
            fds = [connection.fileno() for connection in self._connections]
            self.ranks = platform.ranks(Place(file, 0, self.size, fds, self._patience_s))
        except BaseException:
            self._processes.end()
            raise
        finally:
            os.close(file)

    def wait_until_loaded(self) -> None:
        """Wait until all ranks have their weights, and begin to watch. Raises `RankLost`.

        Call it when rank 0 has its own: they load as much at the same time, so one that isn't there
        after the engine's patience hangs.
        """
        shares: dict[Connection, RankShare] = {}
        deadline = time.monotonic() + self._patience_s
        while waited_for := [one for one in self._connections if one not in shares]:
            ready = wait(waited_for, max(0.0, deadline - time.monotonic()))
            if not ready:
                rank = self._connections.index(waited_for[0]) + 1
                raise RankSilent(
                    f"rank {rank} of {self.size}, a process of the model, lives but has not loaded"
                    f" its share {self._patience_s:g} s after rank 0 had its own"
                )
            for connection in cast("list[Connection]", ready):
                try:
                    answer = receive(connection)
                except (EOFError, OSError):
                    answer = None
                if not isinstance(answer, Loaded):
                    self._lose(connection, answer)
                    raise RankLost(self.lost)
                shares[connection] = answer.share
        self.shares = [shares[connection] for connection in self._connections]
        threading.Thread(target=_watch, args=(weakref.ref(self),), daemon=True).start()

    def meet(self) -> None:
        """Have all ranks find each other. Raises `RankLost`.

        In a thread, because NCCL waits for ever for one that doesn't come.
        """
        self.tell(Meet())
        done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

        def meet() -> None:
            try:
                self.ranks.meet()
                done.put(None)
            except BaseException as error:
                done.put(error)

        threading.Thread(target=meet, name="meeting of ranks", daemon=True).start()
        error = self._await(done, "has not come to meet the others")
        if error is not None:
            raise JoinFailed(f"the ranks could not meet: {error}") from error

    def least_memory(self, own: KVMemory) -> KVMemory:
        """Return the memory for pages of the rank that has the least. Raises `RankLost`.

        All ranks have as many blocks. own: that of rank 0.
        """
        found = {0: own}
        while len(found) < self.size:
            rank, answer = self._await(self._answers, "has not said how much memory it has")
            if isinstance(answer, Measured):
                found[rank] = KVMemory(*answer)
        rank = min(found, key=lambda rank: found[rank].num_bytes)
        why = f"rank {rank} of {self.size} has the least: {found[rank].why}"
        free = min(memory.free_bytes for memory in found.values())
        return KVMemory(found[rank].num_bytes, why, free)

    def patience(self) -> Callable[[], None]:
        """Return what raises `RankLost` when the device waits for a rank in vain: call it often."""
        began_s = time.monotonic()

        def look() -> None:
            if self._found.is_set():
                raise RankLost(self.lost)
            if time.monotonic() - began_s > self._patience_s:
                raise RankSilent(
                    f"a step of {self.size} ranks has not ended after {self._patience_s:g} s: one"
                    " of them, which are processes of the model, lives but does not compute"
                )

        return look

    def tell(self, message: Any) -> None:
        """Send a message to every rank. Raises `RankLost`."""
        if self._found.is_set():
            raise RankLost(self.lost)
        for rank, connection in enumerate(self._connections, 1):
            try:
                send(connection, message)
            except BlockingIOError:
                raise RankSilent(
                    f"rank {rank} of {self.size}, a process of the model, lives but has taken no"
                    f" message for {self._patience_s:g} s"
                ) from None
            except OSError:
                self._raise()

    def watch(self, on_lost: Callable[[], None]) -> None:
        """Call `on_lost`, from another thread, when a rank is gone."""
        self._on_lost = on_lost
        if self._found.is_set():
            on_lost()

    def check(self) -> None:
        """Raise `RankLost` if a rank is gone."""
        if self._found.is_set():
            raise RankLost(self.lost)
        try:
            self.ranks.check()
        except RankSilent:
            raise
        except RankLost:
            self._raise()

    def break_off(self, error: BaseException) -> None:
        """End the other ranks after a step that an error has ended before its end.

        They may have joined more or less often than this one, so nothing later would fit: `tell`
        and `check` raise `RankLost` from now on. So does this, if a rank that is gone explains the
        error.
        """
        if isinstance(error, JoinFailed):
            self._found.wait(TOLD_S)
        explained = self._ended and isinstance(error, Exception)
        if not self._found.is_set():
            self.lost = (
                str(error)
                if isinstance(error, RankLost)
                else f"a step of a divided model was broken off by {type(error).__name__};"
                " it can't go on: make a new engine"
            )
            self._found.set()
        self.close()
        if explained and not (isinstance(error, RankLost) and str(error) == self.lost):
            raise RankLost(self.lost) from error

    def close(self) -> None:
        """End the other ranks."""
        self.ranks.stop()
        self._processes.end()

    def _await(self, answers: queue.SimpleQueue[Any], what: str) -> Any:
        """Take the next answer. Raises `RankLost`. what: what a rank that hangs hasn't done."""
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                return answers.get(timeout=AWAIT_S)
            except queue.Empty:
                if self._found.is_set():
                    raise RankLost(self.lost) from None
            if time.monotonic() > deadline:
                raise RankSilent(
                    f"one of {self.size} ranks, which are processes of the model, lives but {what}"
                    f" after {self._patience_s:g} s"
                )

    def _raise(self) -> None:
        """Raise the error of a rank that is gone, once it is known which."""
        self._found.wait(TOLD_S)
        raise RankLost(self.lost or "a process of the model has ended")

    def _lose(self, connection: Connection, answer: Any) -> None:
        """Note that the rank of a connection is gone. answer: the last that it said."""
        place = self._connections.index(connection)
        failed = isinstance(answer, RankFailed)
        how = answer.why if failed else self._processes.how_it_ended(place)
        self.lost = f"rank {place + 1} of {self.size}, a process of the model, {how}"
        self._ended = True
        self._found.set()
        self._on_lost()
        self.ranks.stop()


def _watch(ranks: weakref.ref[OtherRanks]) -> None:
    """Pass answers on until a connection ends or its rank says why it will."""
    held = ranks()
    if held is None:
        return
    connections, answers = list(held._connections), held._answers
    del held  # so that it can be collected while this thread waits
    while True:
        ready = cast(Connection, wait(connections)[0])
        try:
            answer = receive(ready)
        except (EOFError, OSError):
            answer = None
        if answer is None or isinstance(answer, RankFailed):
            break
        answers.put((connections.index(ready) + 1, answer))
    held = ranks()
    if held is not None and not held._processes.ended:
        held._lose(ready, answer)
