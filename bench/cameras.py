"""Cameras for benchmarks, at a rate that may change, and what became of their frames."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
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
    seen: list[tuple[float, float]] = field(default_factory=list)

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
