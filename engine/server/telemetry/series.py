"""Series for /metrics that cost next to nothing to count: plain numbers, made Prometheus' text only
when somebody asks.

prometheus_client's own counters take a lock and walk through the buckets, some 20 µs for a token
that is one of a thousand in a second. Ours are counted and read on one thread, the event loop's.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

Family = type[CounterMetricFamily] | type[GaugeMetricFamily]


class Numbers:
    """A counter or a gauge: a number for each value of its own label, or one without."""

    def __init__(self, values: Sequence[str]):
        self.by_value = dict.fromkeys(values, 0.0)

    def inc(self, amount: float = 1.0, value: str = "") -> None:
        self.by_value[value] += amount

    def set(self, number: float, value: str = "") -> None:
        self.by_value[value] = number


class Histogram:
    """How many observations lie in each bucket. `bounds`: upper ends, included, ascending."""

    def __init__(self, bounds: Sequence[float]):
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class SeriesSet(Collector):
    """All series of one server, with labels that they share, in a registry of its own."""

    def __init__(self, labels: dict[str, str]):
        self._labels = labels
        self._numbers: list[tuple[Family, str, str, str, Numbers]] = []
        self._histograms: list[tuple[str, str, Histogram]] = []
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def counter(self, name: str, text: str, label: str = "", values: Sequence[str] = ()) -> Numbers:
        """`name` without `_total`; a `label` of its own has one of `values`."""
        return self._add(CounterMetricFamily, name, text, label, values)

    def gauge(self, name: str, text: str, label: str = "", values: Sequence[str] = ()) -> Numbers:
        return self._add(GaugeMetricFamily, name, text, label, values)

    def histogram(self, name: str, text: str, bounds: Sequence[float]) -> Histogram:
        histogram = Histogram(bounds)
        self._histograms.append((name, text, histogram))
        return histogram

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        names, values = list(self._labels), list(self._labels.values())
        for family, name, text, label, numbers in self._numbers:
            metric = family(name, text, labels=[*names, label] if label else names)
            for value, number in numbers.by_value.items():
                metric.add_metric([*values, value] if label else values, number)
            yield metric
        for name, text, histogram in self._histograms:
            bounds = [*map(_bound, histogram.bounds), "+Inf"]
            buckets = list(zip(bounds, map(float, accumulate(histogram.counts))))
            distribution = HistogramMetricFamily(name, text, labels=names)
            distribution.add_metric(values, buckets, histogram.sum)
            yield distribution

    def _add(
        self, family: Family, name: str, text: str, label: str, values: Sequence[str]
    ) -> Numbers:
        numbers = Numbers(values or [""])
        self._numbers.append((family, name, text, label, numbers))
        return numbers


def _bound(bound: float) -> str:
    return str(float(bound))
