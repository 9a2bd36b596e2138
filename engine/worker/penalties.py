"""Repetition, frequency and presence penalties: token counts of the rows that use them, and only
of those.

A row that asks for a penalty gets one line in two tables: which tokens its prompt has, and how
often its output has each. The tables grow by doubling; a line goes back when its row goes.
"""

from __future__ import annotations

import numpy as np
import torch


class TokenCounts:
    """`prompt`: bool [lines, vocab], `output`: fp32 [lines, vocab] (counts, exact up to 2^24)."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self.prompt = torch.zeros((0, vocab_size), dtype=torch.bool, device=device)
        self.output = torch.zeros((0, vocab_size), dtype=torch.float32, device=device)
        self._free: list[int] = []

    def add(self, token_ids: np.ndarray, num_prompt_tokens: int) -> int:
        """Count the tokens of a sequence (int [tokens], prompt first). Returns its line."""
        if not self._free:
            self._grow()
        line = self._free.pop()
        ids = torch.from_numpy(token_ids.astype(np.int64)).to(self.prompt.device)
        self.prompt[line] = False
        self.prompt[line, ids[:num_prompt_tokens]] = True
        self.output[line] = torch.bincount(
            ids[num_prompt_tokens:], minlength=self.output.shape[1]
        ).float()
        return line

    def release(self, line: int) -> None:
        self._free.append(line)

    def count(self, lines: torch.Tensor, token_ids: torch.Tensor) -> None:
        """One more output token for each of `lines`, int64 [rows], no line twice."""
        self.output[lines, token_ids] += 1

    def penalise(
        self,
        logits: torch.Tensor,
        lines: torch.Tensor,
        repetition: torch.Tensor,
        frequency: torch.Tensor,
        presence: torch.Tensor,
    ) -> torch.Tensor:
        """Returns the penalised logits. `logits`: fp32 [rows, vocab]; the others: [rows].

        Repetition, over prompt and output (Keskar et al. 2019, CTRL, section 4.1): a positive logit
        is divided by it, a negative one multiplied. Frequency and presence, over the output (as in
        OpenAI's API): `logit − frequency · count − presence · (count > 0)`.
        """
        counts = self.output[lines]
        produced = counts > 0
        factor = repetition[:, None]
        repeated = torch.where(logits > 0, logits / factor, logits * factor)
        logits = torch.where(self.prompt[lines] | produced, repeated, logits)
        return logits - frequency[:, None] * counts - presence[:, None] * produced

    def _grow(self) -> None:
        lines, vocab = self.prompt.shape
        more = max(lines, 4)
        self.prompt = torch.cat((self.prompt, self.prompt.new_zeros((more, vocab))))
        self.output = torch.cat((self.output, self.output.new_zeros((more, vocab))))
        self._free.extend(range(lines + more - 1, lines - 1, -1))
