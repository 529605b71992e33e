"""The service's metrics in Prometheus' text format.

They are counted here and only rendered by prometheus_client: its own counters turn into files
shared by all processes as soon as an environment variable is set, and importing Feast sets it.
"""

import threading
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from serving.freshness import ViewAge
from serving.impressions import ImpressionLog

BOUNDS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Metrics(Collector):
    """Counts of one service; safe to use from several threads.

    Parameters
    ----------
    bundle
        Returns the id of the bundle that answers.
    ages
        Returns how old its feature views are.
    impressions
        The log of what was shown; None: there is none.
    """

    def __init__(
        self,
        bundle: Callable[[], str | None],
        ages: Callable[[], list[ViewAge]],
        impressions: ImpressionLog | None = None,
    ) -> None:
        self._bundle = bundle
        self._ages = ages
        self._impressions = impressions
        self._guard = threading.Lock()
        self._requests: Counter[tuple[str, str]] = Counter()
        self._degraded: Counter[str] = Counter()
        self._events: Counter[str] = Counter()
        # By endpoint: requests per bucket, the last one without a bound; and the sum of seconds.
        self._buckets: dict[str, list[int]] = defaultdict(lambda: [0] * (len(BOUNDS_S) + 1))
        self._seconds: dict[str, float] = defaultdict(float)
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def count_request(self, endpoint: str, status: int, seconds: float) -> None:
        """Count one answered request."""
        with self._guard:
            self._requests[endpoint, str(status)] += 1
            self._buckets[endpoint][bisect_left(BOUNDS_S, seconds)] += 1
            self._seconds[endpoint] += seconds

    def count_degraded(self, reasons: Iterable[str]) -> None:
        """Count one degraded answer under each of its reasons."""
        with self._guard:
            self._degraded.update(reasons)

    def count_events(self, statuses: Iterable[str]) -> None:
        """Count events that were sent, each under what became of it."""
        with self._guard:
            self._events.update(statuses)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; prometheus_client calls this."""
        with self._guard:
            yield from [self._requests_family(), self._seconds_family()]
            yield from [self._degraded_family(), self._events_family()]
        if self._impressions is not None:
            yield from _impression_families(self._impressions)
        bundle = GaugeMetricFamily(
            "feastrank_bundle", "1 for the bundle that answers.", labels=["bundle"]
        )
        generation = self._bundle()
        if generation is not None:
            bundle.add_metric([generation], 1)
        yield bundle
        yield from self._age_families()

    def _age_families(self) -> Iterator[Metric]:
        ages = self._ages()
        for name, text, values in (
            (
                "feastrank_view_age_seconds",
                "Time from the moment a feature view is materialized until to the moment that "
                "answers are for.",
                {one.view: one.age_s for one in ages},
            ),
            (
                "feastrank_view_event_age_seconds",
                "The same from the view's newest event time.",
                {one.view: one.event_age_s for one in ages},
            ),
            (
                "feastrank_view_stale",
                "1 for a view that is older than allowed.",
                {one.view: float(one.is_stale) for one in ages},
            ),
        ):
            family = GaugeMetricFamily(name, text, labels=["view"])
            for view, value in values.items():
                if value is not None:
                    family.add_metric([view], value)
            yield family

    def _requests_family(self) -> Metric:
        family = CounterMetricFamily(
            "feastrank_requests", "Requests answered.", labels=["endpoint", "status"]
        )
        for labels, count in self._requests.items():
            family.add_metric(labels, count)
        return family

    def _degraded_family(self) -> Metric:
        family = CounterMetricFamily(
            "feastrank_degraded", "Degraded answers, by reason.", labels=["reason"]
        )
        for reason, count in self._degraded.items():
            family.add_metric([reason], count)
        return family

    def _events_family(self) -> Metric:
        family = CounterMetricFamily(
            "feastrank_events", "Events sent, by what became of them.", labels=["status"]
        )
        for status, count in self._events.items():
            family.add_metric([status], count)
        return family

    def _seconds_family(self) -> Metric:
        family = HistogramMetricFamily(
            "feastrank_request_seconds",
            "Time from a request's arrival to the end of its answer.",
            labels=["endpoint"],
        )
        bounds = [*map(str, BOUNDS_S), "+Inf"]
        for endpoint, counts in self._buckets.items():
            cumulative = list(zip(bounds, accumulate(counts), strict=True))
            family.add_metric([endpoint], cumulative, self._seconds[endpoint])
        return family


def _impression_families(log: ImpressionLog) -> Iterator[Metric]:
    family = CounterMetricFamily(
        "feastrank_impressions", "Sampled answers, by what became of them.", labels=["outcome"]
    )
    for outcome, count in log.counts.items():
        family.add_metric([outcome], count)
    yield family
    yield GaugeMetricFamily(
        "feastrank_impression_rows_waiting",
        "Rows of the impression log that are not written yet.",
        value=log.waiting_rows,
    )
