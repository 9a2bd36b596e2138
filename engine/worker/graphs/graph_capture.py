"""Capture a step as a CUDA graph, and record it.

What Python decides for a launch (grids, splits) is decided at capture. A graph always reads its
inputs from the same memory, so they are copied there before a replay.
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
    """Hold a captured step."""

    replay: Callable[[], None]
    outputs: Outputs  # overwritten by each replay
    captured_seq: int


class GraphCapture:
    """Capture steps that are never replayed at the same time.

    They share the memory of their intermediate results. Capture the largest first.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.pool: Any = None  # memory that all graphs share; the first graph makes it

    def capture(self, forward: Callable[[], Outputs], rows: int, tokens: int = 0) -> Graph:
        """Capture `forward` as a graph, and return it with its event.

        The kernels must have run once: they compile at first use, which can't be captured. At level
        full the launches are recorded before it, once: a replay refers to them. rows, tokens: as
        `GraphCaptured` says.
        """
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
        """Return (replay, the tensors that a replay fills).

        Runs once without capture, on a side stream: what libraries set up at their first call must
        not become part of a graph.
        """
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
