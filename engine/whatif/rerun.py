"""Answer "what if": run a record's load with its own settings, and with others.

The run with its own settings says how good the model is: it stands beside what really happened. So
each answer carries the model's error on this very record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.config import EngineConfig
from engine.core.engine_core import MakeScheduler
from engine.core.messages import KVShape
from engine.core.scheduler import Scheduler
from engine.trace import events as ev
from engine.trace.events import Event
from engine.whatif.arrivals import Workload, workload
from engine.whatif.measures import Measures, measure
from engine.whatif.simulator import run
from engine.whatif.step_times import StepTimes, observed

SETTINGS = (
    "max_num_seqs", "max_num_batched_tokens", "scheduling_policy", "preemption_mode",
    "enable_prefix_caching", "async_scheduling", "block_size",
)  # fmt: skip
"""Options of the engine that decide how a load is scheduled; the pool's size stands beside them."""


@dataclass
class WhatIf:
    """Hold an answer: three measures of the same arrivals, and the new record."""

    recorded: Measures
    again: Measures  # simulated with the record's own settings
    other: Measures  # simulated with other settings
    events: list[Event]  # of the other run
    step_error: float  # median, relative: of single steps that the fit hasn't seen
    cost_us: list[float]  # as `step_times.fit` returns it
    load: Workload
    notes: list[str]


def what_if(
    events: Sequence[Event],
    changes: Mapping[str, Any],
    scheduler: MakeScheduler = Scheduler,
    seed: int = 0,
) -> WhatIf:
    """Answer for these changes: names of SETTINGS, `num_gpu_blocks`, `num_host_blocks`.

    Raises ValueError if the record lacks what is needed, ConfigError for impossible settings.
    """
    load = workload(events)
    times = StepTimes(events, seed)
    config, kv = recorded_settings(events)
    arrived = None
    if load.has_arrivals:
        arrived = {arrival.request_id: arrival.at_ns for arrival in load.arrivals}
    again = run(load.arrivals, EngineConfig(**config), kv, times.draw_us, times.parts)
    other_config, other_kv = _changed(config, kv, changes)
    other_times = StepTimes(events, seed)  # the same luck for both
    other = run(
        load.arrivals, EngineConfig(**other_config), other_kv, other_times.draw_us, times.parts,
        scheduler,
    )  # fmt: skip
    notes = list(load.notes)
    if kv.block_size and other_kv.block_size % kv.block_size:
        notes.append(
            f"blocks of {other_kv.block_size} tokens are no multiple of the recorded"
            f" {kv.block_size}: hits in the prefix cache are too few"
        )
    largest = max(prompt for (prompt, *_rest), _us in times.steps)
    beyond = sum(prompt > 1.5 * largest for (prompt, *_rest), _us in observed(other))
    if beyond:
        notes.append(
            f"{beyond} steps compute more prompt tokens than 1.5 × any step of the record"
            f" ({largest}): their times are extrapolated"
        )
    return WhatIf(
        recorded=measure(events, arrived),
        again=measure(again, arrived),
        other=measure(other, arrived),
        events=other,
        step_error=times.error,
        cost_us=times.cost,
        load=load,
        notes=notes,
    )


def recorded_settings(events: Sequence[Event]) -> tuple[dict[str, Any], KVShape]:
    """Return the settings and the pool of a record. Raises ValueError if it doesn't tell them."""
    started: ev.EngineStarted | None = None
    sized: ev.EngineKvSized | None = None
    loop = ""
    for event in events:
        known = event.standing if isinstance(event, ev.EngineSnapshot) else [event]
        for one in known:
            if isinstance(one, ev.EngineStarted):
                started = one
            elif isinstance(one, ev.EngineKvSized):
                sized = one
            elif isinstance(one, ev.StepFinished):
                loop = loop or one.loop
    if started is None or sized is None:
        raise ValueError("the record doesn't tell the engine's settings and the size of its pool")
    config = {name: started.config[name] for name in SETTINGS if name in started.config}
    config["async_scheduling"] = loop == "overlapped"
    config["block_size"] = sized.block_size
    if config.get("max_num_batched_tokens") is None:
        budgets = [e.budget for e in events if isinstance(e, ev.StepPlanned) and e.budget]
        config["max_num_batched_tokens"] = budgets[0] if budgets else None
    kv = KVShape(
        num_blocks=sized.num_blocks,
        num_host_blocks=sized.num_host_blocks,
        block_size=sized.block_size,
        bytes_per_block=sized.bytes_per_block,
        max_model_len=sized.max_model_len or sized.num_blocks * sized.block_size,
        vocab_size=0,
        swap_us_per_block=sized.swap_us_per_block,
    )
    return config, kv


def _changed(
    config: Mapping[str, Any], kv: KVShape, changes: Mapping[str, Any]
) -> tuple[dict[str, Any], KVShape]:
    """Apply the changes; another block size keeps the pool's tokens, if its size isn't given."""
    other = {**config, **{name: changes[name] for name in SETTINGS if name in changes}}
    size = other["block_size"]
    tokens, host_tokens = kv.num_blocks * kv.block_size, kv.num_host_blocks * kv.block_size
    per_token = kv.bytes_per_block / kv.block_size
    return other, KVShape(
        num_blocks=changes.get("num_gpu_blocks", tokens // size),
        num_host_blocks=changes.get("num_host_blocks", host_tokens // size),
        block_size=size,
        bytes_per_block=round(per_token * size),
        max_model_len=kv.max_model_len,
        vocab_size=kv.vocab_size,
        swap_us_per_block=kv.swap_us_per_block * size / kv.block_size,
    )
