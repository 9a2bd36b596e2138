"""The end of a step: logits of the rows that draw become tokens, log-probabilities and events, and
the tokens are appended to their rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from engine.core.messages import NO_TOKEN, Row, RowDetail, TokenLogprobs
from engine.sampling_params import SamplingParams
from engine.trace.recorder import Recorder
from engine.worker.batch_rows import BatchRows, StepInputs
from engine.worker.draw_events import sample_drawn
from engine.worker.logprobs import token_logprobs
from engine.worker.sampler import Sampler
from engine.worker.sampling_table import SampleBatch, SamplingTable


class _Recorded(NamedTuple):
    """A draw whose event is wanted."""

    place: int  # among the step's draws
    sequence: str
    sibling: int  # which of the request's n sequences


class SampleStep:
    """Ties the sampler to the persistent rows. `recorder` None: no events (warm-up)."""

    def __init__(
        self, rows: BatchRows, table: SamplingTable, recorder: Recorder | None = None
    ) -> None:
        self.rows = rows
        self.table = table
        self.sampler = Sampler(table)
        self.recorder = recorder

    def run(
        self,
        inputs: StepInputs,
        drawing: list[int],
        logits: torch.Tensor,
        details: dict[str, RowDetail],
        greatest: torch.Tensor | None = None,
    ) -> list[list[int]]:
        """Draw for the batch rows `drawing`. `logits`: [len(drawing), vocab], the model's own.
        `greatest`: where the greatest of each row is, [len(drawing)], if it is known already.

        Returns the tokens of every row in the plan's order (`NO_TOKEN` where its logits aren't
        finite), and puts log-probabilities into `details`. A row that forks draws n times from its
        logits, the i-th time with seed + i; its own sequence goes on with the first token, the
        siblings come with the next plan.
        """
        rows = [inputs.rows[i] for i in drawing]
        counts = [row.samples for row in rows]
        slots = inputs.slots[drawing]
        ends = np.array([row.start + row.num_tokens for row in rows])  # where the tokens will stand
        if max(counts) == 1:
            firsts: np.ndarray = np.arange(len(rows))  # of each row, its first draw
            batch = self.table.batch(slots, np.zeros(len(rows), np.int64))
            positions = ends
        else:
            firsts = np.cumsum(counts) - counts
            of = np.repeat(np.arange(len(rows)), counts)
            batch = self.table.batch(slots[of], np.arange(len(of)) - firsts[of])
            positions = ends[of]
            logits = logits[torch.from_numpy(of).to(logits.device)]
            greatest = None
        recorded = self._recorded(rows, firsts)
        tokens, logprobs = self._draw(logits, batch, positions, recorded, greatest)
        # Where nothing could be drawn the core ends the sequence; an overlapped step may compute it
        # once more before that, with a token that exists.
        kept = np.maximum(tokens[firsts], 0)
        self.rows.append(slots, ends, kept)
        self.table.appended(slots, kept)

        result: list[list[int]] = [[] for _ in inputs.rows]
        drawn = tokens.tolist()
        for i, count, first in zip(drawing, counts, firsts.tolist()):
            result[inputs.order[i]] = drawn[first : first + count]
        for row, first in zip(rows, firsts.tolist()) if logprobs else ():
            if first in logprobs:
                detail = details.setdefault(row.request_id, RowDetail())
                detail.logprobs = [logprobs[first + i] for i in range(row.samples)]
        return result

    def _draw(
        self,
        logits: torch.Tensor,
        batch: SampleBatch,
        positions: np.ndarray,
        recorded: list[_Recorded],
        greatest: torch.Tensor | None,
    ) -> tuple[np.ndarray, dict[int, TokenLogprobs]]:
        """The tokens, int64 [draws], and by place the log-probabilities of draws that want them."""
        asking = batch.logprob_rows
        if batch.plain and not asking and not recorded:
            if greatest is None:
                greatest = self.sampler.draw(logits, batch, positions)
            return greatest.cpu().numpy(), {}
        logits = logits.float()
        # copies: `adjust` changes the logits in place
        raw, recorded_raw = logits[asking], logits[[draw.place for draw in recorded]]
        adjusted = self.sampler.adjust(logits, batch, self.rows.tokens, positions)
        tokens = self.sampler.draw(adjusted, batch, positions).cpu().numpy()
        wanted = [self._params(batch, place).logprobs or 0 for place in asking]
        logprobs = dict(zip(asking, token_logprobs(raw, np.maximum(tokens[asking], 0), wanted)))
        if recorded:
            words = batch.words(positions)
            for draw, its_raw in zip(recorded, recorded_raw):
                place = draw.place
                if tokens[place] == NO_TOKEN:
                    continue
                event = sample_drawn(
                    its_raw,
                    adjusted[place],
                    self._params(batch, place),
                    int(tokens[place]),
                    int(batch.seeds[place]),
                    int(words[place]),
                )
                event.request_id, event.index = draw.sequence, draw.sibling
                event.position = int(positions[place])
                self.recorder.record(event)  # type: ignore[union-attr]
        return tokens, logprobs

    def _params(self, batch: SampleBatch, place: int) -> SamplingParams:
        return self.rows.new(int(batch.slots[place])).params

    def _recorded(self, rows: list[Row], firsts: np.ndarray) -> list[_Recorded]:
        """The draws whose events are wanted. Draw i of a row that forks is its i-th sibling's."""
        recorder = self.recorder
        if recorder is None or not (recorder.full or recorder.full_requests):
            return []
        found = []
        for row, first in zip(rows, firsts.tolist()):
            if recorder.wants_full(row.request_id):
                index = self._index(row.request_id)
                found.append(_Recorded(first, row.request_id, index))
                found += [
                    _Recorded(first + i, f"{row.request_id}.{i}", i) for i in range(1, row.samples)
                ]
        return found

    def _index(self, sequence: str) -> int:
        """Sibling i of request x is the sequence "x.i"; the first one is "x"."""
        ending = sequence.rpartition(".")[2]
        n = self.rows.new(self.rows.slot(sequence)).params.n
        return int(ending) if n > 1 and ending.isdigit() and 0 < int(ending) < n else 0
