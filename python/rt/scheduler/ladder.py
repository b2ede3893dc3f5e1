"""The degradation ladder: how many steps are taken away, and from whom first. Hysteresis, and one
level at a time: down at once when chunks are late, up only after a calm that lasted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .records import Terms

DEGRADE_ABOVE = 0.95
"""Utilisation by which the next level is taken before anything is late."""
LEAST_GAIN = 0.01
"""By how much the next level has to lower utilisation to be taken for its sake: fewer steps do not
help where the VAE is the bottleneck.
"""
RECOVER_BELOW = 0.70
HOLDS_AT = 0.85
"""A level is given back only if utilisation stays below this at the better one."""
CALM_NS = 2_000_000_000
"""How long it has to be calm before the first level is given back."""
NEXT_NS = 500_000_000
"""How long after that before each further one."""
DWELL_NS = 250_000_000
"""Least time between two levels on the way down."""

_NEVER_NS = -(1 << 62)


class Ladder:
    """Level 0 takes nothing away. Rungs begin at the lowest priority and take one step each from
    all of its sessions, down to their least.
    """

    def __init__(self) -> None:
        self.level = 0
        self._rungs: list[int] = []
        """Priority that each rung takes a step from."""
        self._changed_ns = _NEVER_NS
        self._calm_since_ns: int | None = None

    def fit(self, terms: Iterable[Terms]) -> None:
        """Sessions came or went."""
        depth: dict[int, int] = {}
        for t in terms:
            if t.latency_ns is not None:
                depth[t.priority] = max(depth.get(t.priority, 0), t.steps - t.min_steps)
        self._rungs = [p for p in sorted(depth) for _ in range(depth[p])]
        self.level = min(self.level, len(self._rungs))

    def steps(self, terms: Terms, level: int | None = None) -> int:
        """What a session gets at a level, by default the present one."""
        if terms.latency_ns is None:
            return terms.steps
        taken = self._rungs[: self.level if level is None else level].count(terms.priority)
        return max(terms.min_steps, terms.steps - taken)

    def press(self, now_ns: int) -> bool:
        """A chunk is late: take the next level. Returns whether there was one to take now."""
        self._calm_since_ns = None
        if self.level == len(self._rungs) or now_ns - self._changed_ns < DWELL_NS:
            return False
        self.level += 1
        self._changed_ns = now_ns
        return True

    def observe(self, now_ns: int, at: Callable[[int], float]) -> int:
        """`at(level)`: utilisation now, if that were the level. Returns the change of level: -1, 0
        or 1.
        """
        utilisation = at(self.level)
        if utilisation > DEGRADE_ABOVE:
            gain = utilisation - at(self.level + 1)
            return int(gain >= LEAST_GAIN and self.press(now_ns))
        better = self.level and utilisation < RECOVER_BELOW and at(self.level - 1) < HOLDS_AT
        if not better:
            self._calm_since_ns = None
            return 0
        if self._calm_since_ns is None:
            self._calm_since_ns = now_ns
        if now_ns - max(self._calm_since_ns, self._changed_ns + NEXT_NS - CALM_NS) < CALM_NS:
            return 0
        self.level -= 1
        self._changed_ns = now_ns
        return -1
