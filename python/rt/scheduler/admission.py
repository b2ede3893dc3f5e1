"""Whether one more session fits: the sum of demands stays under 85 % of the bottleneck, and every
session's predicted p99 latency within its budget. It protects those that are there: a session that
would be alone always fits. Pure; the answer carries its numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..chunking import FRAMES_PER_CHUNK
from .forecast import Forecast
from .records import Routes, Terms

MOST = 0.85
DEFAULT_FPS = 16.0
"""Rate of a session that does not say its own."""


@dataclass(frozen=True, slots=True)
class Admission:
    """The answer. `demand` is the share of the bottleneck stage that all sessions need together;
    `latency_ms` is the predicted p99 of the session that comes nearest to its budget or exceeds it.
    """

    fits: bool
    why: str
    demand: float = 0.0
    stage: int = 0
    latency_ms: float = 0.0
    budget_ms: float = 0.0


def admission(
    newcomer: Terms, others: Sequence[Terms], routes: Routes, forecast: Forecast
) -> Admission:
    """Test a newcomer beside the sessions that have an SLO already."""
    if newcomer.latency_ns is None:
        return Admission(True, "no SLO: it gets what the others leave")
    if not forecast.known:
        return Admission(True, "nothing was measured yet")
    everyone = [*others, newcomer]
    demands = [
        sum(_chunks_per_ns(t) * forecast.work_ns(s, t.steps) for t in everyone)
        for s in range(routes.stages)
    ]
    demand = max(demands)
    stage = demands.index(demand)
    latency, budget = max(
        ((_latency_ns(t, everyone, stage, forecast), t.latency_ns or 0) for t in everyone),
        key=lambda pair: pair[0] - pair[1],
    )
    words = (
        f"{len(everyone)} sessions need {demand:.0%} of stage {stage}, at most {MOST:.0%}; "
        f"predicted p99 latency {latency * 1e-6:.0f} ms, budget {budget * 1e-6:.0f} ms"
    )
    fits = (demand <= MOST and latency <= budget) or not others
    if not others:
        words += "; alone it holds up nobody else"
    return Admission(fits, words, demand, stage, latency * 1e-6, budget * 1e-6)


def _chunks_per_ns(terms: Terms) -> float:
    return (terms.fps or DEFAULT_FPS) / FRAMES_PER_CHUNK * 1e-9


def _latency_ns(terms: Terms, everyone: Sequence[Terms], stage: int, forecast: Forecast) -> float:
    """Of the first frame of a chunk, at worst: gathering the chunk, its path at the upper quantile,
    and one chunk of everybody else before it on the bottleneck.
    """
    gather = (FRAMES_PER_CHUNK - 1) / (terms.fps or DEFAULT_FPS) * 1e9
    path = forecast.path_ns(terms.steps) + forecast.margin_ns(terms.steps)
    others = sum(forecast.work_ns(stage, t.steps) for t in everyone if t is not terms)
    return gather + path + others
