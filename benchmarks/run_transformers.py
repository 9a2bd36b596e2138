"""transformers' `generate` on a workload: one request after another, or static padded batches."""

from __future__ import annotations

import time

import torch
from transformers import AutoModelForCausalLM

from benchmarks.workloads import Job, Run, Workload


class Transformers:
    """The peer: same weights, same dtype, same threads."""

    def __init__(self, model: str, dtype: torch.dtype):
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()

    def one_by_one(self, workload: Workload) -> Run:
        return self._run(workload, 1)

    def static(self, workload: Workload, batch_size: int) -> Run:
        """Batches in order of arrival, padded left to the longest prompt, run until the longest
        answer is done.
        """
        return self._run(workload, batch_size)

    def _run(self, workload: Workload, batch_size: int) -> Run:
        started = time.perf_counter()
        first, ends = 0.0, []
        for i in range(0, len(workload.jobs), batch_size):
            batch = workload.jobs[i : i + batch_size]
            streamer = _FirstToken(started)
            self._generate(batch, streamer)
            first = first or streamer.seconds
            ends += [time.perf_counter() - started] * len(batch)
        return Run(time.perf_counter() - started, first, ends)

    def _generate(self, batch: list[Job], streamer: _FirstToken) -> None:
        longest = max(len(job.prompt) for job in batch)
        ids = torch.tensor([[0] * (longest - len(job.prompt)) + job.prompt for job in batch])
        mask = torch.tensor(
            [[0] * (longest - len(job.prompt)) + [1] * len(job.prompt) for job in batch]
        )
        wanted = max(job.num_output for job in batch)
        with torch.inference_mode():
            self.model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=wanted,
                min_new_tokens=wanted,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=None,
                stopping_criteria=[streamer],
            )


class _FirstToken:
    """A stopping criterion that never stops: it notes when the first token was there."""

    def __init__(self, started: float):
        self.started = started
        self.seconds = 0.0

    def __call__(self, input_ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:
        if not self.seconds:
            self.seconds = time.perf_counter() - self.started
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)
