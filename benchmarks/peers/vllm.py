"""Run vLLM on a workload, in this process: its engine's own loop, no tokenizer, no HTTP.

Runs in vLLM's environment. The engine core is kept in this process as ours is: with it in a second
one, both would share the same few cores, and vLLM would lose.
"""

from __future__ import annotations

import itertools
import os
import time
from typing import Any

from benchmarks.peers.limits import CACHE_BYTES, MAX_MODEL_LEN
from benchmarks.workloads import Run, Workload


def settings(threads: int, cores: list[int], in_process: bool = True) -> dict[str, str]:
    """Return environment variables that give vLLM the cores and the memory that the others have.

    in_process: its engine core isn't to be a process of its own.
    """
    return {
        "VLLM_ENABLE_V1_MULTIPROCESSING": str(int(not in_process)),
        "VLLM_CPU_KVCACHE_SPACE": str(CACHE_BYTES // 2**30),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores[:threads])),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }


class Vllm:
    """Load one model once; `run` a workload any number of times.

    `schema`: what the answers of a run that is `held` must be. A grammar needs a tokenizer.
    """

    def __init__(self, model: str, dtype: str, threads: int, schema: dict[str, Any] | None = None):
        os.environ.update(settings(threads, sorted(os.sched_getaffinity(0))))
        from vllm import LLM  # reads the environment when it is imported

        llm = LLM(
            model=model,
            dtype=dtype,
            max_model_len=MAX_MODEL_LEN,
            enable_prefix_caching=False,
            skip_tokenizer_init=schema is None,
            structured_outputs_config={"backend": "xgrammar"},
            disable_log_stats=True,
        )
        self.schema = schema
        self.engine = llm.llm_engine
        self.numbers = itertools.count()

    def versions(self) -> dict[str, str]:
        from importlib.metadata import version

        names = ("vllm-cpu", "torch", *(() if self.schema is None else ("xgrammar",)))
        return {name: version(name) for name in names}

    def run(self, workload: Workload, held: bool = False) -> Run:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        form = StructuredOutputsParams(json=self.schema) if held else None
        started = time.perf_counter()
        first, ends, steps = 0.0, [], 0
        for job in workload.jobs:
            params = SamplingParams(
                temperature=0.0,
                max_tokens=job.num_output,
                ignore_eos=True,
                detokenize=False,
                structured_outputs=form,
                output_kind=RequestOutputKind.DELTA,
            )
            self.engine.add_request(
                str(next(self.numbers)), {"prompt_token_ids": job.prompt}, params
            )
        num_tokens = 0
        while self.engine.has_unfinished_requests():
            outputs = self.engine.step()
            steps += 1
            now = time.perf_counter() - started
            if outputs and not first:
                first = now
            num_tokens += sum(len(output.outputs[0].token_ids) for output in outputs)
            ends += [now for output in outputs if output.finished]
        run = Run(time.perf_counter() - started, first, ends, steps)
        if num_tokens != workload.num_output:
            raise RuntimeError(f"{num_tokens} tokens came, {workload.num_output} were asked for")
        return run
