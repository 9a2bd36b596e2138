"""A whole engine, core and worker in this process, fed with token ids: no tokenizer, no server."""

from __future__ import annotations

from pathlib import Path

import torch

from engine.config import EngineConfig
from engine.core.engine_core import EngineCore, MakeScheduler
from engine.core.messages import CoreOutput, CoreRequest
from engine.core.scheduler import Scheduler
from engine.sampling_params import SamplingParams
from engine.trace.events import Event
from engine.trace.recorder import Recorder
from engine.worker.in_flight import DrawnTokens
from engine.worker.model_runner import MakeSampleStep, ModelRunner
from engine.worker.sampling.sample_step import SampleStep


class TokenEngine:
    """`run(prompts, …)` gives the answers in order, one list of token ids for each of the n
    sequences.
    """

    def __init__(
        self,
        model: Path,
        sample_step: MakeSampleStep = SampleStep,
        launches_ahead: bool = False,
        scheduler: MakeScheduler = Scheduler,
        level: str = "steps",
        **options,
    ):
        """launches_ahead: as on CUDA, no step is booked before the next one has been launched."""
        defaults = {"dtype": "float32", "device": "cpu", "swap_space": 0.01, "cpu_threads": 1}
        self.config = EngineConfig(model=str(model), **{**defaults, **options})
        self.recorder = Recorder(level=level)
        self.events: list[Event] = []
        self.recorder.subscribe(self.events.extend)
        runner = ModelRunner(self.config, self.recorder, sample_step)
        runner.load()
        if launches_ahead:
            runner.drawn = DrawnTokens(self.config.max_num_seqs)
        self.core = EngineCore(self.config, runner, self.recorder, scheduler)
        self.outputs: dict[str, list[CoreOutput]] = {}

    def run(
        self,
        prompts: list[list[int]],
        params: list[SamplingParams] | None = None,
        **common,
    ) -> list[list[list[int]]]:
        params = params or [SamplingParams(**common) for _ in prompts]
        self.outputs = {f"r{i}": [] for i in range(len(prompts))}
        for i, (prompt, wanted) in enumerate(zip(prompts, params, strict=True)):
            self.core.add_request(
                CoreRequest(request_id=f"r{i}", prompt_token_ids=prompt, params=wanted)
            )
        while self.core.has_work:
            for output in self.core.step():
                self.outputs[output.request_id].append(output)
            self.core.check()
        assert self.core.stats().blocks_used == 0
        return [
            [
                [t for o in self.outputs[f"r{i}"] if o.index == index for t in o.token_ids]
                for index in range(wanted.n)
            ]
            for i, wanted in enumerate(params)
        ]

    def recorded(self, kind: type[Event]) -> list:
        self.recorder.flush()
        return [event for event in self.events if isinstance(event, kind)]

    def forget_events(self) -> None:
        self.recorder.flush()
        self.events.clear()

    def __enter__(self) -> TokenEngine:
        self.threads = torch.get_num_threads()
        return self

    def __exit__(self, *exc) -> None:
        self.core.close()
        self.recorder.close()
        torch.set_num_threads(self.threads)
