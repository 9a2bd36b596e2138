"""Run a rank other than 0: a process that computes on its shares what rank 0 tells it.

Its arguments are CONNECTION MEMORY SIZE PARENT: file numbers of a connection to rank 0 and of the
shared memory, both inherited, the number of ranks, and rank 0's process id. It ends when rank 0
closes the connection, or ends.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection

import torch

from engine.child_process import end_with_parent
from engine.config import EngineConfig
from engine.kernels.cpu.rank_ops import SharedMemoryRanks, shared_bytes
from engine.kernels.ranks import Ranks
from engine.models.loader import load_model
from engine.one_line import one_line
from engine.trace.recorder import Recorder
from engine.worker import host
from engine.worker.graphs.step_graphs import GraphShape, StepGraphs
from engine.worker.memory.kv_cache import KVCache
from engine.worker.parallel.rank_messages import (
    Compute,
    Loaded,
    Logits,
    MakePages,
    Move,
    RankFailed,
    Start,
    receive,
    send,
)
from engine.worker.parallel.shares_held import share_held
from engine.worker.platforms import platform_for


class RankWorker:
    """Hold one rank's shares, and carry out messages."""

    def __init__(self, config: EngineConfig, ranks: Ranks) -> None:
        self.config = config
        self.device = host.pick_device(config.device)
        self.platform = platform_for(self.device)
        self._quiet = Recorder("off")  # rank 0 records
        self.platform.prepare(config, self._quiet)
        self.model = load_model(config, self.device, ranks=ranks)
        self.graphs: StepGraphs | None = None
        self._steps = 0

    def loaded(self, duration_s: float) -> Loaded:
        return Loaded(share_held(self.model, duration_s))

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
        if step.taped:
            if self.graphs is None:
                self.graphs = self.platform.graphs(self._graph_shape(), self._quiet)
            self.graphs.run(inputs, None)
            return
        batch = inputs.attention(self.device)
        self.model(inputs.ids(self.device), batch.positions, self.cache.layers, batch)

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
def serve(connection: Connection, memory: mmap.mmap, size: int) -> None:
    """Load what the first message says, then carry out messages until the connection ends.

    Raises `EOFError` or `OSError` when it does.
    """
    started = time.monotonic()
    start: Start = receive(connection)
    ranks = SharedMemoryRanks(memory, start.rank, size, [connection.fileno()])
    worker = RankWorker(start.config, ranks)
    send(connection, worker.loaded(time.monotonic() - started))
    while True:
        match receive(connection):
            case Compute() as step:
                worker.compute(step)
            case Logits(hidden):
                worker.model.compute_logits(hidden)
            case Move() as blocks:
                worker.move(blocks)
            case MakePages() as wanted:
                worker.make_pages(wanted)


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
    memory_file, size = int(sys.argv[2]), int(sys.argv[3])
    memory = mmap.mmap(memory_file, shared_bytes(size))
    os.close(memory_file)
    code = 1
    try:
        serve(connection, memory, size)
    except (EOFError, ConnectionError):
        code = 0
    except Exception as error:
        with contextlib.suppress(OSError):
            send(connection, RankFailed(one_line(error) or type(error).__name__))
    os._exit(code)  # at once: nothing is left to be written, and to tear torch down takes a second


if __name__ == "__main__":
    main()
