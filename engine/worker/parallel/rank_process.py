"""Run a rank other than 0: a process that computes on its shares what rank 0 tells it.

Its arguments are CONNECTION MEMORY SIZE PARENT: file numbers of a connection to rank 0 and of what
ranks join by, both inherited, the number of ranks, and rank 0's process id. It ends when rank 0
closes the connection, or ends.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch

from engine.child_process import end_with_parent
from engine.config import EngineConfig
from engine.models.loader import load_model
from engine.one_line import one_line
from engine.trace.recorder import Recorder
from engine.worker import host
from engine.worker.graphs.step_graphs import GraphShape, StepGraphs
from engine.worker.memory.kv_cache import KVCache
from engine.worker.parallel.rank_messages import (
    Capture,
    Compute,
    Loaded,
    Logits,
    MakePages,
    Measure,
    Measured,
    Meet,
    Move,
    RankFailed,
    Start,
    Tried,
    receive,
    send,
)
from engine.worker.parallel.shares_held import share_held
from engine.worker.platforms import platform_for
from engine.worker.platforms.platform import Place, Trial
from engine.worker.transfers import to_device


class RankWorker:
    """Hold one rank's shares, and carry out messages."""

    def __init__(self, config: EngineConfig, place: Place, connection: Connection) -> None:
        self.config = config
        self.device = host.pick_device(config.device, place.rank)
        self.platform = platform_for(self.device)
        self._connection = connection
        self._quiet = Recorder("off")  # rank 0 records
        self.platform.prepare(config, self._quiet)
        self.ranks = self.platform.ranks(place)
        self.model = load_model(config, self.device, ranks=self.ranks)
        self.platform.loaded()
        self.graphs: StepGraphs | None = None
        self._steps = 0

    def loaded(self, duration_s: float) -> Loaded:
        return Loaded(share_held(self.model, duration_s))

    def carry_out(self, last: type | None = None) -> None:
        """Carry out messages until one of type `last`, or until the connection ends.

        Raises `EOFError` or `OSError` when it does.
        """
        message: Any = None
        while last is None or not isinstance(message, last):
            message = receive(self._connection)
            match message:
                case Compute() as step:
                    self.compute(step)
                case Logits(places):
                    hidden = self.hidden
                    if places is not None:
                        hidden = hidden[to_device(places, self.device)]
                    self.model.compute_logits(hidden)
                case Move() as blocks:
                    self.move(blocks)
                case MakePages() as wanted:
                    self.make_pages(wanted)
                case Capture():
                    self.graphs = self.platform.graphs(self._graph_shape(), self._quiet)
                case Measure(captured):
                    send(self._connection, self.measure(captured))
                case Meet():
                    self.ranks.meet()

    def measure(self, captured: bool) -> Measured:
        """Measure what rank 0 measures, at the same time: the largest step and the graphs."""
        share = self.config.gpu_memory_utilization
        return Measured(*self.platform.kv_memory(share, partial(self._trial, captured)))

    @contextlib.contextmanager
    def _trial(self, captured: bool) -> Iterator[Trial]:
        self.carry_out(MakePages)
        yield Trial(
            compute=lambda: self.carry_out(Tried),
            draw_bytes=0,  # rank 0 draws
            graph_shape=self._graph_shape() if captured else None,
        )
        del self.cache, self.hidden

    def make_pages(self, wanted: MakePages) -> None:
        self.cache = KVCache(
            self.model.kv_spec,
            wanted.num_blocks,
            wanted.num_host_blocks,
            self.config.block_size,
            wanted.dtype,
            self.device,
        )
        self.graphs = None
        self._table_width = wanted.table_width

    def move(self, blocks: Move) -> None:
        self.cache.swap_out(blocks.swap_out)
        self.cache.swap_in(blocks.swap_in)
        self.cache.copy(blocks.copies)

    def compute(self, step: Compute) -> None:
        self._steps += 1
        inputs = step.inputs(self._steps)
        self.cache.settle()
        if step.taped:
            assert self.graphs is not None, "rank 0 captures at the same time"
            self.hidden, _, _ = self.graphs.run(inputs, None)
            return
        batch = inputs.attention(self.device)
        ids = inputs.ids(self.device)
        self.hidden = self.model(ids, batch.positions, self.cache.layers, batch)

    def _graph_shape(self) -> GraphShape:
        tokens = self.config.max_num_batched_tokens
        return GraphShape(
            model=self.model,
            caches=self.cache.layers,
            max_rows=self.config.max_step_rows,
            table_width=self._table_width,
            block_size=self.config.block_size,
            budget=tokens or self.platform.step_tokens,
        )


@torch.inference_mode()
def serve(connection: Connection, file: int, size: int) -> None:
    """Load what the first message says, then carry out messages until the connection ends.

    Raises `EOFError` or `OSError` when it does.
    """
    started = time.monotonic()
    start: Start = receive(connection)
    place = Place(file, start.rank, size, [connection.fileno()])
    worker = RankWorker(start.config, place, connection)
    send(connection, worker.loaded(time.monotonic() - started))
    worker.carry_out()


def end_with(connection: Connection) -> None:
    """Wait until the other end of a connection is closed, and end this process, busy or not."""
    ended = select.poll()
    ended.register(connection.fileno(), 0)  # a closed end is always reported
    ended.poll()
    os._exit(0)


def main() -> None:
    """Serve until rank 0 is gone; tell it of a failure."""
    end_with_parent(int(sys.argv[4]))
    # A terminal signals the whole group: rank 0 decides when the ranks end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection = Connection(int(sys.argv[1]))
    threading.Thread(target=end_with, args=(connection,), daemon=True).start()
    code = 1
    try:
        serve(connection, int(sys.argv[2]), int(sys.argv[3]))
    except (EOFError, ConnectionError):
        code = 0
    except Exception as error:
        with contextlib.suppress(OSError):
            send(connection, RankFailed(one_line(error) or type(error).__name__))
    os._exit(code)  # at once: nothing is left to be written, and to tear torch down takes a second


if __name__ == "__main__":
    main()
