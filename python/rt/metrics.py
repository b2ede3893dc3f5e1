"""Event times -> TTFF, latency, jitter, misses, drops, FPS, each by the one definition of REFERENCE
section 5.

Memory is bounded: distributions of an endless stream live in histograms with a relative error of at
most 1 %. Law: frames in = on time + late + dropped + in flight, at every instant.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from dataclasses import dataclass
from typing import Any

from .config import SLO
from .frame import Frame

CHUNKS_KEPT = 2_000
"""Records of chunks that a report holds; older ones of an endless stream are let go."""


@dataclass(frozen=True, slots=True)
class ChunkRecord:
    """What was decided for one chunk: its motion score (pixels or RMS), noise scale, first timestep
    and sigma, steps. `service_ms`: how long its passes ran, all steps and stages together; waiting
    is not in it.
    """

    index: int
    motion_score: float
    noise_scale: float
    timestep: float
    sigma: float
    steps: int
    service_ms: float


@dataclass(frozen=True, slots=True)
class Distribution:
    """Percentiles in ms; None while nothing was measured."""

    p50: float | None
    p90: float | None
    p99: float | None
    maximum: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """Everything measured of one session. `fps` is over the steady state: after the window filled,
    warm-up excluded; None until it is reached. `miss_share` and `drop_share` are shares of the
    frames in.
    """

    frames_in: int
    frames_emitted: int
    frames_on_time: int
    frames_late: int
    frames_dropped: int
    frames_in_flight: int
    miss_share: float
    drop_share: float
    ttff_s: float | None
    fps: float | None
    fps_warmup_frames: int
    latency_ms: Distribution
    jitter_ms: Distribution
    presentation_jitter_ms: Distribution
    chunks: tuple[ChunkRecord, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


class Histogram:
    """Counts of positive values in bins that grow by 2 %: a percentile is within 1 % of a sample of
    that rank.
    """

    GROWTH = 1.02
    SMALLEST = 1e-3

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._total = 0
        self._maximum = 0.0

    def add(self, value: float) -> None:
        """Count one value, 0 or more."""
        bin_ = (
            0 if value <= self.SMALLEST else 1 + int(math.log(value / self.SMALLEST, self.GROWTH))
        )
        self._counts[bin_] = self._counts.get(bin_, 0) + 1
        self._total += 1
        self._maximum = max(self._maximum, value)

    def percentile(self, share: float) -> float | None:
        """The value that `share` of all values do not exceed (nearest rank)."""
        rank = max(1, math.ceil(share * self._total))
        seen = 0
        for bin_ in sorted(self._counts):
            seen += self._counts[bin_]
            if seen >= rank:
                if bin_ == 0:
                    return 0.0
                middle: float = self.SMALLEST * self.GROWTH ** (bin_ - 0.5)
                return min(middle, self._maximum)
        return None

    def summary(self) -> Distribution:
        largest = self._maximum if self._total else None
        return Distribution(
            self.percentile(0.5), self.percentile(0.9), self.percentile(0.99), largest
        )


class Recorder:
    """Owns the counters of one session. The caller serialises the calls.

    `warmup_frames`: frames emitted before the steady state begins, those of a filling window; at
    least 1, as a rate needs an instant to count from.
    """

    def __init__(self, slo: SLO | None, warmup_frames: int) -> None:
        assert warmup_frames >= 1
        self._slo = slo
        self._warmup_frames = warmup_frames
        self._in = self._on_time = self._late = self._dropped = 0
        self._first_in_ns: int | None = None
        self._first_out_ns: int | None = None
        self._steady_ns: int | None = None
        self._last: tuple[float, int, float] | None = None
        self._latency, self._jitter, self._presentation = Histogram(), Histogram(), Histogram()
        self._chunks: deque[ChunkRecord] = deque(maxlen=CHUNKS_KEPT)

    def frame_in(self, frame: Frame) -> None:
        """A frame was received."""
        self._in += 1
        if self._first_in_ns is None:
            self._first_in_ns = frame.captured_ns

    def emitted(self, frame: Frame, now_ns: int) -> None:
        """A restyled frame was handed to the sink."""
        latency_ms = (now_ns - frame.captured_ns) * 1e-6
        late = self._slo is not None and latency_ms > self._slo.latency_ms
        self._late += late
        self._on_time += not late
        self._latency.add(latency_ms)
        if self._last is not None:
            last_latency_ms, last_ns, last_pts_s = self._last
            interval_ms = (now_ns - last_ns) * 1e-6
            self._jitter.add(abs(latency_ms - last_latency_ms))
            self._presentation.add(abs(interval_ms - (frame.pts_s - last_pts_s) * 1e3))
        self._last = (latency_ms, now_ns, frame.pts_s)
        if self._first_out_ns is None:
            self._first_out_ns = now_ns
        if self._on_time + self._late == self._warmup_frames:
            self._steady_ns = now_ns

    def dropped(self, count: int) -> None:
        """Frames that will never be emitted."""
        self._dropped += count

    def chunk(self, record: ChunkRecord) -> None:
        """A chunk has left the chain."""
        self._chunks.append(record)

    def report(self) -> Report:
        """All of it, now."""
        emitted = self._on_time + self._late
        ttff_s = None
        if self._first_in_ns is not None and self._first_out_ns is not None:
            ttff_s = (self._first_out_ns - self._first_in_ns) * 1e-9
        return Report(
            frames_in=self._in,
            frames_emitted=emitted,
            frames_on_time=self._on_time,
            frames_late=self._late,
            frames_dropped=self._dropped,
            frames_in_flight=self._in - emitted - self._dropped,
            miss_share=self._late / max(1, self._in),
            drop_share=self._dropped / max(1, self._in),
            ttff_s=ttff_s,
            fps=self._fps(emitted),
            fps_warmup_frames=self._warmup_frames,
            latency_ms=self._latency.summary(),
            jitter_ms=self._jitter.summary(),
            presentation_jitter_ms=self._presentation.summary(),
            chunks=tuple(self._chunks),
        )

    def _fps(self, emitted: int) -> float | None:
        if self._steady_ns is None or self._last is None or self._last[1] <= self._steady_ns:
            return None
        return (emitted - self._warmup_frames) / ((self._last[1] - self._steady_ns) * 1e-9)
