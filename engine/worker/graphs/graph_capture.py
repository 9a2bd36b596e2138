"""Capturing a step as a CUDA graph, and what the record says of it.

What the Python side of a launch decides (grids, splits) is decided at capture. A graph reads its
inputs from the same memory each time, so they are copied there before a replay.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from engine.kernels.launch import recording
from engine.trace.events import Event, GraphCaptured, KernelLaunched
from engine.trace.recorder import Recorder

Outputs = tuple[torch.Tensor, ...]


class Graph(NamedTuple):
    """A captured step."""

    replay: Callable[[], None]
    outputs: Outputs  # overwritten by each replay
    captured_seq: int


class GraphCapture:
    """Captures steps that are never replayed at the same time: what one makes on its way lies in
    memory that the others use too. Capture the largest first."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.pool: Any = None  # of memory; the first graph makes it

    def capture(self, forward: Callable[[], Outputs], rows: int, tokens: int = 0) -> Graph:
        """A graph of `forward`, and its event. The kernels must have run once: they compile at
        first use, which can't be captured. At level full the launches are recorded before it, once:
        a replay points at them. rows, tokens: as `GraphCaptured` says."""
        started = time.perf_counter()
        launches = Recorder("full")
        found: list[Event] = []
        launches.subscribe(found.extend)
        with recording(launches):
            replay, outputs = self._record(forward)
        launches.close()
        kernels = [event for event in found if isinstance(event, KernelLaunched)]
        for event in kernels:
            self.recorder.record(event)
        captured = GraphCaptured(
            batch_size=rows,
            num_tokens=tokens,
            num_kernels=len(kernels),
            duration_ms=(time.perf_counter() - started) * 1e3,
        )
        self.recorder.record(captured)
        return Graph(replay, outputs, self.recorder.number(captured))

    def _record(self, forward: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
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
