"""Glasshouse on a workload, in this process: core and worker, no tokenizer, no HTTP."""

from __future__ import annotations

import gc
import time

from benchmarks.workloads import Run, Workload
from engine.config import EngineConfig
from engine.core.engine_core import EngineCore
from engine.core.messages import CoreRequest
from engine.sampling_params import SamplingParams
from engine.trace.recorder import Recorder
from engine.worker.model_runner import ModelRunner


class Engine:
    """One model loaded once; `run` a workload as often as wanted."""

    def __init__(self, model: str, dtype: str, trace: str = "steps", **options):
        config = EngineConfig(
            model=model, dtype=dtype, trace=trace, enable_prefix_caching=False, **options
        )
        self.recorder = Recorder(level=trace)
        self.recorder.subscribe(lambda batch: None)
        runner = ModelRunner(config, self.recorder)
        runner.load()
        self.cores = runner.cores
        self.core = EngineCore(config, runner, self.recorder)
        # like the server: to walk through all that is loaded would stop a run for up to 270 ms
        gc.collect()
        gc.freeze()

    def run(self, workload: Workload) -> Run:
        with self.cores:
            return self._run(workload)

    def _run(self, workload: Workload) -> Run:
        core = self.core
        started = time.perf_counter()
        first, ends, steps = 0.0, [], 0
        for i, job in enumerate(workload.jobs):
            params = SamplingParams(
                temperature=0.0, max_tokens=job.num_output, ignore_eos=True, seed=0
            )
            core.add_request(
                CoreRequest(
                    request_id=f"{workload.name}-{i}", prompt_token_ids=job.prompt, params=params
                )
            )
        while core.has_work:
            outputs = core.step()
            steps += 1
            now = time.perf_counter() - started
            if outputs and not first:
                first = now
            ends += [now for output in outputs if output.finish_reason]
        return Run(time.perf_counter() - started, first, ends, steps)

    def close(self) -> None:
        self.core.close()
        self.recorder.close()
        gc.unfreeze()
