"""Turn logits into tokens (rule 9), depending only on logits, parameters, seed and position.

The order, for each row: the grammar's mask (`grammar_masks.py`) → allowed and bad words,
min_tokens, logit bias (`token_rules.py`) → repetition, frequency, presence (`penalties.py`) →
temperature (0: the greatest logit, lowest id if equal) → min_p, top_k, top_p, draw
(`exact_draw.py`, where they are defined to the bit). Raw log-probabilities are taken before all
this, by `logprobs.py`.

On a CPU one native kernel draws for all rows of a step. It also applies temperatures, and the masks
of rows for which nothing else comes before that.

Every operation works on all rows that need it at once, and on each row alone: no row's token
depends on its neighbours. Rows without these parameters skip the work.
"""

from __future__ import annotations

import numpy as np
import torch

from engine.kernels import kernels_for
from engine.placeholders import NO_TOKEN
from engine.worker.sampling.exact_draw import cut_and_draw, draw, integer_weights, keep_min_p
from engine.worker.sampling.penalties import penalise
from engine.worker.sampling.sampling_table import SamplingMetadata, SamplingTable
from engine.worker.transfers import to_device


class Sampler:
    """Draw the tokens of a step with the parameters of a `SamplingTable`."""

    def __init__(self, table: SamplingTable) -> None:
        self.table = table

    def adjust(
        self,
        logits: torch.Tensor,
        metadata: SamplingMetadata,
        tokens: np.ndarray,
        positions: np.ndarray,
        ahead: np.ndarray | None = None,
    ) -> torch.Tensor:
        """Apply rules and penalties, everything before the temperature. Changes `logits` in place.

        `logits`: fp32 [rows, vocab]. `tokens`: int32 [seats, longest], of all seats. `positions`:
        int64 [rows], how many of its seat's tokens each row has. `ahead`: int64 [rows], how many of
        these, the last ones, are proposals, which aren't counted yet; None: none in any row.
        """
        if len(metadata.grammar_rows):  # first: where nothing else is left, the grammar holds
            some = metadata.grammar_rows
            before = None if ahead is None else ahead[some]
            masks = self.table.grammars.masks(metadata.seats[some], before)
            device = logits.device
            held = to_device(some, device)
            kernels_for(device).mask_logits(logits, to_device(masks, device), held)
        if metadata.rules:
            rows = metadata.rules.rows
            seen = [tokens[metadata.seats[row], : positions[row]] for row in rows]
            metadata.rules.apply(logits, seen)
        if len(metadata.penalised):
            self._penalise(logits, metadata, tokens, positions, ahead)
        return logits

    def _penalise(
        self,
        logits: torch.Tensor,
        metadata: SamplingMetadata,
        tokens: np.ndarray,
        positions: np.ndarray,
        ahead: np.ndarray | None,
    ) -> None:
        some = metadata.penalised
        ends = positions[some, None]
        seen = tokens[metadata.seats[some], : ends.max()].astype(np.int64)
        beyond = np.arange(seen.shape[1]) >= ends
        seen[beyond] = np.broadcast_to(seen[:, :1], seen.shape)[beyond]  # its first token, again
        ids = to_device(seen, logits.device)
        counts = self.table.counts.table[metadata.penalty_lines[:, None], ids]
        if ahead is not None:
            counts += to_device(_counted(seen, positions[some], ahead[some]), logits.device)
        rows = to_device(some, logits.device)
        penalise(logits, rows, ids, counts, metadata.penalties)

    def draw(
        self, logits: torch.Tensor, metadata: SamplingMetadata, positions: np.ndarray
    ) -> torch.Tensor:
        """Draw the token of each row, int64 [rows], from adjusted `logits`, fp32 [rows, vocab].

        Logits of a `plain` step may have any dtype. A row whose logits aren't finite gets
        `NO_TOKEN`.

        `positions`: int64 [rows], where the drawn token will stand in its sequence.
        """
        if not len(metadata.random):
            return kernels_for(logits.device).greatest(logits)
        if self.table.draw_allowed is not None:
            # the same kernel as in `draw_simple`: masked logits are as good to it as masks
            draws = _draws(None, metadata.seats, metadata.seeds, positions)
            return self._draw_allowed(logits, draws)
        words = to_device(metadata.words(positions), logits.device)
        if not len(metadata.greedy):
            return self._draw(logits, metadata, words)
        tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
        tokens[metadata.greedy] = kernels_for(logits.device).greatest(logits[metadata.greedy])
        tokens[metadata.random] = self._draw(
            logits[metadata.random], metadata, words[metadata.random]
        )
        return tokens

    def draw_simple(
        self,
        logits: torch.Tensor,
        lines: np.ndarray | None,
        seats: np.ndarray,
        positions: np.ndarray,
        ahead: np.ndarray | None,
    ) -> torch.Tensor:
        """Draw for sequences of which `SamplingTable.needs_kernel` says so, int64 [draws].

        `lines`: int64 [draws], which of the logits are theirs; None: all. The others as in
        `adjust`. A forced token isn't drawn: only that its logit is finite is looked at.
        """
        draws = _draws(lines, seats, self.table.seeds(seats), positions)
        grammars = self.table.grammars
        if not grammars:
            return self._draw_allowed(logits, draws)
        draws[4] = grammars.only(seats, ahead)
        np.copyto(draws[5], seats, where=self.table.masked[seats])
        return self._draw_allowed(logits, draws, torch.from_numpy(grammars.bits))

    def _draw_allowed(
        self, logits: torch.Tensor, draws: np.ndarray, masks: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Call the kernel for it."""
        draw, table = self.table.draw_allowed, self.table
        assert draw is not None
        if logits.dtype is not torch.float32 or not logits.is_contiguous():
            logits = logits.float().contiguous()
        return draw(logits, torch.from_numpy(draws), masks, table.parameters, table.top_k)

    def _draw(
        self, logits: torch.Tensor, metadata: SamplingMetadata, words: torch.Tensor
    ) -> torch.Tensor:
        """Draw like `draw`, for the rows in `metadata.random` alone."""
        if metadata.temperature is not None:
            logits = logits / metadata.temperature
        fused = kernels_for(logits.device).draw
        if fused is not None:
            return fused(logits, *metadata.cuts, words, metadata.any_top_k, metadata.any_top_p)
        weights = integer_weights(logits)
        if not len(metadata.free):
            return cut_and_draw(weights, metadata.cuts, words)
        if not len(metadata.truncated):
            return self._draw_free(weights, metadata, words)
        tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
        some = metadata.truncated
        tokens[some] = cut_and_draw(weights[some], metadata.cuts.of(some), words[some])
        tokens[metadata.free] = self._draw_free(
            weights[metadata.free], metadata, words[metadata.free]
        )
        return tokens

    def _draw_free(
        self, weights: torch.Tensor, metadata: SamplingMetadata, words: torch.Tensor
    ) -> torch.Tensor:
        """Draw rows without top_k and top_p, which need no ranking: min_p is only a threshold."""
        if metadata.free_min_p:
            weights = keep_min_p(weights, metadata.cuts.min_p[metadata.free])
        return draw(weights, words)


def _draws(
    lines: np.ndarray | None, seats: np.ndarray, seeds: np.ndarray, positions: np.ndarray
) -> np.ndarray:
    """Describe draws without masks to `DrawAllowed`."""
    draws = np.empty((6, len(seats)), np.int64)
    draws[0] = np.arange(len(seats)) if lines is None else lines
    draws[1], draws[2], draws[3] = seats, seeds, positions
    draws[4], draws[5] = NO_TOKEN, -1
    return draws


def _counted(seen: np.ndarray, ends: np.ndarray, ahead: np.ndarray) -> np.ndarray:
    """Count each row's proposals: how often each token that it has is one of them.

    seen: int64 [rows, longest], its tokens. ends, ahead: int64 [rows]; the proposals are the last
    tokens before the end. Returns fp32 [rows, longest].
    """
    counts = np.zeros(seen.shape, np.float32)
    for row, (end, number) in enumerate(zip(ends.tolist(), ahead.tolist())):
        for proposal in seen[row, end - number : end]:
            counts[row] += seen[row] == proposal
    return counts
