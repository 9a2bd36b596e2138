"""Capture and replay CUDA graphs for steps that have prompts, alone or beside decoding rows.

Such a step launches the same kernels whatever its tokens are: some ten a layer. With a small model
or few tokens the device would wait for Python, and all decoding rows would wait with it: the first
token of a short prompt took 7 to 12 ms on 16 layers beside an H200, replayed 2 to 3
(docs/archive/NOTES.md).

A graph is captured for each token count of a ladder, and a step replays the smallest that holds its
tokens. The device reads how the tokens are divided among rows: attention starts a program for every
row and every tile of queries that may come, and those without work return at once. Logits are not
in a graph, because different tokens draw in each step. Steps of long whole prompts alone are not
captured: there torch's SDPA is faster, and it must know the lengths beforehand.
"""

from __future__ import annotations

import torch

from engine.kernels import kernels_for
from engine.kernels.batch import LayerCache
from engine.models.causal_lm import CausalLM
from engine.rounding import ceil_div
from engine.trace.events import GraphReplayed
from engine.worker.graphs.decode_inputs import DecodeInputs
from engine.worker.graphs.graph_capture import Graph, GraphCapture
from engine.worker.graphs.prompt_inputs import PromptInputs
from engine.worker.in_flight import DrawnTokens
from engine.worker.step_inputs import StepInputs

LEAST = 16  # tokens of the smallest graph
MOST = 8192
"""Tokens of the largest graph. A step with more keeps the device busy for longer than Python
takes."""


def prompt_ladder(budget: int) -> list[int]:
    """Return numbers of tokens: doubling up to 256, then growing by 4/3 or 3/2.

    The last one holds the budget. budget: tokens of the largest step.
    """
    sizes, size = [], LEAST
    most = ceil_div(min(budget, MOST), LEAST) * LEAST
    while size < most:
        sizes.append(size)
        if size >= 256 and size & (size - 1) == 0:
            sizes.append(size + size // 2)
        size *= 2
    return [size for size in sizes if size < most] + [most]


class PromptGraphs:
    """Capture and replay steps: `fits` says whether a step can be replayed, `run` replays it."""

    def __init__(
        self,
        model: CausalLM,
        caches: list[LayerCache],
        budget: int,
        max_rows: int,
        decode: DecodeInputs,
        capture: GraphCapture,
    ) -> None:
        """Start without graphs. decode: its block tables are shared."""
        self.model = model
        self.caches = caches
        self.capture = capture
        self.sizes = prompt_ladder(budget)
        self.inputs = PromptInputs(self.sizes[-1], max_rows, decode)
        self.graphs: dict[int, Graph] = {}

    def add_all(self) -> None:
        for size in reversed(self.sizes):
            self.add(size)

    def add(self, size: int) -> None:
        """Capture the graph for `size` tokens."""
        rows = self.inputs.rows_of(size)
        self.graphs[size] = self.capture.capture(lambda: self._forward(size), rows, size)

    def fits(self, inputs: StepInputs) -> bool:
        """Return whether the tokens fit and attention needs no lengths beforehand."""
        if len(inputs.token_ids) > self.sizes[-1]:
            return False
        first = inputs.num_decode_rows
        contexts = inputs.contexts[first:].tolist()
        device = self.inputs.decode.device
        return not kernels_for(device).wants_lengths(inputs.query_lens[first:], contexts)

    def run(self, inputs: StepInputs, drawn: DrawnTokens | None) -> torch.Tensor:
        """Replay a step and return hidden states, [tokens, hidden]; the next run overwrites them.

        drawn: see `DecodeInputs.fill`.
        """
        tokens = len(inputs.token_ids)
        size = next(size for size in self.sizes if size >= tokens)
        graph = self.graphs[size]
        self.inputs.fill(inputs, size, drawn)
        graph.replay()
        self.capture.recorder.record(
            GraphReplayed(
                batch_size=self.inputs.rows_of(size),
                num_rows=inputs.num_rows,
                num_tokens=size,
                captured_seq=graph.captured_seq,
            )
        )
        [hidden] = graph.outputs
        return hidden[:tokens]

    def _forward(self, size: int) -> tuple[torch.Tensor]:
        batch = self.inputs.batch(size)
        ids = self.inputs.fields(size).token_ids
        return (self.model(ids, batch.positions, self.caches, batch),)
