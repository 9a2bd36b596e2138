"""Run transformers' `generate` on the lab's jobs, one after another or in static padded batches."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from lab.workbench import Job, Workbench


@dataclass
class PeerRun:
    """Hold seconds in all and until each request's end; KV slots held, and how many had a token."""

    seconds: float = 0.0
    end_s: list[float] = field(default_factory=list)
    slots: int = 0
    slots_with_token: int = 0
    tokens: list[list[int]] = field(default_factory=list)


class Peer:
    """Run transformers with the engine's weights, dtype and device."""

    def __init__(self, bench: Workbench):
        logging.disable_progress_bar()
        model = AutoModelForCausalLM.from_pretrained(
            str(bench.folder), dtype=bench.dtype, trust_remote_code=False
        )
        self.model = model.eval().to(bench.device)
        self.device = bench.device

    @torch.inference_mode()
    def run(self, jobs: list[Job], batch_size: int) -> PeerRun:
        """Run batches in order of arrival, padded left.

        Each runs until its longest answer is done.
        """
        run, started = PeerRun(), time.perf_counter()
        for first in range(0, len(jobs), batch_size):
            self._batch(jobs[first : first + batch_size], run, started)
        run.seconds = time.perf_counter() - started
        return run

    def _batch(self, batch: list[Job], run: PeerRun, started: float) -> None:
        longest = max(len(job.prompt) for job in batch)
        wanted = max(job.num_output for job in batch)
        pads = [longest - len(job.prompt) for job in batch]
        ids = [[0] * pad + job.prompt for pad, job in zip(pads, batch, strict=True)]
        mask = [[0] * pad + [1] * len(job.prompt) for pad, job in zip(pads, batch, strict=True)]
        result = self.model.generate(
            torch.tensor(ids, device=self.device),
            attention_mask=torch.tensor(mask, device=self.device),
            max_new_tokens=wanted,
            min_new_tokens=wanted,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        ).tolist()
        run.end_s += [time.perf_counter() - started] * len(batch)
        run.slots += len(batch) * (len(result[0]) - 1)  # the last token has no K/V
        for row, job in zip(result, batch, strict=True):
            run.tokens.append(row[longest : longest + job.num_output])
            run.slots_with_token += len(job.prompt) + job.num_output - 1
