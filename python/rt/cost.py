"""What the units of a chain cost on one kind of device, what a stage costs by them, and their
correction by what is seen while running.

Pure records and arithmetic. `costfile` reads and writes them.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from .frame import Kind

SCHEMA = 1

Origin = Literal["measured", "fitted", "modelled"]
"""Timed on the machine; solved for from published totals; computed from work and peak rates."""

ChainKind = Literal["encode", "dit_in", "block", "dit_out", "decode"]
PASS_OF: dict[ChainKind, Kind] = {
    "encode": "encode",
    "dit_in": "denoise",
    "block": "denoise",
    "dit_out": "denoise",
    "decode": "decode",
}

UPPER = 0.99
"""The quantile that `p99_ms` and `PassCost.upper` stand for."""

_MEAN_WEIGHT = 0.1
"""Share of the newest pass in the exponential mean: a change is followed within some 20 passes."""
_MOST_SEEN = 2.0
"""A pass counts as no longer than so many means: one that the machine held up for a second says
nothing of the next ones.
"""
_QUANTILE_GAIN = 0.02
"""How far one pass above the upper quantile moves it, as a share of the mean."""


@dataclass(frozen=True, slots=True)
class Timing:
    """One unit at one batch size, with the ops that run with it: median, 99th percentile."""

    batch: int
    p50_ms: float
    p99_ms: float

    def __post_init__(self) -> None:
        times = (self.p50_ms, self.p99_ms)
        if self.batch < 1 or not all(math.isfinite(t) and t > 0 for t in times):
            raise ValueError(f"timing: got {self}, expected a batch from 1 and times above 0 ms")
        if self.p99_ms < self.p50_ms:
            raise ValueError(f"timing: got {self}, expected p99_ms of at least p50_ms")


@dataclass(frozen=True, slots=True)
class UnitCost:
    """One unit of the chain. `state_bytes` are kept per seat by a VAE unit, per row by a DiT unit;
    `handed_bytes` per job are handed over where the chain is cut behind this unit.
    """

    name: str
    kind: ChainKind
    timings: tuple[Timing, ...]
    weights_bytes: int
    state_bytes: int
    handed_bytes: int

    def __post_init__(self) -> None:
        batches = [t.batch for t in self.timings]
        if not batches or batches != sorted(set(batches)) or batches[0] != 1:
            raise ValueError(f"{self.name}: got batches {batches}, expected 1 and then rising")
        if min(self.weights_bytes, self.state_bytes, self.handed_bytes) < 0:
            raise ValueError(f"{self.name}: got bytes below 0, expected 0 or more")

    @property
    def line(self) -> Line:
        """Least squares over the medians."""
        return fit([(t.batch, t.p50_ms) for t in self.timings])


@dataclass(frozen=True, slots=True)
class Handover:
    """Copying to the next stage's device: `latency_ms` once, then `gb_per_s` (1e9 bytes)."""

    latency_ms: float
    gb_per_s: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.latency_ms) and self.latency_ms >= 0 and self.gb_per_s > 0):
            raise ValueError(f"handover: got {self}, expected ms from 0 and a rate above 0")

    def line(self, bytes_per_job: int) -> Line:
        """Time to hand over a pass, by its batch size."""
        return Line(self.latency_ms, bytes_per_job / self.gb_per_s * 1e-6)


@dataclass(frozen=True, slots=True)
class Costs:
    """A cost file: one chain on one kind of device.

    `source`: the command or the publication behind the numbers. `engines`: key of the manifest that
    was measured, "" for none. `memory_bytes`: of the device, None where it is not the limit.
    `spread`: times of whole passes over their median, rising; (1.0,) = always the same.
    """

    schema: int
    origin: Origin
    source: str
    device: str
    engines: str
    model: str
    frames_per_chunk: int
    max_batch: int
    memory_bytes: int | None
    handover: Handover
    spread: tuple[float, ...]
    units: tuple[UnitCost, ...]

    def __post_init__(self) -> None:
        kinds = [u.kind for u in self.units]
        shape = r"(encode )+dit_in (block )+dit_out (decode )+"
        if not re.fullmatch(shape, "".join(f"{kind} " for kind in kinds)):
            raise ValueError(f"units: got {kinds}, expected encode.., dit_in, block.., dit_out, ..")
        if min(self.frames_per_chunk, self.max_batch) < 1:
            raise ValueError("frames_per_chunk, max_batch: expected at least 1")
        if not self.spread or list(self.spread) != sorted(self.spread) or self.spread[0] <= 0:
            raise ValueError("spread: expected rising times over their median, all above 0")


@dataclass(frozen=True, slots=True)
class Line:
    """t(b) = c + m b in milliseconds."""

    c_ms: float = 0.0
    m_ms: float = 0.0

    def at(self, batch: int) -> float:
        """Time in ms of a pass of `batch` jobs."""
        return self.c_ms + self.m_ms * batch

    def __add__(self, other: Line) -> Line:
        return Line(self.c_ms + other.c_ms, self.m_ms + other.m_ms)


@dataclass(frozen=True, slots=True)
class PassCost:
    """One kind of pass on one stage: its line, and how what is seen compares with it.

    `mean` is the exponential mean of seen over line. `upper` is the upper quantile of seen over
    line times mean: where a machine slows down as a whole, `mean` follows and `upper` stays.
    """

    line: Line
    upper: float = 1.0
    mean: float = 1.0

    def pass_ns(self, batch: int) -> tuple[float, float]:
        """(mean, upper quantile) in ns of a pass of `batch` jobs."""
        expected = self.line.at(batch) * self.mean * 1e6
        return expected, expected * self.upper

    def seen(self, batch: int, took_ns: float) -> PassCost:
        """The same, corrected by one pass that took `took_ns`.

        The quantile moves by the stochastic approximation of Robbins and Monro: up by gain * q when
        exceeded, down by gain * (1 - q) when not, so it rests where a share q lies below.
        """
        ratio = took_ns / (self.line.at(batch) * 1e6)
        relative = ratio / self.mean
        moved = UPPER if relative > self.upper else UPPER - 1
        return dataclasses.replace(
            self,
            mean=self.mean + _MEAN_WEIGHT * (min(ratio, _MOST_SEEN * self.mean) - self.mean),
            upper=max(1.0, self.upper + _QUANTILE_GAIN * moved),
        )


Timetable = Mapping[tuple[int, Kind], PassCost]
"""(Stage, kind of pass) -> its cost, for every stage that such passes visit."""


def fit(points: Sequence[tuple[int, float]]) -> Line:
    """Least squares line through (batch, ms), with neither part below 0."""
    n = len(points)
    mean_b, mean_t = sum(b for b, _ in points) / n, sum(t for _, t in points) / n
    across = sum((b - mean_b) ** 2 for b, _ in points)
    slope = sum((b - mean_b) * (t - mean_t) for b, t in points) / across if across else math.inf
    c = mean_t - slope * mean_b
    if slope < 0:
        return Line(mean_t, 0.0)
    if c < 0:  # Also for a single point: all of it is counted per job.
        return Line(0.0, sum(b * t for b, t in points) / sum(b * b for b, _ in points))
    return Line(c, slope)


def timetable(stages: Sequence[tuple[Costs, range]]) -> Timetable:
    """Costs of every kind of pass on every stage, given as (costs on its device, its units).

    A stage whose next unit lies elsewhere pays for handing over: the copy runs on its thread. So
    does the end of the DiT where its beginning, to which chunks return, lies elsewhere.
    """
    table: dict[tuple[int, Kind], PassCost] = {}
    for stage, (costs, units) in enumerate(stages):
        for kind in sorted({PASS_OF[costs.units[u].kind] for u in units}):
            mine = [costs.units[u] for u in units if PASS_OF[costs.units[u].kind] == kind]
            line = sum((u.line for u in mine), Line())
            leaves = mine[-1] is costs.units[units.stop - 1] and units.stop < len(costs.units)
            returns = mine[-1].kind == "dit_out" and mine[0].kind != "dit_in"
            if leaves or returns:
                line += costs.handover.line(mine[-1].handed_bytes)
            table[stage, kind] = PassCost(line, _upper(mine))
    return table


def memory_bytes(units: Iterable[UnitCost], seats: int, rows_per_seat: int) -> int:
    """What a stage of these units keeps on its device: weights once, state of every seat."""
    return sum(
        u.weights_bytes
        + u.state_bytes * seats * (rows_per_seat if PASS_OF[u.kind] == "denoise" else 1)
        for u in units
    )


def _upper(units: Sequence[UnitCost]) -> float:
    """99th percentile over median of a pass: as if all units were slow together."""
    timings = [t for u in units for t in u.timings]
    median = sum(t.p50_ms for t in timings)
    return sum(t.p99_ms for t in timings) / median if median else 1.0
