"""The cut into stages is optimal: compared with brute force over all cuts, where the costs of a
stage are added up unit by unit.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import pytest
from drawn_costs import chains
from hypothesis import given, settings

from rt import costfile, manifest
from rt.cost import PASS_OF, Costs, timetable
from rt.devices import Device
from rt.errors import ConfigError
from rt.placement import place

TINY = Path(__file__).parents[2] / "engines" / "tiny"


def loads(costs: list[Costs], ranges: list[range], steps: int, seats: int) -> list[float]:
    """Milliseconds per chunk of every stage, by the costs of its passes; inf without room."""
    found = []
    for number, (c, units) in enumerate(zip(costs, ranges, strict=True)):
        stages = [(c, r) for r in ranges]
        table, batch = timetable(stages), min(steps, c.max_batch)
        passes = {"encode": (1, 1.0), "decode": (1, 1.0), "denoise": (batch, steps / batch)}
        ms = sum(
            cost.line.at(passes[kind][0]) * passes[kind][1]
            for (stage, kind), cost in table.items()
            if stage == number
        )
        kept = 0
        for u in units:
            unit = c.units[u]
            times = seats * (steps if PASS_OF[unit.kind] == "denoise" else 1)
            kept += unit.weights_bytes + unit.state_bytes * times
        found.append(math.inf if c.memory_bytes is not None and kept > c.memory_bytes else ms)
    return found


def cuts(units: int, devices: int) -> Iterator[list[range]]:
    for middle in itertools.combinations(range(1, units), devices - 1):
        yield [range(a, b) for a, b in itertools.pairwise((0, *middle, units))]


@settings(deadline=None)
@given(chains(), st.integers(1, 5), st.integers(1, 2))
def test_equals_brute_force(costs: list[Costs], steps: int, seats: int) -> None:
    units = len(costs[0].units)
    every = [loads(costs, r, steps, seats) for r in cuts(units, len(costs))]
    best = min(max(busy) for busy in every)
    if math.isinf(best):
        with pytest.raises(ConfigError, match="use fewer seats or steps"):
            place(costs, steps, seats)
        return
    found = place(costs, steps, seats)
    assert [u for r in found.ranges for u in r] == list(range(units))
    assert all(found.ranges)
    assert found.busy_ms == pytest.approx(loads(costs, list(found.ranges), steps, seats))
    assert found.slowest_ms == pytest.approx(best)
    evenest = min(sum(x * x for x in busy) for busy in every if max(busy) <= best * (1 + 1e-12))
    assert sum(x * x for x in found.busy_ms) == pytest.approx(evenest)


def test_more_devices_than_units_are_refused() -> None:
    costs = costfile.modelled(manifest.read(TINY), Device("cpu", 0, 1))
    with pytest.raises(ConfigError, match="got 16, but this model has 15 units; use at most 15"):
        place([costs] * 16, steps=1)


def test_memory_moves_the_cut_and_weights_lie_only_where_they_run() -> None:
    m = manifest.read(TINY)
    costs = costfile.modelled(m, Device("cpu", 0, 2))
    free = place([costs, costs], steps=2)
    whole = place([costs], steps=2)
    assert sum(free.memory_bytes) == whole.memory_bytes[0]
    small = replace(costs, memory_bytes=free.memory_bytes[0] - 1)
    moved = place([small, costs], steps=2)
    assert len(moved.ranges[0]) < len(free.ranges[0])
    assert moved.memory_bytes[0] <= free.memory_bytes[0] - 1
    with pytest.raises(ConfigError, match=r"2 seats of 2 rows need .* GB .* devices have 0\.0 GB"):
        place([replace(costs, memory_bytes=1)], steps=2, seats=2)


def test_a_device_of_twice_the_speed_gets_twice_the_work() -> None:
    m = manifest.read(TINY)
    slow, fast = (costfile.modelled(m, Device("cpu", 0, threads)) for threads in (1, 2))
    even = place([slow, slow], steps=1).busy_ms
    uneven = place([slow, fast], steps=1).busy_ms
    assert max(uneven) < max(even)


def test_costs_of_a_manifest_add_up() -> None:
    """Memory by hand: what the arrays of `seats.py` take, and every weight once."""
    from rt.seats import SeatMemory

    m = manifest.read(TINY)
    device = Device("cpu", 0, 1)
    costs = costfile.modelled(m, device)
    seat = SeatMemory(m, m.chain, device, 1, 1)
    arrays = [seat.k_ring, seat.v_ring, seat.sink_time, seat.prompt_k, seat.prompt_v]
    arrays += [a for sets in seat.caches.values() for one in sets for a in one.values()]
    assert sum(u.state_bytes for u in costs.units) == sum(a.nbytes for a in arrays)
    dit = [u for u in costs.units if u.kind == "block"]
    assert len({(u.timings, u.weights_bytes, u.state_bytes) for u in dit}) == 1
    assert costs.units[-1].handed_bytes == 0
    work = [max(u.plans["step"].flop / 90e6, u.plans["step"].bytes / 5e6) for u in m.chain]
    assert [u.timings[0].p50_ms for u in costs.units] == pytest.approx(work)
