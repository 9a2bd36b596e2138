"""End a step: turn logits of the rows that draw into tokens, log-probabilities and events.

When the tokens have arrived on the host, they are appended to their rows.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence, Sized
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch

from engine.core.messages import RowDetail, TokenLogprobs
from engine.placeholders import NO_TOKEN
from engine.sampling_params import SamplingParams
from engine.trace.events import StepRow
from engine.trace.recorder import Recorder
from engine.trace.sequences import request_and_index, sequence_name
from engine.worker.sampling.draw_events import add_grammar, sample_drawn
from engine.worker.sampling.grammar_masks import Advanced
from engine.worker.sampling.logprobs import token_logprobs
from engine.worker.sampling.proposals import StepProposals
from engine.worker.sampling.sampler import Sampler
from engine.worker.sampling.sampling_table import SamplingMetadata, SamplingTable
from engine.worker.seats import Seats
from engine.worker.step_inputs import StepInputs
from engine.worker.transfers import Outbox, to_device

NOTHING_LEFT = "allowed_token_ids names no token that its grammar allows here"


class _Recorded(NamedTuple):
    """Describe a draw whose event is wanted."""

    place: int  # among the step's draws
    sequence: str
    sibling: int  # which of the request's n sequences


class Draws(NamedTuple):
    """Hold what a step draws, on its way to the host."""

    counts: list[int]  # how many tokens each row of the batch draws
    rows: list[StepRow]  # those that draw at least one
    # of these:
    firsts: np.ndarray | None  # int64 [rows], each row's first draw; None: one draw each
    seats: np.ndarray  # int64 [rows]
    ends: np.ndarray  # int64 [rows], where the tokens will stand
    tokens: np.ndarray  # int64 [draws], on the host; there when the device is done
    next_tokens: torch.Tensor  # int64 [rows], on the device: the token each row continues with
    record_us: float = 0.0  # what recording them took, on the host
    proposals: StepProposals | None = None  # None: every draw counts


class SampleStep:
    """Connect the sampler to the persistent rows. `recorder` None: no events (warm-up)."""

    reads_tokens = False
    """Whether `run` always reads the rows' own tokens, all of them. A subclass that doesn't say is
    assumed to: each step then waits for the tokens of the one before."""

    def __init_subclass__(cls) -> None:
        if "reads_tokens" not in vars(cls):
            cls.reads_tokens = True

    def __init__(
        self, seats: Seats, table: SamplingTable, recorder: Recorder | None = None
    ) -> None:
        self.seats = seats
        self.table = table
        self.sampler = Sampler(table)
        self.outbox = Outbox(table.most_draws, table.device)
        self.recorder = recorder

    @property
    def looks_back(self) -> bool:
        """Return whether this draw needs all of the sequences' tokens on the host."""
        return self.reads_tokens or self.table.any_history

    def run(
        self,
        inputs: StepInputs,
        drawing: list[int],
        logits: torch.Tensor,
        details: dict[str, RowDetail],
        greatest: torch.Tensor | None = None,
    ) -> Draws:
        """Draw for the batch rows `drawing`.

        `logits`: [len(drawing), vocab], the model's own. `greatest`: where the greatest of each row
        is, [len(drawing)], if it is known already.

        Waits for nothing, unless log-probabilities are wanted, which are put into `details`, or
        events of the draws. A row that forks draws n times from its logits, the i-th time with seed
        + i. Its own sequence continues with the first token; the siblings come with the next plan.
        """
        rows, seats, ends, counts = inputs.rows, inputs.seats, inputs.contexts, inputs.samples
        if len(drawing) < len(rows):
            rows, seats, ends = [rows[i] for i in drawing], seats[drawing], ends[drawing]
            counts = [counts[i] for i in drawing]
        firsts, siblings, owners, positions = None, None, seats, ends
        if max(counts) > 1:
            firsts = np.cumsum(counts) - counts
            of = np.repeat(np.arange(len(rows)), counts)
            siblings, owners, positions = np.arange(len(of)) - firsts[of], seats[of], ends[of]
            logits = logits[to_device(of, logits.device)]
            greatest = None
        recorded = self._recorded(rows, firsts)
        proposals, ahead = None, None
        if inputs.proposed:
            proposals = StepProposals(rows, _places(rows, firsts), len(positions), inputs.proposed)
            ahead = proposals.ahead
        simple = None
        if firsts is None and not recorded:
            simple = self.table.needs_kernel(seats)
        if simple is not None:
            record_us = 0.0
            tokens, logprobs = self._draw_simple(logits, simple, seats, positions, ahead)
        else:
            metadata = self.table.metadata(owners, siblings)
            tokens, logprobs, record_us = self._draw(
                logits, metadata, positions, recorded, greatest, proposals
            )
        for row, first in zip(rows, _places(rows, firsts)) if logprobs else ():
            if first in logprobs:
                detail = details.setdefault(row.request_id, RowDetail())
                its = [logprobs[first + i] for i in range(row.samples)]
                detail.logprobs = its if detail.logprobs is None else detail.logprobs + its
        next_tokens = tokens if firsts is None else tokens[to_device(firsts, tokens.device)]
        arriving = self.outbox.take(tokens)
        return Draws(
            inputs.samples, rows, firsts, seats, ends, arriving, next_tokens, record_us, proposals
        )

    def book(self, draws: Draws, details: dict[str, RowDetail]) -> list[list[int]]:
        """Append the arrived tokens to their rows.

        Return those of every row of the batch (`NO_TOKEN` where nothing could be drawn). What their
        grammars say of them is put into `details`.
        """
        drawn = draws.tokens
        # Where nothing could be drawn the core ends the sequence. An overlapped step may compute it
        # once more before that, so it needs a token that exists.
        kept = np.maximum(drawn if draws.firsts is None else drawn[draws.firsts], 0)
        seats, ends, counts = draws.seats, draws.ends, None
        if draws.proposals is not None:
            counts = draws.proposals.counts(drawn)
        if counts is not None:
            counts = counts if draws.firsts is None else counts[draws.firsts]
            seats, ends, kept = seats[counts], ends[counts], kept[counts]
        self.seats.append(seats, ends, kept)
        self.table.appended(seats, kept)
        if self.table.grammars:
            self._advance_grammars(draws, counts, details)
        if len(drawn) == len(draws.counts) and draws.firsts is None:
            return drawn[:, None].tolist()  # each row has one
        tokens = iter(drawn.tolist())
        return [list(islice(tokens, count)) for count in draws.counts]

    def _advance_grammars(
        self, draws: Draws, counts: np.ndarray | None, details: dict[str, RowDetail]
    ) -> None:
        """Read the drawn tokens into their grammars, and begin with the masks of the next step.

        counts: bool [draws], which draws count; None: all.
        """
        grammars, tokens, counted = self.table.grammars, draws.tokens, counts
        told: list[Advanced] = []
        if draws.firsts is not None:
            tokens = tokens[draws.firsts]
            counted = np.ones(len(tokens), bool) if counted is None else counted.copy()
            for place, row in enumerate(draws.rows):
                seat = int(draws.seats[place])
                if row.samples > 1 and counted[place] and seat in grammars:
                    counted[place] = False
                    first = int(draws.firsts[place])
                    its = draws.tokens[first : first + row.samples].tolist()
                    complete, failed = grammars.fork(seat, its), NO_TOKEN in its
                    if failed or True in complete:
                        told.append(Advanced(place, complete, [], failed))
        for place, complete, forced, failed in told + grammars.advance(
            draws.seats, tokens, counted
        ):
            request_id = draws.rows[place].request_id
            detail = details.get(request_id)
            if detail is None:
                detail = details[request_id] = RowDetail()
            detail.complete, detail.forced = complete, forced
            if failed:
                self._explain(int(draws.seats[place]), detail)
        grammars.begin()

    def _explain(self, seat: int, detail: RowDetail) -> None:
        """Say why nothing could be drawn, if it is the request's own doing."""
        detail.failure = self.table.grammars.failure(seat)
        if detail.failure:
            detail.failed_param = "structured_outputs"
        elif self.table.allows_few(seat):
            detail.failure, detail.failed_param = NOTHING_LEFT, "allowed_token_ids"

    def _draw_simple(
        self,
        logits: torch.Tensor,
        simple: np.ndarray,
        seats: np.ndarray,
        positions: np.ndarray,
        ahead: np.ndarray | None,
    ) -> tuple[torch.Tensor, dict[int, TokenLogprobs]]:
        """Draw where one kernel does it all, and the other draws as usual.

        simple: bool [draws], which are the former. Return all tokens, and log-probabilities by
        place.
        """
        if simple.all():
            return self.sampler.draw_simple(logits, None, seats, positions, ahead), {}
        tokens = torch.empty(len(logits), dtype=torch.int64)
        its, others = np.flatnonzero(simple), np.flatnonzero(~simple)
        its_ahead, others_ahead = (None, None) if ahead is None else (ahead[its], ahead[others])
        tokens[its] = self.sampler.draw_simple(logits, its, seats[its], positions[its], its_ahead)
        drawn, logprobs, _ = self._draw(
            logits[others],
            self.table.metadata(seats[others]),
            positions[others],
            ahead=others_ahead,
        )
        tokens[others] = drawn
        return tokens, {int(others[i]): one for i, one in logprobs.items()}

    def _draw(
        self,
        logits: torch.Tensor,
        metadata: SamplingMetadata,
        positions: np.ndarray,
        recorded: Sequence[_Recorded] = (),
        greatest: torch.Tensor | None = None,
        proposals: StepProposals | None = None,
        ahead: np.ndarray | None = None,
    ) -> tuple[torch.Tensor, dict[int, TokenLogprobs], float]:
        """Draw the tokens, int64 [draws], on the device.

        Also return, by place, the log-probabilities of draws that want them, and the microseconds
        that recording the draws took.
        """
        asking = metadata.logprob_rows
        told = bool(asking or recorded)
        if metadata.plain and not told:
            if greatest is None:
                greatest = self.sampler.draw(logits, metadata, positions)
            return greatest, {}, 0.0
        logits = logits.float()
        if proposals is not None:
            ahead = proposals.ahead
        if not told:
            adjusted = self.sampler.adjust(logits, metadata, self.seats.tokens, positions, ahead)
            return self.sampler.draw(adjusted, metadata, positions), {}, 0.0
        # copies: `adjust` changes the logits in place
        raw, recorded_raw = logits[asking], logits[[draw.place for draw in recorded]]
        adjusted = self.sampler.adjust(logits, metadata, self.seats.tokens, positions, ahead)
        drawn = self.sampler.draw(adjusted, metadata, positions)
        tokens = drawn.cpu().numpy()
        wanted = [self._params(metadata, place) for place in asking]
        counts = [params.logprobs or 0 for params in wanted]
        named = {i: p.logprob_token_ids for i, p in enumerate(wanted) if p.logprob_token_ids}
        found = token_logprobs(raw, np.maximum(tokens[asking], 0), counts, named)
        logprobs = dict(zip(asking, found))
        began_ns = time.perf_counter_ns()
        if recorded:
            words = metadata.words(positions)
            counts_draw = None if proposals is None else proposals.counts(tokens)
            for draw, its_raw in zip(recorded, recorded_raw):
                place = draw.place
                if tokens[place] == NO_TOKEN or not (counts_draw is None or counts_draw[place]):
                    continue
                event = sample_drawn(
                    its_raw,
                    adjusted[place],
                    self._params(metadata, place),
                    int(tokens[place]),
                    int(metadata.seeds[place]),
                    int(words[place]),
                )
                seat = int(metadata.seats[place])
                if seat in self.table.grammars:
                    before = None if ahead is None else ahead[place : place + 1]
                    mask = self.table.grammars.masks(metadata.seats[place : place + 1], before)[0]
                    add_grammar(event, its_raw, mask, int(words[place]))
                event.request_id, event.index = draw.sequence, draw.sibling
                event.position = int(positions[place])
                self.recorder.record(event)  # type: ignore[union-attr]
        return drawn, logprobs, (time.perf_counter_ns() - began_ns) / 1e3

    def _params(self, metadata: SamplingMetadata, place: int) -> SamplingParams:
        return self.seats.new(int(metadata.seats[place])).params

    def _recorded(self, rows: list[StepRow], firsts: np.ndarray | None) -> list[_Recorded]:
        """Return the draws whose events are wanted.

        Draw i of a row that forks is its i-th sibling's.
        """
        recorder = self.recorder
        if recorder is None or not (recorder.full or recorder.full_requests):
            return []
        found = []
        for row, first in zip(rows, _places(rows, firsts)):
            if recorder.wants_full(row.request_id):
                request, index = request_and_index(row.request_id)
                found.append(_Recorded(first, row.request_id, index))
                found += [
                    _Recorded(first + i, sequence_name(request, i), i)
                    for i in range(1, row.samples)
                ]
        return found


def _places(rows: Sized, firsts: np.ndarray | None) -> Iterable[int]:
    """Return the place of each row's first draw among the step's."""
    return range(len(rows)) if firsts is None else firsts.tolist()
