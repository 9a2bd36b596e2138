"""vLLM's counters of proposed tokens: each step once, and only if tokens are proposed."""

from __future__ import annotations

from engine.config import EngineConfig
from engine.core.messages import StepStats
from engine.server.telemetry.metrics import Metrics

PREFIX = "vllm:spec_decode_num_"
LOOKUP = {"method": "ngram", "num_speculative_tokens": 3}


def counted(metrics: Metrics) -> dict[str, float]:
    """Return the numbers by name, the last ones with their position."""
    found = {}
    for line in metrics.series.text().decode().splitlines():
        if line.startswith(PREFIX):
            name, _, number = line.removeprefix(PREFIX).rpartition(" ")
            name, _, labels = name.partition("{")
            place = labels.partition('position="')[2].partition('"')[0]
            found[f"{name} {place}".strip()] = float(number)
    return found


def test_each_step_is_counted_once():
    metrics = Metrics(EngineConfig(speculative_config=LOOKUP))
    assert set(counted(metrics).values()) == {0.0}, "rates need a beginning"
    step = StepStats(step=4, told_step=4, tokens_told=5, num_drafts=2, num_proposed=5)
    step.accepted = [2, 1, 0]
    metrics.observe_step(step)
    metrics.observe_step(step)
    metrics.observe_step(StepStats(step=5, told_step=5, tokens_told=2))
    assert counted(metrics) == {
        "drafts_total": 2,
        "draft_tokens_total": 5,
        "accepted_tokens_total": 3,
        "accepted_tokens_per_pos_total 0": 2,
        "accepted_tokens_per_pos_total 1": 1,
        "accepted_tokens_per_pos_total 2": 0,
    }


def test_without_proposals_there_are_no_such_series():
    assert not counted(Metrics(EngineConfig()))
