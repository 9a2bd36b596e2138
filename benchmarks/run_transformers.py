"""Run transformers on a workload: `generate`, and its continuous batching.

`generate` runs one request after another, or static padded batches.
"""

from __future__ import annotations

import time

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from benchmarks.workloads import Job, Run, Workload

CPU = torch.device("cpu")


class Transformers:
    """Run the peer: same weights, same dtype, same threads."""

    def __init__(self, model: str, dtype: torch.dtype, device: torch.device = CPU):
        self.model = (
            AutoModelForCausalLM.from_pretrained(model, dtype=dtype, trust_remote_code=False)
            .eval()
            .to(device)
        )

    def one_by_one(self, workload: Workload) -> Run:
        return self._run(workload, 1)

    def static(self, workload: Workload, batch_size: int) -> Run:
        """Run batches in order of arrival, padded left to the longest prompt.

        Each runs until its longest answer is done.
        """
        return self._run(workload, batch_size)

    def continuous(self, workload: Workload) -> Run:
        """Run all at once; requests join and leave the batch as they begin and end.

        Its start (memory, CUDA graphs) isn't counted. Raises RuntimeError when its loop dies.
        """
        kinds = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
        sizes = None  # its own choice
        if self.model.device.type == "cpu":  # where it would take half of the host's memory
            sizes = ContinuousBatchingConfig(num_blocks=64, max_batch_tokens=256)
        ends: list[float] = []
        with self.model.continuous_batching_context_manager(
            generation_config=kinds, continuous_batching_config=sizes, block=True, timeout=60
        ) as manager:
            started, first = time.perf_counter(), 0.0
            for job in workload.jobs:
                manager.add_request(
                    job.prompt, max_new_tokens=job.num_output, record_timestamps=True
                )
            while len(ends) < len(workload.jobs):
                made = manager.get_result(timeout=1)
                if made is None:
                    if not manager.is_running():
                        raise RuntimeError("its loop ended before its requests did")
                    continue
                if made.error is not None:
                    raise RuntimeError(made.error)
                if made.is_finished():
                    ends.append(time.perf_counter() - started)
                    times = getattr(made, "timestamps", None) or [time.perf_counter()]
                    first = min(first or times[0] - started, times[0] - started)
            total = time.perf_counter() - started
        return Run(total, first, ends)

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
                ids.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                max_new_tokens=wanted,
                min_new_tokens=wanted,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=None,
                stopping_criteria=[streamer],
            )


class _FirstToken:
    """Note when the first token was there: a stopping criterion that never stops."""

    def __init__(self, started: float):
        self.started = started
        self.seconds = 0.0

    def __call__(self, input_ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:
        if not self.seconds:
            self.seconds = time.perf_counter() - self.started
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
