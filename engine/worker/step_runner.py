"""Compute a StepPlan and return its tokens.

`execute` follows the plan's order: forget rows, swap blocks out and in, copy blocks, compute the
rows, draw. Between steps it keeps the persistent rows, the KV cache and the rows' sampling
parameters. It decides nothing. `model_runner.py` makes what it computes with.
"""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import torch

from engine.core.messages import RowDetail, StepOutput, StepPlan
from engine.kernels.batch import LayerCache
from engine.kernels.launch import recording
from engine.kernels.ranks import RankLost
from engine.models.causal_lm import CausalLM
from engine.placeholders import NO_TOKEN, UNKNOWN
from engine.trace.recorder import Recorder
from engine.worker.drafter import NO_DRAFTS, Drafter
from engine.worker.graphs.step_graphs import StepGraphs
from engine.worker.in_flight import Clock, DrawnTokens, InFlight
from engine.worker.memory.kv_cache import KVCache
from engine.worker.parallel.other_ranks import OtherRanks
from engine.worker.parallel.rank_messages import Compute, Logits, Move
from engine.worker.sampling.logprobs import prompt_logprobs
from engine.worker.sampling.sample_step import SampleStep
from engine.worker.sampling.sampling_table import SamplingTable
from engine.worker.seats import Seats
from engine.worker.step_inputs import StepInputs
from engine.worker.transfers import to_device, to_host


class StepRunner:
    """Compute plans with a loaded model and the state that was made for it."""

    device: torch.device
    recorder: Recorder
    model: CausalLM
    cache: KVCache
    caches: list[LayerCache]  # the model's layers; `cache` has the draft model's too
    seats: Seats
    table: SamplingTable
    sampling: SampleStep
    drafter: Drafter | None = None
    graphs: StepGraphs | None = None
    drawn: DrawnTokens | None = None  # None: the loop isn't overlapped
    others: OtherRanks | None = None  # None: this process has the whole model
    _last: InFlight | None = None  # the step that was launched last

    @property
    def launches_ahead(self) -> bool:
        """Return whether `launch` returns while the device still computes."""
        return self.drawn is not None

    def execute(self, plan: StepPlan) -> StepOutput:
        """Compute a plan. Its tokens are also in the worker's own rows when this returns."""
        return self.launch(plan).result()

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> InFlight:
        """Give a plan to the device.

        The plan before it may still be running; the results of all earlier ones have been taken.

        Raises `RankLost` when another rank is gone, and always after a step that was broken off.
        """
        try:
            return self._launch(plan)
        except BaseException as error:  # KeyboardInterrupt too: ranks may be at different sums
            if self.others is not None:
                self.others.break_off(error)
            raise

    def _launch(self, plan: StepPlan) -> InFlight:
        started = time.monotonic_ns()
        before, self._last = self._last, None
        self._update_seats(plan)
        if plan.swap_out or plan.swap_in or plan.copies:
            if self.others is not None:
                self.others.tell(Move(plan.swap_out, plan.swap_in, plan.copies))
            with recording(self.recorder, device=self.device.type):
                self.cache.swap_out(plan.swap_out)
                self.cache.swap_in(plan.swap_in)
                self.cache.copy(plan.copies)
        if self.drafter is not None:
            self.drafter.follow(plan)
        if not plan.rows:
            self._last = before
            return InFlight.done(StepOutput(step=plan.step, tokens=[]))
        proposed, drafts, draft_us = plan.proposed, NO_DRAFTS, 0.0
        if proposed:
            if self.drafter is not None:
                self.cache.settle()
                began = time.monotonic_ns()
                drafts = self.drafter.propose(plan)
                proposed, draft_us = drafts.proposed, (time.monotonic_ns() - began) / 1e3
            self.seats.write_proposals(plan, proposed)
        inputs = self.seats.gather(plan)
        inputs.proposed = proposed
        self.cache.settle()
        prepared = time.monotonic_ns()

        clock = Clock(self.device)
        clock.mark()
        drawing = list(range(inputs.num_rows))
        if 0 in inputs.samples:
            drawing = [i for i in drawing if inputs.samples[i]]
        joined = self._joined_us()
        hidden, logits, greatest = self._compute(inputs, drawing)
        joined_us = self._joined_us() - joined
        silent: list[int] = []
        if len(drawing) < inputs.num_rows:
            silent = [i for i, samples in enumerate(inputs.samples) if not samples]
        # Chunks of a prompt draw nothing, so their logits aren't checked. A chunk's last token has
        # attended to all before it: where a key or value is NaN or infinite, so are its hidden
        # states. With this check nothing broken enters the prefix cache.
        finite = None
        if silent:
            ends = to_device(inputs.last_of(silent), self.device)
            finite = hidden[ends].isfinite().all(dim=-1)
        clock.mark()

        details: dict[str, RowDetail] = {}
        if self.seats.any_prompt_logprobs:
            compute_logits = partial(self._compute_logits, hidden)
            prompt_logprobs(compute_logits, self.seats, inputs, details)
        if self.others is not None:
            self.others.check()
        draws = None
        if logits is not None:
            if before is not None and self.sampling.looks_back:
                before.result()
            with recording(self.recorder, device=self.device.type):
                draws = self.sampling.run(inputs, drawing, logits, details, greatest)
            if self.drawn is not None and not plan.proposed:  # no step follows proposals unbooked
                self.drawn.keep(draws.seats, draws.next_tokens)
                self.seats.expect(draws.seats, draws.ends)
        arriving = None if finite is None else to_host(finite)
        clock.mark()

        def finish() -> StepOutput:
            done_ns = self._wait(clock)
            by_row = (
                [[] for _ in plan.rows] if draws is None else self.sampling.book(draws, details)
            )
            for i, is_finite in zip(silent, [] if arriving is None else arriving.tolist()):
                if not is_finite:
                    by_row[i] = [NO_TOKEN]
            tokens = inputs.in_plan_order(by_row)
            forward_us, sample_us = clock.spans_us()
            record_us = min(sample_us, draws.record_us) if draws is not None else 0.0
            return StepOutput(
                step=plan.step,
                tokens=tokens,
                details=details,
                drafted=drafts.drafted,
                draft_passes=drafts.passes,
                draft_us=draft_us,
                prepare_us=(prepared - started) / 1e3 - draft_us,
                forward_us=forward_us,
                sample_us=sample_us - record_us,
                record_us=record_us,
                joined_us=joined_us,
                done_ns=done_ns,
            )

        self._last = InFlight(finish)
        return self._last

    def _wait(self, clock: Clock) -> int:
        """Wait until the device has computed a step. Raises `RankLost`. Returns as `Clock.wait`."""
        if self.others is None:
            return clock.wait()
        try:
            done_ns = clock.wait(self.others.patience())
            self.others.check()
        except RankLost as error:
            self.others.break_off(error)
            raise
        return done_ns

    def _compute(
        self, inputs: StepInputs, drawing: list[int]
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Compute (hidden states of all tokens, logits, where each row's greatest logit is).

        Logits are those of the rows that draw. The last item is None if it isn't known.
        """
        captured = self.graphs is not None and self.graphs.fits(inputs)
        if self.others is not None:
            self.others.tell(Compute.of(inputs, captured))
        if self.graphs is not None and captured:
            hidden, logits, greatest = self.graphs.run(inputs, self.drawn)
            if not drawing:
                return hidden, None, None
            if logits is None or greatest is None:
                with recording(self.recorder, device=self.device.type):
                    return hidden, self._logits(hidden, inputs, drawing), None
            if len(drawing) < inputs.num_rows:
                some = to_device(np.array(drawing), self.device)
                logits, greatest = logits[some], greatest[some]
            return hidden, logits, greatest
        with recording(self.recorder, device=self.device.type):
            hidden = self._compute_eagerly(inputs)
            return hidden, self._logits(hidden, inputs, drawing) if drawing else None, None

    def _compute_eagerly(self, inputs: StepInputs) -> torch.Tensor:
        """Compute the hidden states of all tokens, launched one by one."""
        token_ids, batch = inputs.ids(self.device), inputs.attention(self.device)
        if self.drawn is not None and (inputs.token_ids == UNKNOWN).any():
            rows = inputs.num_decode_rows  # these come first; only they have unknown tokens
            places = to_device(self.drawn.places(inputs.seats[:rows]), self.device)
            self.drawn.fill(token_ids[:rows], places)
        return self.model(token_ids, batch.positions, self.caches, batch)

    def _logits(self, hidden: torch.Tensor, inputs: StepInputs, drawing: list[int]) -> torch.Tensor:
        """Compute the logits of the rows that draw, each at its last token."""
        if len(drawing) < len(hidden):  # else every row has one token and draws
            return self._compute_logits(hidden, inputs.last_of(drawing))
        return self._compute_logits(hidden)

    def _compute_logits(
        self, hidden: torch.Tensor, places: np.ndarray | None = None
    ) -> torch.Tensor:
        """Compute logits, outside a captured step: of hidden states [tokens, width], or of some.

        places: int64 [n] → [n, vocab].
        """
        if self.others is not None:
            self.others.tell(Logits(places))
        if places is not None:
            hidden = hidden[to_device(places, self.device)]
        return self.model.compute_logits(hidden)

    def _joined_us(self) -> float:
        """Return the microseconds for which this rank has joined others' numbers so far."""
        return 0.0 if self.others is None else self.others.ranks.joined().us

    def _update_seats(self, plan: StepPlan) -> None:
        for request_id in plan.dropped:
            seat = self.seats.drop(request_id)
            if seat is not None:
                self.table.clear(seat)
        for request_id, new in plan.new.items():
            self.table.set(self.seats.put(request_id, new), new)
        self.table.grammars.begin()
        self.seats.update_tables(plan.tables)
