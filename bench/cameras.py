"""Cameras for benchmarks, at a rate that may change, and what became of their frames."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, MutableSequence, Sequence
from dataclasses import dataclass, field

import numpy as np

import rt


def camera(rate: Callable[[float], float | None], size: int) -> Iterator[rt.Frame]:
    """Frames of a texture that slides, `rate(seconds since the start)` a second, stamped with the
    moment at which each was due; None ends it.
    """
    texture = np.random.default_rng(0).integers(0, 255, (size, size + 64, 3), dtype=np.uint8)
    start = time.perf_counter()
    at, index = 0.0, 0
    while (fps := rate(at)) is not None:
        time.sleep(max(0.0, start + at - time.perf_counter()))
        picture = texture[:, index % 64 : index % 64 + size]
        yield rt.Frame(picture, index, at, round((start + at) * 1e9))
        at += 1 / fps
        index += 1


def steady(fps: float | None, seconds: float) -> Callable[[float], float | None]:
    """The rate of a camera that never changes it, until it ends."""
    return lambda at: fps if at < seconds else None


@dataclass
class Viewer:
    """Runs one session on a thread. `seen`: (captured, emitted) in seconds of the monotonic clock,
    of every frame that came out.
    """

    session: rt.Session
    frames: Iterator[rt.Frame]
    seen: MutableSequence[tuple[float, float]] = field(default_factory=list)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def join(self) -> rt.Report:
        """Wait for the end. Returns what the session says of itself."""
        self._thread.join()
        report = self.session.report()
        self.session.close()
        return report

    def _run(self) -> None:
        for frame in self.session.stream(self.frames):
            self.seen.append((frame.captured_ns * 1e-9, time.perf_counter()))


def watched(
    pipeline: rt.Pipeline, slos: Sequence[rt.SLO], seconds: float, steps: int
) -> list[Viewer]:
    """A session for each of `slos`, none of which gives up a step, and a camera for each."""
    size = pipeline.manifest.geometry.height
    options = {"prompt": "camera", "min_steps": steps, "motion": "off"}
    viewers = [
        Viewer(
            pipeline.session(slo=slo, **options),
            camera(steady(slo.fps, seconds), size),
            deque(maxlen=1),  # What they do is counted; a list would only grow.
        )
        for slo in slos
    ]
    for viewer in viewers:
        viewer.start()
    return viewers


def control(
    pipeline: rt.Pipeline, slo: rt.SLO, seconds: float, steps: int
) -> tuple[float, rt.Report]:
    """One slow session alone: frames/s that the pipeline could do by what it demands, and what the
    machine misses by itself.
    """
    assert slo.fps is not None
    (viewer,) = watched(pipeline, [slo], seconds, steps)
    time.sleep(0.8 * seconds)
    capacity = slo.fps / pipeline.status().utilisation
    return capacity, viewer.join()


def misses(reports: Sequence[rt.Report]) -> tuple[float, int]:
    """Share of the frames that were late or dropped, of how many."""
    taken = sum(r.frames_in for r in reports)
    bad = sum(r.frames_late + r.frames_dropped for r in reports)
    assert taken == bad + sum(r.frames_on_time for r in reports), "counts add up"
    return bad / taken, taken
