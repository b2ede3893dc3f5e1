"""The pipeline and its open sessions: loading, opening, ending, draining.

Methods that may block are called off the event loop. It refuses with `Refused`, which carries the
HTTP status.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from ..errors import AdmissionRefused, Error
from ..pipeline import Pipeline
from .gauges import Gauges
from .journal import Journal
from .limits import Limits
from .live import Counts, Live
from .schema import Engine, SessionOptions, SessionUpdate

State = Literal["loading", "ready", "draining", "failed"]


class Refused(Exception):
    """A request that cannot be served now. `status` is its HTTP status."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, slots=True)
class Plan:
    """What to load, and for how much."""

    engines: Path
    devices: str | Sequence[str] = "auto"
    steps: int | None = None
    limits: Limits = field(default_factory=Limits)


class Hub:
    """One pipeline, up to `limits.sessions` sessions."""

    def __init__(self, plan: Plan, journal: Journal) -> None:
        self.plan, self.limits = plan, plan.limits
        self.state: State = "loading"
        self.failure: Error | None = None
        self.gauges = Gauges(self)
        self._journal = journal
        self._lock = threading.Lock()
        self._pipeline: Pipeline | None = None
        self._sessions: dict[str, Live] = {}
        self._ending: set[str] = set()
        self._opening = 0

    # Life

    def load(self) -> None:
        """Load the engines and run each once; afterwards the state is `ready` or `failed`."""
        start_s = time.monotonic()
        try:
            pipeline = Pipeline.load(
                self.plan.engines,
                self.plan.devices,
                seats=self.limits.sessions,
                steps=self.plan.steps,
            )
            _warm(pipeline)
        except Error as error:
            self.failure, self.state = error, "failed"
            return
        self._pipeline = pipeline
        if self.state == "loading":
            self.state = "ready"
        self._journal.note("ready", seconds=round(time.monotonic() - start_s, 3))

    def drain(self) -> None:
        """Open no further session."""
        self.state = "draining"
        self._journal.note("draining", sessions=len(self._sessions))

    def close(self) -> None:
        """End every session and the pipeline."""
        for live in self.sessions():
            self.end(live, "shutdown")
        if self._pipeline is not None:
            self._pipeline.close()

    # Sessions

    def open(self, options: SessionOptions) -> Live:
        """A new session. Raises Refused where there is no room, ConfigError for wrong options."""
        pipeline = self.pipeline()
        if self.state != "ready":
            raise Refused(503, f"the server is {self.state}; try again later")
        with self._lock:
            if len(self._sessions) + self._opening >= self.limits.sessions:
                raise Refused(
                    429, f"all {self.limits.sessions} sessions are taken; try again later"
                )
            self._opening += 1
        try:
            number = secrets.token_urlsafe(16)
            live = Live(number, pipeline, options, self.gauges)
            with self._lock:
                self._sessions[number] = live
        except AdmissionRefused as error:
            raise Refused(429, str(error)) from error
        finally:
            with self._lock:
                self._opening -= 1
        self._journal.note("opened", session=number[:6], steps=live.steps)
        return live

    def get(self, number: str) -> Live:
        """Raises Refused for one that is not open."""
        live = self._sessions.get(number)
        if live is None or live.id in self._ending:
            raise Refused(404, "there is no such session; open one with POST /api/sessions")
        return live

    def update(self, live: Live, update: SessionUpdate) -> int:
        try:
            chunk = live.update(update)
        finally:
            if live.ended:  # it could not go on
                self.end(live, "refused")
        self._journal.note("updated", session=live.id[:6], restarts=update.restarts())
        return chunk

    def end(self, live: Live, reason: str) -> None:
        """Close and forget a session; idempotent."""
        with self._lock:
            if live.id not in self._sessions or live.id in self._ending:
                return
            self._ending.add(live.id)
        counts = live.close()
        with self._lock:  # in one moment, so that no counter ever falls
            del self._sessions[live.id]
            self._ending.remove(live.id)
            self.gauges.over(counts)
        self._journal.note(
            "ended",
            session=live.id[:6],
            reason=reason,
            frames_in=counts.entered,
            on_time=counts.on_time,
            late=counts.late,
            dropped=counts.dropped,
            replaced=counts.replaced,
        )

    def sessions(self) -> list[Live]:
        """Those open now."""
        with self._lock:
            return list(self._sessions.values())

    def census(self) -> tuple[list[Live], Counts]:
        """Those open now, and what was counted of all before."""
        with self._lock:
            return list(self._sessions.values()), self.gauges.past

    def expire(self, now_s: float) -> None:
        """End sessions that were idle, or lived, for too long."""
        for live in self.sessions():
            if now_s - live.active_s > self.limits.idle_s:
                self.end(live, "idle")
            elif now_s - live.opened_s > self.limits.life_s:
                self.end(live, "life time")

    # What it serves

    def pipeline(self) -> Pipeline:
        """Raises Refused while it loads."""
        if self._pipeline is None:
            raise Refused(503, f"the server is {self.state}; try again later")
        return self._pipeline

    def engine(self) -> Engine:
        """For the page."""
        pipeline = self.pipeline()
        manifest, status = pipeline.manifest, pipeline.status()
        noise = manifest.noise
        most = self.plan.steps or noise.default_steps
        return Engine(
            name=manifest.name,
            height=manifest.geometry.height,
            width=manifest.geometry.width,
            steps=min(most, noise.default_steps),
            most_steps=most,
            noise_low=noise.s_min,
            noise_high=noise.s_max,
            backend=f"{status.backend} ({status.library})",
            devices=[stage.device for stage in status.placement],
            styles=list(manifest.text.styles),
        )


WARM_FRAMES = 5
"""A first chunk and an ordinary one: every engine has run."""


def _warm(pipeline: Pipeline) -> None:
    g = pipeline.manifest.geometry
    grey = np.full((g.height, g.width, 3), 128, np.uint8)
    with pipeline.session(prompt=pipeline.example_prompt()) as session:
        for _ in session.stream([grey] * WARM_FRAMES):
            pass
