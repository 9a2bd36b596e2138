"""Count what an engine in this process does, under the names of the server's /metrics."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.core.messages import StepStats
from engine.text.request_text import RequestText

TOTALS = (
    "prompt_tokens",  # of ended requests
    "generation_tokens",  # of ended requests
    "prefix_cache_queries",
    "prefix_cache_hits",
    "num_preemptions",
)


@dataclass(frozen=True)
class Metric:
    """Hold one number: a `Counter` only grows, a `Gauge` has the current state."""

    name: str
    value: float
    labels: dict[str, str] = field(default_factory=dict)


class Counter(Metric):
    """Hold a count since the start."""


class Gauge(Metric):
    """Hold a current value."""


class Counts:
    """Hold all counts. A step costs a few additions, a token nothing."""

    def __init__(self, model_name: str):
        self._labels = {"model_name": model_name, "engine": "0"}
        self._totals = dict.fromkeys(TOTALS, 0)
        self._last_step = 0
        self._ended = dict.fromkeys(("stop", "length", "abort", "error"), 0)

    def stepped(self, stats: StepStats) -> None:
        """Take the state after a step. A step that is passed again is counted only once."""
        if stats.step == self._last_step:
            return
        self._last_step = stats.step
        if stats.prefix_queries:
            self._totals["prefix_cache_queries"] += stats.prefix_queries
            self._totals["prefix_cache_hits"] += stats.prefix_hits
        self._totals["num_preemptions"] += stats.num_preemptions

    def ended(self, text: RequestText) -> None:
        """Count a request that has ended."""
        self._totals["prompt_tokens"] += len(text.prompt_token_ids)
        for sequence in text.sequences:
            self._totals["generation_tokens"] += len(sequence.token_ids)
            self._ended[sequence.finish_reason or "abort"] += 1

    def metrics(self, stats: StepStats) -> list[Metric]:
        """List all metrics. stats: the current state."""
        used = stats.blocks_used / stats.blocks_total if stats.blocks_total else 0.0
        now = {
            "num_requests_running": stats.num_running,
            "num_requests_waiting": stats.num_waiting,
            "kv_cache_usage_perc": used,
        }
        gauges = [Gauge(f"vllm:{name}", value, self._labels) for name, value in now.items()]
        counters = [Counter(f"vllm:{name}", n, self._labels) for name, n in self._totals.items()]
        ended = [
            Counter("vllm:request_success", n, {**self._labels, "finished_reason": reason})
            for reason, n in self._ended.items()
        ]
        return [*gauges, *counters, *ended]
