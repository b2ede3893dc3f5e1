"""`/metrics`: Prometheus, in a registry of its own. Counters are read from the sessions' reports,
so they cannot disagree with them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import psutil
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from .live import Counts

if TYPE_CHECKING:
    from .hub import Hub

_SECONDS = (
    1e-3,
    2e-3,
    5e-3,
    0.01,
    0.02,
    *(n / 20 for n in range(1, 9)),
    0.5,
    0.7,
    1,
    1.5,
    2,
    3,
    5,
    10,
)


class Gauges:
    """Collects from a hub whenever it is scraped."""

    def __init__(self, hub: Hub) -> None:
        self.registry = CollectorRegistry()
        self._hub = hub
        self.past = Counts()
        # First: what it reads of the sessions is what the histograms then show.
        self.registry.register(self)
        self._latency = Histogram(
            "rt_latency_seconds",
            "Capture to emission of a frame",
            registry=self.registry,
            buckets=_SECONDS,
        )
        self._ttff = Histogram(
            "rt_ttff_seconds",
            "First frame in to first frame out of a session",
            registry=self.registry,
            buckets=_SECONDS,
        )
        self._service = Histogram(
            "rt_chunk_service_seconds",
            "How long the passes of a chunk ran, waiting left out",
            registry=self.registry,
            buckets=_SECONDS,
        )

    def latency(self, ms: float) -> None:
        self._latency.observe(ms * 1e-3)

    def ttff(self, ms: float) -> None:
        self._ttff.observe(ms * 1e-3)

    def service(self, ms: float) -> None:
        self._service.observe(ms * 1e-3)

    def over(self, counts: Counts) -> None:
        """A session ended: its counts stay. Called under the hub's lock."""
        self.past = _sum(self.past, counts)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """Called by the registry."""
        open_, total = self._hub.census()
        for live in open_:
            total = _sum(total, live.counts())
        for name, value, text in (
            ("rt_frames_in", total.entered, "Frames that a session took"),
            ("rt_frames_on_time", total.on_time, "Frames emitted within the SLO"),
            ("rt_frames_late", total.late, "Frames emitted after their deadline"),
            ("rt_frames_dropped", total.dropped, "Frames taken and never emitted"),
            ("rt_frames_replaced", total.replaced, "Frames that a newer one replaced before"),
            ("rt_chunks", total.chunks, "Chunks that left the chain"),
        ):
            yield CounterMetricFamily(name, text, value=value)
        yield GaugeMetricFamily("rt_frames_in_flight", "Taken, not emitted", total.in_flight)
        yield GaugeMetricFamily("rt_sessions", "Open sessions", len(open_))
        yield GaugeMetricFamily("rt_seats", "Most sessions", self._hub.limits.sessions)
        yield GaugeMetricFamily("rt_ready", "1 when ready", float(self._hub.state == "ready"))
        memory = psutil.Process().memory_info().rss
        yield GaugeMetricFamily("rt_memory_bytes", "Resident memory of the server", memory)
        if self._hub.state in ("ready", "draining"):
            status = self._hub.pipeline().status()
            yield GaugeMetricFamily(
                "rt_utilisation", "Expected share of time in use", status.utilisation
            )
            yield GaugeMetricFamily(
                "rt_degradation_level", "Rungs taken off the ladder of quality", status.level
            )
            seconds = CounterMetricFamily(
                "rt_unit_seconds", "Time spent in each unit of the chain", labels=["unit"]
            )
            for stage in status.placement:
                for unit, spent_s in stage.unit_seconds.items():
                    seconds.add_metric([unit], spent_s)
            yield seconds


def _sum(a: Counts, b: Counts) -> Counts:
    pairs = zip(dataclasses.astuple(a), dataclasses.astuple(b), strict=True)
    return Counts(*(x + y for x, y in pairs))
