"""When a restyled frame leaves: paced by its pts, never held past its own deadline."""

from __future__ import annotations

import time

from .config import SLO
from .frame import Frame

EMIT_MARGIN_NS = 5_000_000
"""How long before its deadline a paced frame is let go, and a chunk is wanted: a thread may wake a
little late.
"""


def deadline_ns(slo: SLO | None, frame: Frame) -> int | None:
    """When a frame should be on its way out; None without an SLO."""
    return None if slo is None else frame.captured_ns + round(slo.latency_ms * 1e6) - EMIT_MARGIN_NS


class Pace:
    """Owns the schedule of one session.

    A late frame moves the schedule back and an early deadline moves it forward again, so the rate
    is kept after a slip and the latency recovers.
    """

    def __init__(self, slo: SLO | None) -> None:
        self._slo = slo
        self._start_ns: int | None = None

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
        self._start_ns = turn_ns - round(frame.pts_s * 1e9)
        return (turn_ns - now_ns) * 1e-9
