"""What passes will take: the costs that were given, corrected by every pass that was seen, and what
follows from them for a chunk, a stage and a deadline. It decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..cost import PassCost, Timetable, fit
from ..frame import Kind
from .line import ARRIVED, Passage
from .records import Routes

Part = tuple[int, float]
"""A stage, and how long a chunk keeps it, in ns."""

KINDS: tuple[Kind, ...] = ("encode", "denoise", "decode")

_MEAN_GAIN, _SPREAD_GAIN, _SPREADS = 1 / 8, 1 / 8, 3
"""Mean and mean deviation of what a chunk takes beyond its prediction, in the manner of round trips
in TCP (Jacobson 1988), and how many deviations make an upper quantile: three are the 99th
percentile of a normal spread. It forgets a stall within some ten chunks.
"""
_OUTLIER, _LEAST_SPREAD = 2, 0.02
"""An error counts as no more than so many mean deviations, which are at least so much of the path:
one chunk that was overtaken costs the next ones nothing, a machine that became slow is followed
within some ten.
"""
_LEAST_GAIN = 0.025
"""Share of one pass that has to be saved where two share it; less is no reason to let a chunk wait
for its neighbour.
"""
_BATCH_WEIGHT = 0.05
"""Share of the newest batch in the mean batch size."""


class Forecast:
    """Times in ns. What was neither given nor seen counts as 0: then nothing is refused for it."""

    def __init__(self, routes: Routes, max_batch: int, costs: Timetable | None) -> None:
        self._routes = routes
        self._max_batch = max_batch
        self._costs: dict[tuple[int, Kind], PassCost] = dict(costs or {})
        self.batches_gain = self._gain() >= _LEAST_GAIN
        """Whether jobs that share a denoising pass take less time than one after the other, as far
        as was told.
        """
        self._passes: dict[tuple[Kind, int], tuple[float, float]] = {}
        self._batch = 1.0
        self._beyond: tuple[float, float] | None = None
        """Mean and mean deviation of what chunks took beyond prediction, as shares of the path."""

    # What is seen

    def seen(self, stage: int, kind: Kind, batch: int, took_ns: int) -> None:
        """A stage's part of a pass took this long."""
        if took_ns <= 0:
            return
        cost = self._costs.get((stage, kind))
        if cost is None:
            cost = PassCost(fit([(batch, took_ns * 1e-6)]))
        self._costs[stage, kind] = cost.seen(batch, took_ns)
        self._passes.clear()
        if kind == "denoise" and stage == self._routes.denoise[0]:
            self._batch += _BATCH_WEIGHT * (batch - self._batch)

    def left(self, steps: int, late_ns: float) -> None:
        """A chunk came out `late_ns` after its prediction without the margin."""
        path = self.path_ns(steps)
        if path > 0:
            mean, spread = self._beyond or (0.0, self._margin_share(steps) / _SPREADS)
            most = _OUTLIER * max(spread, _LEAST_SPREAD)
            error = max(-most, min(late_ns / path - mean, most))
            spread += _SPREAD_GAIN * (abs(error) - spread)
            self._beyond = mean + _MEAN_GAIN * error, spread

    # What follows

    @property
    def known(self) -> bool:
        """Whether every kind of pass has been given or seen on every stage of its route."""
        return all((s, k) in self._costs for k in KINDS for s in self._routes.of(k))

    def pass_ns(self, kind: Kind, batch: int) -> tuple[float, float]:
        """(mean, upper quantile) of a whole pass, over all stages of its route."""
        known = self._passes.get((kind, batch))
        if known is None:
            costs = [self._costs.get((stage, kind)) for stage in self._routes.of(kind)]
            times = [cost.pass_ns(batch) for cost in costs if cost]
            known = sum(t[0] for t in times), sum(t[1] for t in times)
            self._passes[kind, batch] = known
        return known

    def path_ns(self, steps: int, station: int = ARRIVED) -> float:
        """Mean time of a chunk from a station to the end, if it never waits."""
        encode = self.pass_ns("encode", 1)[0] if station == ARRIVED else 0.0
        denoise = max(0, steps - max(0, station - 1)) * self.pass_ns("denoise", 1)[0]
        return encode + denoise + self.pass_ns("decode", 1)[0]

    def margin_ns(self, steps: int) -> float:
        """What is added to a path so that it holds at the upper quantile."""
        return self._margin_share(steps) * self.path_ns(steps)

    def ahead_ns(self, steps: int) -> float:
        """Work that may lie before the busiest stage, so that it never runs dry: of a chunk, or of
        as many as share a pass, and of half a chunk for what takes longer than the mean.
        """
        chunks = 0.5 + (self._max_batch if self.batches_gain else 1)
        return chunks * max(self.work_ns(stage, steps) for stage in range(self._routes.stages))

    def parts_ns(self, passage: Passage) -> list[Part]:
        """What a chunk has before it, from the stage that its running pass is at or waits for."""
        steps = max(0, passage.steps - max(0, passage.station - 1))
        encode = KINDS[:1] if passage.station == ARRIVED else ()
        kinds = *encode, *KINDS[1:2] * steps, *KINDS[2:]
        parts = [
            (s, self.step_ns(s) if kind == "denoise" else self.part_ns(s, kind))
            for kind in kinds
            for s in self._routes.of(kind)
        ]
        return parts[passage.position :] if passage.running else parts

    def utilisation(self, rates: Sequence[tuple[float, int]]) -> tuple[float, int]:
        """Demand on the busiest stage, and which that is, of sessions with (chunks per ns, steps):
        above 1 it cannot be met.
        """
        chunks = sum(rate for rate, _ in rates)
        steps = sum(rate * count for rate, count in rates)
        return max(
            (chunks * self.work_ns(stage, 0) + steps * self.step_ns(stage), stage)
            for stage in range(self._routes.stages)
        )

    def work_ns(self, stage: int, steps: int) -> float:
        """Time that a stage is busy for one chunk, at the batch sizes that occur."""
        vae = self.part_ns(stage, "encode") + self.part_ns(stage, "decode")
        return vae + steps * self.step_ns(stage)

    def part_ns(self, stage: int, kind: Kind, batch: int = 1) -> float:
        """Mean time of a stage's part of a pass."""
        cost = self._costs.get((stage, kind))
        return 0.0 if cost is None else cost.pass_ns(batch)[0]

    def step_ns(self, stage: int) -> float:
        """One job's share of a denoising pass on a stage."""
        cost = self._costs.get((stage, "denoise"))
        if cost is None:
            return 0.0
        return (cost.line.c_ms / self._batch + cost.line.m_ms) * cost.mean * 1e6

    def _gain(self) -> float:
        """Share of a denoising pass that does not grow with its jobs; all of it where unknown."""
        lines = [self._costs[s, "denoise"].line for s in self._routes.denoise if self._costs]
        alone = sum(line.at(1) for line in lines)
        return sum(line.c_ms for line in lines) / alone if alone else 1.0

    def _margin_share(self, steps: int) -> float:
        if self._beyond is not None:
            return max(0.0, self._beyond[0] + _SPREADS * self._beyond[1])
        path = self.path_ns(steps)
        counts: dict[Kind, int] = {"encode": 1, "denoise": steps, "decode": 1}
        upper = sum(n * self.pass_ns(kind, 1)[1] for kind, n in counts.items())
        return upper / path - 1 if path else 0.0
