"""When a restyled frame leaves: paced by its pts, never held past its own deadline."""

from __future__ import annotations

import time

from .config import SLO
from .frame import Frame

EMIT_MARGIN_NS = 5_000_000
"""How long before its deadline a paced frame is let go, and a chunk is wanted: a thread may wake a
little late.
"""

SOONER = 0.03
"""Share of the time between two frames by which the schedule moves forward with every frame, while
frames are ready early: nobody sees it, and 1 s of latency is gone after half a minute.
"""

EARLY_FRAMES = 32
"""Frames one after the other that have to be ready half a frame's time before their turn for that:
those of eight chunks.
"""


def deadline_ns(slo: SLO | None, frame: Frame) -> int | None:
    """When a frame should be on its way out; None without an SLO."""
    return None if slo is None else frame.captured_ns + round(slo.latency_ms * 1e6) - EMIT_MARGIN_NS


class Pace:
    """Owns the schedule of one session.

    A late frame moves the schedule back. An early deadline moves it forward again, and so, slowly,
    do frames that are all ready before their turn: the rate is kept after a slip, and the latency
    recovers.
    """

    def __init__(self, slo: SLO | None) -> None:
        self._slo = slo
        self._start_ns: int | None = None
        self._pts_s = 0.0
        self._early = 0

    def turn_ns(self, frame: Frame, now_ns: int) -> int:
        """When a frame should leave if it were the next one; now where nothing holds it."""
        latest = deadline_ns(self._slo, frame)
        if latest is None or self._start_ns is None:
            return now_ns
        return max(now_ns, min(self._start_ns + round(frame.pts_s * 1e9), latest))

    def pause_s(self, frame: Frame) -> float:
        """How long to hold the next frame, which leaves after that; 0 without an SLO."""
        now_ns = time.perf_counter_ns()
        turn_ns = self.turn_ns(frame, now_ns)
        apart_ns = max(0.0, frame.pts_s - self._pts_s) * 1e9
        self._pts_s = frame.pts_s
        self._early = self._early + 1 if turn_ns - now_ns > apart_ns / 2 else 0
        sooner_ns = SOONER * apart_ns if self._early > EARLY_FRAMES else 0.0
        self._start_ns = turn_ns - round(frame.pts_s * 1e9 + sooner_ns)
        return (turn_ns - now_ns) * 1e-9
