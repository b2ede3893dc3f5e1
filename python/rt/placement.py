"""Cuts the chain of units into consecutive stages, one per device, so that the slowest stage is as
fast as it can be and every stage fits its device's memory.

Pure: costs in, ranges out. Exact by dynamic programming; devices may differ in speed and memory,
and the copy to the next device counts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .cost import PASS_OF, Costs, Line, memory_bytes
from .errors import ConfigError

Load = Callable[[int, int, int], float]
"""(device, start, stop) -> ms that units [start, stop) keep the device busy per chunk; inf where
they do not fit.
"""


@dataclass(frozen=True, slots=True)
class Placement:
    """Units of each device, in order; `busy_ms` per chunk and `memory_bytes` of each.

    `slowest_ms` is the least that any cut of this chain over these devices reaches.
    """

    ranges: tuple[range, ...]
    busy_ms: tuple[float, ...]
    memory_bytes: tuple[int, ...]

    @property
    def slowest_ms(self) -> float:
        """Time per chunk of the bottleneck."""
        return max(self.busy_ms)


def place(costs: Sequence[Costs], steps: int, seats: int = 1, rows: int | None = None) -> Placement:
    """The best cut, `costs[d]` being those of device d for the same chain.

    A chunk passes the DiT `steps` times; at full load the passes of up to `max_batch` rows run as
    one, and that is what a job is counted as. `rows` per seat (default: `steps`) take memory. Of
    equally fast cuts the one with the most even loads. Raises ConfigError for more devices than
    units, or memory that no cut fits into.
    """
    units, rows = costs[0].units, rows or steps
    if len(costs) > len(units):
        raise ConfigError(
            f"devices: got {len(costs)}, but this model has {len(units)} units; "
            f"use at most {len(units)}"
        )
    load = _loads(costs, steps, seats, rows)
    slowest, _ = _cheapest(len(costs), len(units), load, lambda x: x, max)
    if math.isinf(slowest):
        least = memory_bytes(units, seats, rows) / 1e9
        there = " + ".join(
            "any" if c.memory_bytes is None else f"{c.memory_bytes / 1e9:.1f}" for c in costs
        )
        raise ConfigError(
            f"memory: {seats} seats of {rows} rows need {least:.1f} GB in consecutive stages, "
            f"devices have {there} GB; use fewer seats or steps, or more devices"
        )
    even = _evenly(load, slowest)
    _, ranges = _cheapest(len(costs), len(units), even, lambda x: x * x, lambda a, b: a + b)
    return Placement(
        ranges,
        tuple(load(d, r.start, r.stop) for d, r in enumerate(ranges)),
        tuple(memory_bytes(units[r.start : r.stop], seats, rows) for r in ranges),
    )


def _evenly(load: Load, slowest: float) -> Load:
    def bounded(device: int, start: int, stop: int) -> float:
        ms = load(device, start, stop)
        return ms if ms <= slowest else math.inf

    return bounded


def _cheapest(
    devices: int,
    units: int,
    load: Load,
    price: Callable[[float], float],
    join: Callable[[float, float], float],
) -> tuple[float, tuple[range, ...]]:
    """The cut with the least joined price of its loads; the first of equals.

    best[u] is the least for the first u units on the devices so far, so each device extends every
    prefix by every length: devices * units^2 / 2 loads.
    """
    best = [math.inf] + [price(load(0, 0, stop)) for stop in range(1, units + 1)]
    starts: list[list[int]] = []
    for device in range(1, devices):
        least, start = [math.inf] * (units + 1), [device] * (units + 1)
        for stop in range(device + 1, units + 1):
            for s in range(device, stop):
                if best[s] < least[stop]:
                    candidate = join(best[s], price(load(device, s, stop)))
                    if candidate < least[stop]:
                        least[stop], start[stop] = candidate, s
        best = least
        starts.append(start)
    cuts = [units]
    for start in reversed(starts):
        cuts.append(start[cuts[-1]])
    cuts.append(0)
    return best[units], tuple(itertools.starmap(range, itertools.pairwise(reversed(cuts))))


def _loads(costs: Sequence[Costs], steps: int, seats: int, rows: int) -> Load:
    """The load of any range in constant time, from sums over prefixes of the chain."""
    units = costs[0].units
    dit_in = next(i for i, u in enumerate(units) if u.kind == "dit_in")
    dit_out = next(i for i, u in enumerate(units) if u.kind == "dit_out")
    batch = min(steps, costs[0].max_batch)

    def per_chunk(line: Line, position: int) -> float:
        if PASS_OF[units[position].kind] == "denoise":
            return line.at(batch) * steps / batch
        return line.at(1)

    def prefix(values: list[float]) -> list[float]:
        return list(itertools.accumulate(values, initial=0.0))

    work = [prefix([per_chunk(u.line, i) for i, u in enumerate(c.units)]) for c in costs]
    copy = [
        [per_chunk(c.handover.line(u.handed_bytes), i) for i, u in enumerate(c.units)]
        for c in costs
    ]
    memory = prefix([float(memory_bytes([u], seats, rows)) for u in units])

    def load(device: int, start: int, stop: int) -> float:
        room = costs[device].memory_bytes
        if room is not None and memory[stop] - memory[start] > room:
            return math.inf
        ms = work[device][stop] - work[device][start]
        if stop < len(units):
            ms += copy[device][stop - 1]
        if dit_in < start <= dit_out < stop - 1:  # Steps return to a stage before.
            ms += copy[device][dit_out]
        return ms

    return load
