"""Decode steps on the CPU without Python between the kernels: see `kernels/cpu/tape.py`.

The first step of each number of rows is computed as always and taped, later ones are played. A
tape is for exactly that many rows, so nothing is padded, and what a row computes is the same to
the bit. Prompts are computed without a tape: there the products take nearly all of the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from engine.kernels import kernels_for
from engine.kernels.batch import LayerCache
from engine.kernels.cpu.tape import Arena, NotTapeable, Tape
from engine.models.causal_lm import CausalLM
from engine.trace.events import GraphCaptured, GraphReplayed
from engine.trace.recorder import Recorder
from engine.worker.batch_rows import StepInputs
from engine.worker.graphs.decode_inputs import DecodeInputs, DecodeOutputs
from engine.worker.in_flight import DrawnTokens

MAX_ROWS = 128
TORCH_OPERATIONS = 32
"""On a tape of more than this many, Python would be back between most kernels: not worth its memory
(all that torch makes is kept)."""


class _Taped(NamedTuple):
    tape: Tape
    outputs: DecodeOutputs  # overwritten by each play, of other tapes too
    captured_seq: int


class CpuTapes:
    """`fits` says whether a step can be played (or taped), `run` does it."""

    def __init__(
        self,
        model: CausalLM,
        caches: list[LayerCache],
        max_rows: int,
        table_width: int,
        block_size: int,
        replay: Callable[[bytes], object],
        recorder: Recorder,
    ) -> None:
        """replay: see `Tape`."""
        self.model = model
        self.caches = caches
        self.replay = replay
        self.recorder = recorder
        self.max_rows = min(max_rows, MAX_ROWS)
        device = torch.device("cpu")
        self.inputs = DecodeInputs(self.max_rows, table_width, block_size, device)
        self.arena = Arena()
        self.tapes: dict[int, _Taped] = {}
        self.refused: set[int] = set()  # numbers of rows whose step can't be taped

    def fits(self, inputs: StepInputs) -> bool:
        """Every row decodes, and no single launch is to be recorded."""
        rows = inputs.num_rows
        return (
            inputs.num_decode_rows == rows <= self.max_rows
            and rows not in self.refused
            and not (self.recorder.full or self.recorder.full_step)
        )

    def run(self, inputs: StepInputs, drawn: DrawnTokens | None) -> DecodeOutputs:
        """drawn: see `DecodeInputs.fill`. The next run overwrites what this one returns."""
        rows = inputs.num_rows
        self.inputs.fill(inputs, rows, drawn)
        taped = self.tapes.get(rows)
        if taped is None:
            return self._record(rows)
        taped.tape.play()
        self.recorder.record(
            GraphReplayed(batch_size=rows, num_rows=rows, captured_seq=taped.captured_seq)
        )
        return taped.outputs

    def _record(self, rows: int) -> DecodeOutputs:
        """Compute the step, and keep its tape if it is worth it."""
        started = time.perf_counter()
        tape = Tape(self.replay, self.arena)
        try:
            with tape.recording():
                outputs = self._forward(rows)
        except NotTapeable:
            self.refused.add(rows)
            return self._forward(rows)
        if tape.num_torch_operations > TORCH_OPERATIONS:
            self.refused.add(rows)
            return outputs
        captured = GraphCaptured(
            batch_size=rows,
            num_kernels=tape.num_kernels,
            duration_ms=(time.perf_counter() - started) * 1e3,
        )
        self.recorder.record(captured)
        hidden, logits, greatest = (self.arena.window(output) for output in outputs)
        self.tapes[rows] = _Taped(tape, (hidden, logits, greatest), self.recorder.number(captured))
        return outputs

    def _forward(self, rows: int) -> DecodeOutputs:
        batch = self.inputs.batch(rows)
        hidden = self.model(self.inputs.token_ids[:rows], batch.positions, self.caches, batch)
        logits = self.model.compute_logits(hidden)
        return hidden, logits, kernels_for(logits.device).greatest(logits)
