"""Apply repetition, frequency and presence penalties.

They change the logits of tokens that a sequence already has, a few hundred of a vocabulary. So only
those are gathered, changed and put back. How often each token was produced is counted as tokens are
drawn, in a table with one line for each row that uses penalties. The table grows by doubling, and a
line is returned when its row leaves.
"""

from __future__ import annotations

import numpy as np
import torch


class OutputCounts:
    """Count tokens of outputs in `table`, fp32 [lines, vocab] (exact to 2^24)."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self.table = torch.zeros((0, vocab_size), dtype=torch.float32, device=device)
        self._free: list[int] = []

    def add(self, output_ids: np.ndarray) -> int:
        """Count the output of a sequence, int64 [tokens]. Return its line."""
        if not self._free:
            self._grow()
        line = self._free.pop()
        ids = torch.from_numpy(output_ids).to(self.table.device)
        self.table[line] = torch.bincount(ids, minlength=self.table.shape[1])
        return line

    def release(self, line: int) -> None:
        self._free.append(line)

    @torch.inference_mode()
    def count(self, lines: torch.Tensor, token_ids: torch.Tensor) -> None:
        """Count one more output token for each of `lines`; both int64 [rows]."""
        one = self.table.new_ones(())
        self.table.index_put_((lines, token_ids), one, accumulate=True)  # a line may come again

    def _grow(self) -> None:
        lines, vocab = self.table.shape
        more = max(lines, 4)
        self.table = torch.cat((self.table, self.table.new_zeros((more, vocab))))
        self._free.extend(range(lines + more - 1, lines - 1, -1))


def penalise(
    logits: torch.Tensor,
    rows: torch.Tensor,
    seen: torch.Tensor,
    counts: torch.Tensor,
    penalties: torch.Tensor,
) -> None:
    """Change `logits`, fp32 [all rows, vocab], in place.

    `rows`: int64 [p], the rows with penalties. `seen`: int64 [p, longest], every token that each of
    them has, prompt and output; a token may come again. `counts`: fp32 [p, longest], how often the
    output has it. `penalties`: fp32 [3, p], repetition, frequency, presence.

    Repetition, over prompt and output (Keskar et al. 2019, "CTRL", section 4.1): a positive logit
    is divided by it, a negative one multiplied. Then frequency and presence, over the output (as
    OpenAI's API defines them): `logit − frequency · count − presence · (count > 0)`.
    """
    repetition, frequency, presence = penalties[:, :, None]
    values = logits[rows[:, None], seen]
    values = torch.where(values > 0, values / repetition, values * repetition)
    values = values - frequency * counts - presence * (counts > 0)
    logits[rows[:, None], seen] = values  # a repeated token is written twice, equally
