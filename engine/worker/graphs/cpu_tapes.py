"""Replay decode steps on the CPU without Python between the kernels: see `kernels/cpu/tape.py`.

The first step with each number of rows is computed as usual and taped, later ones are replayed. A
tape is for exactly that many rows, so nothing is padded, and each row computes the same bits.
Prompts are computed without a tape: nearly all of their time goes into matrix products.
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
from engine.worker.graphs.decode_inputs import DecodeInputs, DecodeOutputs
from engine.worker.in_flight import DrawnTokens
from engine.worker.step_inputs import StepInputs

MAX_ROWS = 128
TORCH_OPERATIONS = 32
"""Most operations of torch on a tape. With more, Python would run between most kernels, and the
tape isn't worth its memory (all that torch makes is kept)."""


class _Taped(NamedTuple):
    tape: Tape
    outputs: DecodeOutputs  # overwritten by each replay, of other tapes too
    captured_seq: int


class CpuTapes:
    """Tape and replay steps: `fits` says whether a step can be, `run` does it."""

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
        """Start without tapes. replay: see `Tape`."""
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
        """Return whether every row decodes and no single launch is to be recorded."""
        rows = inputs.num_rows
        return (
            inputs.num_decode_rows == rows <= self.max_rows
            and rows not in self.refused
            and not (self.recorder.full or self.recorder.full_step)
        )

    def run(self, inputs: StepInputs, drawn: DrawnTokens | None) -> DecodeOutputs:
        """Replay the step, or compute and tape it. The next run overwrites what this one returns.

        drawn: see `DecodeInputs.fill`.
        """
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
        """Compute the step, and keep its tape if replaying is worth it."""
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
