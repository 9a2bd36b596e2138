"""Run Glasshouse on a workload, in this process: core and worker, no tokenizer, no HTTP."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.workloads import Run, Workload
from engine.config import EngineConfig
from engine.core.engine_core import EngineCore
from engine.core.garbage_collection import quiet_collector
from engine.core.messages import CoreRequest
from engine.sampling_params import SamplingParams
from engine.structured_outputs import StructuredOutputsParams
from engine.text.form_cache import FormCache
from engine.text.loading import load_text
from engine.trace.events import Event
from engine.trace.files import unpack
from engine.trace.packing_recorder import PackingRecorder
from engine.worker.model_runner import ModelRunner
from engine.worker.sampling.grammar_compiler import CompiledGrammar


class Engine:
    """Load one model once; `run` a workload any number of times."""

    def __init__(self, model: str, dtype: str, trace: str = "steps", **options):
        config = EngineConfig(
            model=model, dtype=dtype, trace=trace, enable_prefix_caching=False, **options
        )
        self._messages: list[bytes] = []
        self.recorder = PackingRecorder(self._messages.append, trace)  # as the engine process has
        runner = ModelRunner(config, self.recorder)
        runner.load()
        self.cores = runner.cores
        self.core = EngineCore(config, runner, self.recorder)

    @contextmanager
    def looping(self) -> Iterator[None]:
        """Give steps inside the conditions of the engine process's loop."""
        with self.cores, quiet_collector():
            yield

    def run(self, workload: Workload, grammar: CompiledGrammar | None = None) -> Run:
        with self.looping():
            return self._run(workload, grammar)

    def _run(self, workload: Workload, grammar: CompiledGrammar | None) -> Run:
        core = self.core
        started = time.perf_counter()
        first, ends, steps = 0.0, [], 0
        self._add(workload, grammar)
        while core.has_work:
            outputs = core.step()
            steps += 1
            now = time.perf_counter() - started
            if outputs and not first:
                first = now
            ends += [now for output in outputs if output.finish_reason]
        return Run(time.perf_counter() - started, first, ends, steps)

    def answers(self, workload: Workload) -> list[list[int]]:
        """Return the greedy tokens of each request of a workload."""
        found: dict[str, list[int]] = {name: [] for name in self._add(workload)}
        while self.core.has_work:
            for output in self.core.step():
                found[output.request_id] += output.token_ids
        return list(found.values())

    def _add(self, workload: Workload, grammar: CompiledGrammar | None = None) -> list[str]:
        """Give all requests of a workload to the core, and return their names."""
        names = []
        for i, job in enumerate(workload.jobs):
            params = SamplingParams(
                temperature=0.0, max_tokens=job.num_output, ignore_eos=True, seed=0
            )
            names.append(f"{workload.name}-{i}")
            self.core.add_request(
                CoreRequest(request_id=names[-1], prompt_token_ids=job.prompt, params=params),
                grammar,
            )
        return names

    def events(self) -> list[Event]:
        """Return what was recorded since the last call."""
        self.recorder.flush()
        messages, self._messages[:] = list(self._messages), []
        return [event for message in messages for event in unpack(message)]

    def close(self) -> None:
        self.core.close()
        self.recorder.close()


def compiled(engine: Engine, model: str, schema: dict[str, Any]) -> CompiledGrammar:
    """Compile a JSON schema for the model that the engine has loaded."""
    forms = FormCache(load_text(EngineConfig(model=model))[0])
    grammars = engine.core.executor.grammars  # type: ignore[attr-defined]
    grammars.set_tokenizer(forms.source())
    return grammars.compile(forms.find(StructuredOutputsParams(json=schema)).grammar)
