"""Count HTTP answers and their times by route, as vLLM's dashboards query them."""

from __future__ import annotations

from engine.server.telemetry.series import SeriesSet

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
PROBES = frozenset({"/metrics", "/health", "/load", "/ping", "/version"})
"""Paths that machines poll: their many answers would hide those to people."""


class HttpSeries:
    """Count each answer when it is over; a stream's time is that of the whole stream."""

    def __init__(self) -> None:
        self._series = SeriesSet({})
        self._requests = self._series.counter(
            "http_requests",
            "Answers by route, method and class of status; probes are left out.",
            ("handler", "method", "status"),
        )
        self._seconds = self._series.histograms(
            "http_request_duration_seconds",
            "Time from a request to the end of its answer.",
            _SECONDS,
            ("handler", "method"),
        )

    def observe(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count an answer. `route`: as declared, so that there are few; "none" without one."""
        if route not in PROBES:
            self._requests.inc(1, (route, method, f"{status // 100}xx"))
            self._seconds.observe(seconds, (route, method))

    def text(self) -> bytes:
        return self._series.text()
