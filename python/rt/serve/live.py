"""A session as a client sees it: options that change, counters that outlive a restart, one viewer.

Steps, noise range, motion and SLO belong to the frozen options of an `rt.Session`, so changing them
begins another one in the same seat. All methods may block: they are called off the event loop,
except `offer`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from ..errors import AdmissionRefused, ConfigError, Error
from ..frame import Frame
from ..metrics import Histogram, Report
from ..pipeline import Pipeline
from .run import Pixels, Run, Waiting
from .schema import (
    Latency,
    SessionOptions,
    SessionStatus,
    SessionUpdate,
    changed,
    fields_of,
    prompt_of,
)

RECENT_S = 5.0
"""What FPS and percentiles of a status are measured over."""


RATES = (30.0, 16.0, 8.0, 4.0, 2.0, 1.0)
"""Frames/s that a session without a rate of its own asks for, until one is admitted."""


class Observer(Protocol):
    """Who counts, over all sessions. Values in ms: of every frame, session and chunk."""

    def latency(self, ms: float) -> None: ...
    def ttff(self, ms: float) -> None: ...
    def service(self, ms: float) -> None: ...


class Viewer(Protocol):
    """Who sees a session. Called on threads of the session; must not block."""

    def show(self, frame: Frame, latency_ms: float, late: bool) -> None: ...
    def fail(self, error: Error) -> None: ...


@dataclass(frozen=True, slots=True)
class Counts:
    """Frames since the session was opened. entered = on time + late + dropped + in flight."""

    entered: int = 0
    on_time: int = 0
    late: int = 0
    dropped: int = 0
    in_flight: int = 0
    replaced: int = 0
    chunks: int = 0

    def plus(self, report: Report, replaced: int) -> Counts:
        return Counts(
            self.entered + report.frames_in,
            self.on_time + report.frames_on_time,
            self.late + report.frames_late,
            self.dropped + report.frames_dropped,
            report.frames_in_flight,
            self.replaced + replaced,
            self.chunks + chunks_of(report),
        )


class Live:
    """One client's session, and who counts what becomes of its frames and chunks."""

    def __init__(
        self,
        number: str,
        pipeline: Pipeline,
        options: SessionOptions,
        observer: Observer,
    ) -> None:
        self.id = number
        self.options = options
        self.opened_s = self.active_s = time.monotonic()
        self.ended = False
        self._pipeline = pipeline
        self._observer = observer
        self._lock = threading.Lock()
        self._viewer: Viewer | None = None
        self._past = Counts()
        self._chunks = 0
        """Chunks of the run that the observer knows."""
        self._recent: deque[tuple[float, float]] = deque(maxlen=1024)
        self._ttff_ms: float | None = None
        self._first_in_ns: int | None = None
        self._run = self._begin(options)

    # Frames

    def offer(self, pixels: Pixels, pts_s: float) -> None:
        """The newest frame of the source. Returns at once."""
        self.active_s = time.monotonic()
        now_ns = time.perf_counter_ns()
        if self._first_in_ns is None:
            self._first_in_ns = now_ns
        self._run.offer(Waiting(pixels, pts_s, now_ns))

    def attach(self, viewer: Viewer) -> None:
        """From now on `viewer` is shown every frame. Raises ConfigError if there is one already."""
        with self._lock:
            if self._viewer is not None:
                raise ConfigError(f"session {self.id[:6]}: a stream is attached; open another")
            self._viewer = viewer

    # Control

    def update(self, update: SessionUpdate) -> int:
        """Returns the first chunk that the change touches."""
        with self._lock:
            if self.ended:
                raise ConfigError(f"session {self.id[:6]}: is over; open another")
            options = changed(self.options, update)
            if update.restarts():
                self._restart(options)
                return 0
            if update.prompt is None:
                raise ConfigError("update: nothing to change; name a prompt or an option")
            chunk = self._run.session.update(
                prompt=prompt_of(update.prompt), transition_chunks=update.transition_chunks
            )
            self.options = options
            return chunk

    def counts(self) -> Counts:
        """Of all runs so far."""
        with self._lock:
            return self._counts()

    def status(self) -> SessionStatus:
        """Everything the page shows."""
        with self._lock:
            now, counts = self._run.session.status(), self._counts()
            now_s = time.monotonic()
            recent = [ms for at_s, ms in list(self._recent) if now_s - at_s <= RECENT_S]
        return SessionStatus(
            id=self.id,
            age_s=now_s - self.opened_s,
            frames_in=counts.entered,
            frames_on_time=counts.on_time,
            frames_late=counts.late,
            frames_dropped=counts.dropped,
            frames_in_flight=counts.in_flight,
            frames_replaced=counts.replaced,
            ttff_ms=self._ttff_ms,
            fps=len(recent) / min(RECENT_S, max(0.5, now_s - self.opened_s)),
            latency_ms=percentiles(recent),
            slo_ms=self.options.slo_ms,
            fps_held=self._run.fps,
            miss_share=counts.late / max(1, counts.entered),
            motion_score=now.motion_score,
            noise_scale=now.noise_scale,
            steps=now.steps,
            most_steps=self.steps,
            level=now.level,
            chunks=counts.chunks,
            remarks=list(self._run.session.remarks[-4:]),
        )

    @property
    def steps(self) -> int:
        return self._run.session.steps

    def close(self) -> Counts:
        """End it; idempotent. What was counted."""
        with self._lock:
            if not self.ended:
                self.ended = True
                self._run.close()
            return self._counts()

    # Inside

    def _begin(self, options: SessionOptions) -> Run:
        """At the highest rate that is admitted. Raises AdmissionRefused where none is."""
        rates = RATES if options.fps is None else (options.fps,)
        for fps in rates:
            try:
                session = self._pipeline.session(**fields_of(options, fps))
            except AdmissionRefused:
                if fps == rates[-1]:
                    raise
                continue
            frames = self._pipeline.manifest.geometry.frames_per_chunk
            return Run(session, fps, frames, self._show, self._fail)
        raise AssertionError("no rate to try")

    def _restart(self, options: SessionOptions) -> None:
        self._run.close()
        try:
            self._replace(options)
        except Error:  # wrong for this engine, or no room for it: go on as before
            try:
                self._replace(self.options)
            except Error as lost:  # somebody else has taken the room meanwhile
                self.ended = True
                self._fail(lost)
                raise
            raise

    def _replace(self, options: SessionOptions) -> None:
        """Go on in another run. The last one is closed; its counts are kept."""
        run = self._begin(options)
        self._past, self._run, self.options = self._counts(), run, options
        self._chunks = 0

    def _counts(self) -> Counts:
        report = self._run.session.report()
        done = chunks_of(report)
        for chunk in report.chunks[max(0, len(report.chunks) - (done - self._chunks)) :]:
            self._observer.service(chunk.service_ms)
        self._chunks = done
        return self._past.plus(report, self._run.replaced)

    def _show(self, frame: Frame) -> None:
        now_ns = time.perf_counter_ns()
        latency_ms = (now_ns - frame.captured_ns) * 1e-6
        if self._ttff_ms is None and self._first_in_ns is not None:
            self._ttff_ms = (now_ns - self._first_in_ns) * 1e-6
            self._observer.ttff(self._ttff_ms)
        self._recent.append((time.monotonic(), latency_ms))
        self._observer.latency(latency_ms)
        if (viewer := self._viewer) is not None:
            viewer.show(frame, latency_ms, latency_ms > self.options.slo_ms)

    def _fail(self, error: Error) -> None:
        if (viewer := self._viewer) is not None:
            viewer.fail(error)


def chunks_of(report: Report) -> int:
    """How many left the chain: a dropped chunk gives its index to the next one."""
    return report.chunks[-1].index + 1 if report.chunks else 0


def percentiles(values_ms: list[float]) -> Latency:
    """p50 and p99, as the runtime measures them."""
    histogram = Histogram()
    for value in values_ms:
        histogram.add(value)
    summary = histogram.summary()
    return Latency(p50=summary.p50, p99=summary.p99)
