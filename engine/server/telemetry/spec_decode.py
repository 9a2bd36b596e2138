"""Count proposed and accepted tokens under vLLM's names, if tokens are proposed at all."""

from __future__ import annotations

from engine.core.messages import StepStats
from engine.server.telemetry.series import SeriesSet


class SpecDecodeSeries:
    """Hold the series of one server. A draft is what a step checks for one sequence."""

    def __init__(self, series: SeriesSet, most: int) -> None:
        """Add the series. most: tokens of a draft."""
        name = "vllm:spec_decode_num"
        self._drafts = series.counter(f"{name}_drafts", "Drafts that were checked.")
        self._proposed = series.counter(f"{name}_draft_tokens", "Tokens in them.")
        self._accepted = series.counter(
            f"{name}_accepted_tokens", "Of these, tokens that were drawn, so that they count."
        )
        self._by_place = series.counter(
            f"{name}_accepted_tokens_per_pos",
            "The same by the token's place in its draft, from 0.",
            ("position",),
            [(str(place),) for place in range(most)],
        )

    def observe(self, stats: StepStats) -> None:
        """Add the counts of one step."""
        if not stats.num_drafts:
            return
        self._drafts.inc(stats.num_drafts)
        self._proposed.inc(stats.num_proposed)
        self._accepted.inc(sum(stats.accepted))
        for place, count in enumerate(stats.accepted):
            self._by_place.inc(count, (str(place),))
