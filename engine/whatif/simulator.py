"""Run the real core on simulated time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.config import EngineConfig
from engine.core.admission import RequestError
from engine.core.engine_core import EngineCore, MakeScheduler
from engine.core.messages import CoreRequest, KVShape, StepOutput, StepPlan
from engine.core.scheduler import Scheduler
from engine.sampling_params import SamplingParams
from engine.trace import events as ev
from engine.trace.events import Event
from engine.trace.recorder import Recorder
from engine.trace.sequences import request_and_index
from engine.whatif.arrivals import END, Arrival
from engine.whatif.step_times import Shape, shape_of

StepUs = Callable[[Shape], float]
"""Returns the microseconds of a step of this shape."""


class SimulatedClock:
    """Hold the simulated time; reading it doesn't move it."""

    def __init__(self, start_ns: int):
        self.now_ns = start_ns

    def __call__(self) -> int:
        return self.now_ns


@dataclass
class _Computed:
    """Hold a step in flight, and when it ends."""

    output: StepOutput
    end_ns: int
    clock: SimulatedClock

    def result(self) -> StepOutput:
        self.clock.now_ns = max(self.clock.now_ns, self.end_ns)
        return self.output


class SimulatedWorker:
    """Take the place of the worker: draw known tokens, and let each step take its time.

    `parts`: the shares of a step's time in preparing, the model and drawing.
    """

    launches_ahead = True

    def __init__(
        self,
        kv: KVShape,
        arrivals: Sequence[Arrival],
        step_us: StepUs,
        clock: SimulatedClock,
        parts: tuple[float, float, float] = (0.0, 1.0, 0.0),
    ):
        self.kv = kv
        self.clock = clock
        self._arrivals = {arrival.request_id: arrival for arrival in arrivals}
        self._step_us = step_us
        self._parts = parts
        self._busy_until_ns = 0

    def execute(self, plan: StepPlan) -> StepOutput:
        return self.launch(plan).result()

    def launch(self, plan: StepPlan) -> _Computed:
        """Begin a step when the one before has ended."""
        us = self._step_us(shape_of(plan.rows, len(plan.swap_in) + len(plan.swap_out)))
        start = max(self.clock.now_ns, self._busy_until_ns)
        self._busy_until_ns = start + max(1, round(us * 1e3))
        prepare, forward, sample = (us * share for share in self._parts)
        output = StepOutput(
            step=plan.step,
            tokens=[self._drawn(row) for row in plan.rows],
            prepare_us=prepare,
            forward_us=forward,
            sample_us=sample,
        )
        return _Computed(output, self._busy_until_ns, self.clock)

    def _drawn(self, row: ev.StepRow) -> list[int]:
        request, index = request_and_index(row.request_id)
        arrival = self._arrivals[request]
        position = row.start + row.num_tokens
        return [self._token(arrival, index + i, position) for i in range(row.samples)]

    @staticmethod
    def _token(arrival: Arrival, index: int, position: int) -> int:
        """Return the token at a position of a sequence; the last one ends the text."""
        tokens = arrival.tokens[index]
        last = arrival.num_prompt_tokens + arrival.outputs[index] - 1
        if arrival.stops and position >= last:
            return END
        return tokens[min(position, len(tokens) - 1)]


def run(
    arrivals: Sequence[Arrival],
    config: EngineConfig,
    kv: KVShape,
    step_us: StepUs,
    parts: tuple[float, float, float] = (0.0, 1.0, 0.0),
    scheduler: MakeScheduler = Scheduler,
) -> list[Event]:
    """Run the arrivals, by time, through the core to the end, and return its record."""
    clock = SimulatedClock(arrivals[0].at_ns)
    recorder = Recorder(clock=clock, thread=False)
    events: list[Event] = []
    recorder.subscribe(events.extend)
    core = EngineCore(
        config, SimulatedWorker(kv, arrivals, step_us, clock, parts), recorder, scheduler
    )
    recorder.record(ev.EngineStarted(version="what if", config=config.public()))
    recorder.record(
        ev.EngineKvSized(
            num_blocks=kv.num_blocks,
            num_host_blocks=kv.num_host_blocks,
            block_size=kv.block_size,
            bytes_per_block=kv.bytes_per_block,
            max_model_len=kv.max_model_len,
            swap_us_per_block=kv.swap_us_per_block,
            why="simulated",
        )
    )
    coming = 0
    while coming < len(arrivals) or core.has_work:
        if not core.has_work:
            clock.now_ns = max(clock.now_ns, arrivals[coming].at_ns)
        while coming < len(arrivals) and arrivals[coming].at_ns <= clock.now_ns:
            _add(core, arrivals[coming])
            coming += 1
        if core.has_work:
            core.step()
    core.close()
    recorder.flush()
    return events


def _add(core: EngineCore, arrival: Arrival) -> None:
    request = CoreRequest(
        request_id=arrival.request_id,
        prompt_token_ids=arrival.tokens[0][: arrival.num_prompt_tokens],
        params=SamplingParams(max_tokens=arrival.max_tokens, n=arrival.n, seed=0),
        eos_token_ids=[END],
        arrival_ns=arrival.at_ns,
        priority=arrival.priority,
    )
    with contextlib.suppress(RequestError):  # the record says why it was refused
        core.add_request(request)
