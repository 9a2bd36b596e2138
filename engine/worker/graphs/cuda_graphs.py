"""Capture and replay CUDA graphs for decode, together with `graph_capture.py`.

A decode step launches some ten short kernels a layer; started one by one from Python, they would
leave the GPU waiting. A graph is captured once for each batch size of a ladder, and a step replays
the smallest that holds its rows. The remaining rows are padding: slot −1 (nothing is written),
context 0 (nothing is read). Grids and splits are decided from the batch size and the longest
context possible, never from a step's lengths. Steps with prompts have their own graphs:
`prompt_graphs.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from engine.kernels import kernels_for
from engine.kernels.batch import LayerCache
from engine.models.causal_lm import CausalLM
from engine.trace.events import GraphReplayed
from engine.trace.recorder import Recorder
from engine.worker.graphs.decode_inputs import DecodeInputs, DecodeOutputs
from engine.worker.graphs.graph_capture import Graph, GraphCapture
from engine.worker.graphs.prompt_graphs import PromptGraphs
from engine.worker.in_flight import DrawnTokens
from engine.worker.step_inputs import StepInputs


def ladder(max_rows: int) -> list[int]:
    """Return batch sizes: fewer than 8 rows of padding below 64, 16 below 256, 64 above."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, max_rows + 64, 64)]
    return [size for size in sizes if size < max_rows] + [max_rows]


def sample_memory(
    make: Callable[[list[int]], CudaGraphs], max_rows: int, free: Callable[[], int]
) -> tuple[int, str]:
    """Measure the bytes that all graphs will take, and return how that was found.

    The two largest are captured, and the largest with prompts. Each other graph adds its outputs,
    which it keeps for itself, and as much of the driver's memory as the second one took. Everything
    else lies in the largest graphs' memory.

    make: captures the sizes that it is given. free: bytes of the device that are free now.
    """
    largest, *others = reversed(ladder(max_rows))
    before = free()
    graphs = make([largest])
    after = free()
    total, each = before - after, 0
    row_bytes = sum(tensor.nbytes for tensor in graphs.graphs[largest].outputs) // largest
    if others:
        graphs.add(others[0])
        second, outputs = after - free(), row_bytes * others[0]
        each = second - outputs if second >= outputs else second  # it had the memory
    total += row_bytes * sum(others) + each * len(others)
    count, largest_ones = len(others) + 1, "two largest" if others else "largest"
    if graphs.prompts is not None:
        before = free()
        most, *fewer = reversed(graphs.prompts.sizes)
        graphs.prompts.add(most)
        token_bytes = graphs.prompts.graphs[most].outputs[0].nbytes // most
        total += before - free() + token_bytes * sum(fewer) + each * len(fewer)
        count, largest_ones = count + len(fewer) + 1, "largest"
    counted = "the rest counted from them" if count > 1 else "captured once"
    return max(0, total), f"{count} CUDA graphs (the {largest_ones} captured, {counted})"


class CudaGraphs:
    """Capture and replay steps: `fits` says whether a step can be replayed, `run` replays it."""

    def __init__(
        self,
        model: CausalLM,
        caches: list[LayerCache],
        max_rows: int,
        table_width: int,
        block_size: int,
        device: torch.device,
        recorder: Recorder,
        budget: int = 0,
        sizes: list[int] | None = None,
    ) -> None:
        """Capture every size, by default the whole ladder and all with prompts, the largest first.

        budget: tokens of the largest step with prompts; 0: such steps aren't captured.
        """
        self.model = model
        self.caches = caches
        self.recorder = recorder
        self.capture = GraphCapture(recorder)
        self.inputs = DecodeInputs(max_rows, table_width, block_size, device)
        self.graphs: dict[int, Graph] = {}
        for size in sizes or reversed(ladder(max_rows)):
            self.add(size)
        self.sizes = sorted(self.graphs)
        self.prompts: PromptGraphs | None = None
        if budget:
            self.prompts = PromptGraphs(model, caches, budget, max_rows, self.inputs, self.capture)
            if sizes is None:
                self.prompts.add_all()

    def add(self, size: int) -> None:
        """Capture one more size."""
        self.graphs[size] = self.capture.capture(lambda: self._forward(size), size)

    def fits(self, inputs: StepInputs) -> bool:
        """Return whether the step has few enough rows or, with prompts, few enough tokens."""
        if inputs.num_decode_rows == inputs.num_rows:
            return inputs.num_rows <= self.sizes[-1]
        return self.prompts is not None and self.prompts.fits(inputs)

    def run(
        self, inputs: StepInputs, drawn: DrawnTokens | None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Replay a step and return its `DecodeOutputs`; the next run overwrites them.

        With prompts it returns only the hidden states of each token. drawn: see
        `DecodeInputs.fill`.
        """
        rows = inputs.num_rows
        if inputs.num_decode_rows < rows:
            assert self.prompts is not None
            return self.prompts.run(inputs, drawn), None, None
        size = next(size for size in self.sizes if size >= rows)
        graph = self.graphs[size]
        self.inputs.fill(inputs, size, drawn)
        graph.replay()
        self.recorder.record(
            GraphReplayed(batch_size=size, num_rows=rows, captured_seq=graph.captured_seq)
        )
        hidden, logits, greatest = graph.outputs
        return hidden[:rows], logits[:rows], greatest[:rows]

    def _forward(self, size: int) -> DecodeOutputs:
        batch = self.inputs.batch(size)
        hidden = self.model(self.inputs.token_ids[:size], batch.positions, self.caches, batch)
        logits = self.model.compute_logits(hidden)
        return hidden, logits, kernels_for(logits.device).greatest(logits)
