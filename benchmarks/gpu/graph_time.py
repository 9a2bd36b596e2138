"""Time a short call on the device, replayed from a CUDA graph as the engine does.

So a slow host's launches aren't counted.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.gpu.limits import seconds

CALLS = 4  # in a graph


def graph_seconds(call: Callable[[], object], device: torch.device, tries: int) -> float:
    """Return the seconds of one call.

    The median of `tries` replays of a graph of CALLS calls, divided by CALLS; on a CPU, the median
    of `tries` plain calls. The call must not wait for the device.
    """
    if device.type != "cuda":
        return seconds(call, device, tries)
    call()  # compiles, and fills `scratch` for later calls: neither can be captured
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            call()
    return seconds(graph.replay, device, tries) / CALLS
