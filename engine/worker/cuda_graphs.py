"""CUDA graphs for decode: the whole life of a graph is here.

A decode step launches some ten kernels a layer, each of them short; started one by one from
Python they would leave the GPU waiting. A graph is captured once for each of a ladder of batch
sizes, and a step replays the smallest that holds its rows. The rest of its rows is padding: slot
−1 (nothing is written), context 0 (nothing is read).

A graph reads its inputs from the same memory each time, so they are copied there first. What the
Python side of a launch decides (grids, splits) is decided at capture, from the batch size and the
longest context that may come, never from a step's lengths.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from engine.kernels import kernels_for
from engine.kernels.launch import recording
from engine.layers.attention_batch import LayerCache
from engine.models.registry import CausalLM
from engine.trace.events import Event, GraphCaptured, GraphReplayed, KernelLaunched
from engine.trace.recorder import Recorder
from engine.worker.batch_rows import StepInputs
from engine.worker.decode_inputs import DecodeInputs, DecodeOutputs
from engine.worker.in_flight import DrawnTokens


class _Graph(NamedTuple):
    replay: Callable[[], None]
    outputs: DecodeOutputs  # overwritten by each replay
    captured_seq: int


def ladder(max_rows: int) -> list[int]:
    """Batch sizes: fewer than 8 rows of padding below 64, 16 below 256, 64 above."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, max_rows + 64, 64)]
    return [size for size in sizes if size < max_rows] + [max_rows]


def sample_memory(
    make: Callable[[list[int]], CudaGraphs], max_rows: int, free: Callable[[], int]
) -> tuple[int, str]:
    """(bytes that all graphs will take, how that was found). The two largest are captured; what
    each other one adds is its outputs, which it keeps for itself, and what the second one took of
    the driver's memory. All else they find in the largest one's.

    make: captures the sizes that it is given. free: bytes of the device that are free now.
    """
    largest, *others = reversed(ladder(max_rows))
    before = free()
    graphs = make([largest])
    after = free()
    first, each = before - after, 0
    row_bytes = sum(tensor.nbytes for tensor in graphs.graphs[largest].outputs) // largest
    if others:
        graphs.add(others[0])
        second, outputs = after - free(), row_bytes * others[0]
        each = second - outputs if second >= outputs else second  # they may lie in memory it had
    total = first + row_bytes * sum(others) + each * len(others)
    sampled = "the two largest captured, the rest counted from them" if others else "captured once"
    return max(0, total), f"{len(others) + 1} CUDA graphs ({sampled})"


class CudaGraphs:
    """`fits` says whether a step can be replayed, `run` replays it."""

    def __init__(
        self,
        model: CausalLM,
        caches: list[LayerCache],
        max_rows: int,
        table_width: int,
        block_size: int,
        device: torch.device,
        recorder: Recorder,
        sizes: list[int] | None = None,
    ) -> None:
        """Captures every size, by default the whole ladder, the largest first: the others live in
        its memory. The kernels must have run once (they compile at first use, which can't be
        captured)."""
        self.model = model
        self.caches = caches
        self.recorder = recorder
        self.pool: Any = None  # of memory, shared by all graphs; the first one makes it
        self.inputs = DecodeInputs(max_rows, table_width, block_size, device)
        self.graphs: dict[int, _Graph] = {}
        for size in sizes or reversed(ladder(max_rows)):
            self.add(size)
        self.sizes = sorted(self.graphs)

    def add(self, size: int) -> None:
        """Capture one more."""
        self.graphs[size] = self._capture(size)

    def fits(self, inputs: StepInputs) -> bool:
        """Every row decodes, and there are not too many."""
        return inputs.num_decode_rows == inputs.num_rows <= self.sizes[-1]

    def run(self, inputs: StepInputs, drawn: DrawnTokens | None) -> DecodeOutputs:
        """drawn: see `DecodeInputs.fill`. The next run overwrites what this one returns."""
        rows = inputs.num_rows
        size = next(size for size in self.sizes if size >= rows)
        graph = self.graphs[size]
        self.inputs.fill(inputs, size, drawn)
        graph.replay()
        self.recorder.record(
            GraphReplayed(batch_size=size, num_rows=rows, captured_seq=graph.captured_seq)
        )
        hidden, logits, greatest = graph.outputs
        return hidden[:rows], logits[:rows], greatest[:rows]

    def _capture(self, size: int) -> _Graph:
        """A graph for `size` rows, and its event. At level full the launches are recorded before
        it, once: a replay points at them."""
        started = time.perf_counter()
        launches = Recorder("full")
        found: list[Event] = []
        launches.subscribe(found.extend)
        with recording(launches):
            replay, outputs = self._record(lambda: self._forward(size))
        launches.close()
        kernels = [event for event in found if isinstance(event, KernelLaunched)]
        for event in kernels:
            self.recorder.record(event)
        captured = GraphCaptured(
            batch_size=size,
            num_kernels=len(kernels),
            duration_ms=(time.perf_counter() - started) * 1e3,
        )
        self.recorder.record(captured)
        return _Graph(replay, outputs, captured.seq)

    def _forward(self, size: int) -> DecodeOutputs:
        batch = self.inputs.batch(size)
        hidden = self.model(self.inputs.token_ids[:size], batch.positions, self.caches, batch)
        logits = self.model.compute_logits(hidden)
        return hidden, logits, kernels_for(logits.device).greatest(logits)

    def _record(
        self, forward: Callable[[], DecodeOutputs]
    ) -> tuple[Callable[[], None], DecodeOutputs]:
        """(replay, the tensors that a replay fills). Once without capture, on the side: what
        libraries set up at their first call must not fall into a graph."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            forward()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            outputs = forward()
        self.pool = self.pool or graph.pool()
        return graph.replay, outputs
