"""Load one engine, and run requests on it.

The model is loaded once. Each run gets a new core (queues, block pool, prefix cache) over the same
worker, with as few blocks and seats as the chapter wants, and returns the core's own record.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path

import msgspec
import torch

from engine.config import EngineConfig
from engine.core.engine_core import EngineCore, MakeScheduler
from engine.core.messages import CoreRequest, KVShape, StepOutput, StepPlan
from engine.core.scheduler import Scheduler
from engine.kernels.batch import AttentionBatch
from engine.models.description import read_config
from engine.models.hub import find_model
from engine.models.loader import choose_dtype
from engine.rounding import ceil_div
from engine.sampling_params import SamplingParams
from engine.text.loading import load_tokenizer
from engine.trace.events import EngineKvSized, EngineModelLoaded, Event, StepFinished, StepPlanned
from engine.trace.recorder import Recorder
from engine.worker import host
from engine.worker.model_runner import ModelRunner
from engine.worker.sampling.grammar_compiler import CompiledGrammar
from lab.limits import Limits, cores_of_others, measure_limits, threads

SEATS = 64
TURNS = 3
PATIENCE_S = 5.0  # no third turn after so long: two show how far tries lie apart
CUDA_SHARE = 0.5  # of the GPU's memory: the last chapter loads transformers' model beside ours


@dataclass(frozen=True)
class Job:
    """Describe one request: greedy, and to its full length, unless `params` says otherwise."""

    name: str
    prompt: list[int]
    num_output: int
    params: SamplingParams | None = None
    in_full: bool = False  # record every draw of it
    after_steps: int = 0  # handed over when its batch has had so many steps
    grammar: CompiledGrammar | None = None  # which its text follows

    def request(self) -> CoreRequest:
        params = self.params or SamplingParams(
            temperature=0.0, max_tokens=self.num_output, ignore_eos=True, seed=0
        )
        return CoreRequest(
            request_id=self.name,
            prompt_token_ids=self.prompt,
            params=params,
            trace_full=self.in_full,
        )


@dataclass
class Step:
    """Hold one step of a record: what was planned, and what it took."""

    planned: StepPlanned
    finished: StepFinished

    @property
    def tokens_held(self) -> int:
        """Return the tokens whose K/V are in the cache after this step, of the requests in it."""
        return sum(row.start + row.num_tokens for row in self.planned.rows)


@dataclass
class Run:
    """Hold what a run recorded.

    Times are seconds since the request's batch was handed over (`first_s`), or since the run began
    (`end_s`).
    """

    kv: KVShape
    seconds: float = 0.0
    tokens: dict[str, list[int]] = field(default_factory=dict)  # drawn, by request
    first_s: dict[str, float] = field(default_factory=dict)
    end_s: dict[str, float] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)

    def of(self, kind: type[Event]) -> list:
        return [event for event in self.events if type(event) is kind]

    @cached_property
    def steps(self) -> list[Step]:
        planned = {event.step: event for event in self.of(StepPlanned)}
        return [Step(planned[event.step], event) for event in self.of(StepFinished)]

    @property
    def num_computed(self) -> int:
        return sum(step.finished.num_tokens for step in self.steps)

    @property
    def num_output(self) -> int:
        return sum(map(len, self.tokens.values()))

    def memory_efficiency(self) -> float:
        """Return tokens in the cache over slots in use, on average over the run's steps."""
        size = self.kv.block_size
        return statistics.mean(
            step.tokens_held / (step.planned.blocks_used * size)
            for step in self.steps
            if step.planned.blocks_used
        )


@dataclass(frozen=True)
class StepCost:
    """Hold the measured time of a step here, in seconds.

    `fixed` for the step itself, `row` for each decoding request, `token` for each prompt token.
    """

    fixed: float
    row: float
    token: float

    def decode(self, rows: float) -> float:
        return self.fixed + self.row * rows

    def prefill(self, tokens: int) -> float:
        return self.fixed + self.token * tokens


class Workbench:
    """Run requests on one loaded engine.

    `model`: a folder or a hub id. `text`: prompts are cut from it. `policy`: a scheduler to show
    beside the engine's. Loads nothing at first but config.json and the tokenizer. Raises
    `ModelError` or `TextError`.
    """

    def __init__(self, model: str, quick: bool, text: str, policy: type[Scheduler] | None = None):
        self.quick = quick
        self.policy = policy
        self.device = host.pick_device("auto")
        on_gpu = self.device.type == "cuda"
        self.busy = cores_of_others()
        self.config = EngineConfig(
            model=model,
            hf_token=os.environ.get("HF_TOKEN"),
            max_num_seqs=SEATS,
            cpu_threads=threads(self.busy),
            gpu_memory_utilization=CUDA_SHARE if on_gpu else 0.9,
        )
        if not on_gpu:
            torch.set_num_threads(self.config.cpu_threads)
        self.folder = find_model(model, None, self.config.hf_token)
        self.description = read_config(self.folder).get_text_config()
        self.dtype = choose_dtype("auto", self.description, self.device)
        self.tokenizer = load_tokenizer(str(self.folder))
        self._text_ids = self.tokenizer.encode(text, add_special_tokens=False)
        self.recorder = Recorder("steps")
        self.start_events: list[Event] = []  # of loading
        self._numbers = count()

    @cached_property
    def limits(self) -> Limits:
        return measure_limits(self.device, self.dtype)

    @cached_property
    def runner(self) -> ModelRunner:
        """Return the worker, loaded at the first call."""
        runner = ModelRunner(self.config, self.recorder)
        self.recorder.subscribe(self.start_events.extend)
        runner.load()
        self.recorder.flush()
        self.recorder.unsubscribe(self.start_events.extend)
        return runner

    def start_event(self, kind: type[Event]) -> Event:
        """Return what the engine recorded while it loaded."""
        assert self.runner
        return next(event for event in self.start_events if type(event) is kind)

    def beside(self, folder: Path, num_blocks: int) -> Workbench:
        """Return a bench for another model of the same tokenizer, with so few blocks.

        Its record is this one's, which is closed with this one.
        """
        other = copy.copy(self)
        for known in ("runner", "step_cost"):
            vars(other).pop(known, None)
        other.config = dataclasses.replace(
            self.config,
            model=str(folder),
            num_gpu_blocks_override=num_blocks,
            max_model_len=min(self.kv.max_model_len, num_blocks * self.kv.block_size),
        )
        other.folder, other.start_events = folder, []
        return other

    @property
    def loaded(self) -> EngineModelLoaded:
        return self.start_event(EngineModelLoaded)  # type: ignore[return-value]

    @property
    def sized(self) -> EngineKvSized:
        return self.start_event(EngineKvSized)  # type: ignore[return-value]

    @property
    def kv(self) -> KVShape:
        return self.runner.kv

    def prompt(self, length: int, number: int = 0) -> list[int]:
        """Return `length` token ids of real text; different numbers begin at different places."""
        ids = self._text_ids
        start = 61 * number % len(ids)
        repeated = ids[start:] + ids * (1 + length // len(ids))
        return repeated[:length]

    # ------------------------------------------------------------------------------ running

    def run(
        self,
        batches: list[list[Job]],
        num_blocks: int = 0,
        scheduler: MakeScheduler = Scheduler,
        **options,
    ) -> Run:
        """Hand over a batch, run until all of it is done, then hand over the next.

        `num_blocks`: the pool's size, 0 for all blocks; `options`: fields of EngineConfig.
        """
        pool = _Pool(self.runner, num_blocks or self.kv.num_blocks)
        options = {"enable_prefix_caching": False, **options}
        config = dataclasses.replace(self.config, **options)
        core = EngineCore(config, pool, self.recorder, scheduler)
        run = Run(pool.kv)
        self.recorder.flush()
        self.recorder.subscribe(run.events.extend)
        started = time.perf_counter()
        try:
            for batch in batches:
                self._run_batch(core, batch, run, started)
            run.seconds = time.perf_counter() - started
        finally:
            core.close()
            self.recorder.flush()
            self.recorder.unsubscribe(run.events.extend)
            names = [job.name for batch in batches for job in batch]
            self.runner.execute(StepPlan(step=0, rows=[], dropped=names))
        return run

    def _run_batch(self, core: EngineCore, batch: list[Job], run: Run, started: float) -> None:
        handed_over = time.perf_counter()
        later = sorted(batch, key=lambda job: job.after_steps)
        steps = 0
        while core.has_work or later:
            while later and later[0].after_steps <= steps:
                job = later.pop(0)
                core.add_request(job.request(), job.grammar)
            steps += 1
            for output in core.step():
                now = time.perf_counter()
                run.tokens.setdefault(output.request_id, []).extend(output.token_ids)
                run.first_s.setdefault(output.request_id, now - handed_over)
                if output.finish_reason:
                    run.end_s[output.request_id] = now - started

    def in_turns(self, ways: dict[str, Callable[[], Run]]) -> dict[str, Run]:
        """Return the fastest of several runs of each way; see `tries`."""
        tries = self.tries(ways)
        return {name: min(runs, key=lambda run: run.seconds) for name, runs in tries.items()}

    def tries(self, ways: dict[str, Callable[[], Run]]) -> dict[str, list[Run]]:
        """Run each way several times, in turns, and return all runs.

        So whatever else the machine does affects all ways.
        """
        runs: dict[str, list[Run]] = {name: [] for name in ways}
        started = time.perf_counter()
        for turn in range(TURNS):
            if turn > 1 and time.perf_counter() - started > PATIENCE_S:
                break
            for name, way in ways.items():
                runs[name].append(way())
        return runs

    @torch.inference_mode()
    def next_logits(self, prompt: list[int]) -> torch.Tensor:
        """Return the model's logits for the token after `prompt`: fp32 [vocab].

        No other run may be in progress, because this writes to the first blocks.
        """
        size, length = self.kv.block_size, len(prompt)
        batch = row_of(length, list(range(ceil_div(length, size))), size, self.device)
        ids = torch.tensor(prompt, device=self.device)
        model = self.runner.model
        hidden = model(ids, batch.positions, self.runner.cache.layers, batch)
        return model.compute_logits(hidden[-1:])[0].float()

    @cached_property
    def step_cost(self) -> StepCost:
        """Measure a step on a few short runs, the first of which is not counted."""
        short, long = 16, max(32, min(256, self.kv.max_model_len // 2))
        steps = 12
        self._decode_seconds(2, steps)
        one, many = self._decode_seconds(1, steps), self._decode_seconds(8, steps)
        row = min(max(0.0, (many - one) / 7), one)  # noise must not make a step cost less than 0
        some, more = self._prefill_seconds(short), self._prefill_seconds(long)
        return StepCost(one - row, row, max(0.0, (more - some) / (long - short)))

    def _decode_seconds(self, rows: int, steps: int) -> float:
        jobs = [Job(f"calibrate-{next(self._numbers)}", self.prompt(16, i), steps)
                for i in range(rows)]  # fmt: skip
        run = self.run([jobs])
        return statistics.median(step.finished.total_us for step in run.steps[1:]) / 1e6

    def _prefill_seconds(self, length: int) -> float:
        jobs = [[Job(f"calibrate-{next(self._numbers)}", self.prompt(length, i), 1)]
                for i in range(3)]  # fmt: skip
        run = self.run(jobs)
        return statistics.median(step.finished.total_us for step in run.steps) / 1e6

    def close(self) -> None:
        self.recorder.close()


class _Pool:
    """Present the worker to a core that may use only some of its blocks."""

    def __init__(self, runner: ModelRunner, num_blocks: int):
        self._runner = runner
        self.kv = msgspec.structs.replace(runner.kv, num_blocks=num_blocks)

    def execute(self, plan: StepPlan) -> StepOutput:
        return self._runner.execute(plan)


def row_of(length: int, blocks: list[int], block_size: int, device: torch.device) -> AttentionBatch:
    """Make a step of one row that computes all `length` tokens of a sequence, in these blocks."""
    positions = torch.arange(length, device=device)
    table = torch.tensor([blocks], dtype=torch.int32, device=device)
    return AttentionBatch(
        positions=positions,
        slot_mapping=table[0].long()[positions // block_size] * block_size + positions % block_size,
        block_tables=table,
        query_start=torch.tensor([0, length], dtype=torch.int32, device=device),
        context_lens=torch.tensor([length], dtype=torch.int32, device=device),
        num_decode_rows=int(length == 1),
        block_size=block_size,
        query_lens=[length],
        context_lens_list=[length],
        max_context_len=length,
    )
