"""The chain played forward: against the recursion of flow shops, a clock that ticks, the world."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_clock import MS, World

from rt.frame import Kind
from rt.scheduler import Decision, Terms
from rt.scheduler.prospect import OVERTAKES_NS, left_ns

CHAIN: dict[tuple[int, Kind], float] = {
    **{(0, "encode"): 20, (0, "denoise"): 15, (1, "denoise"): 25},
    **{(2, "denoise"): 20, (2, "decode"): 10, (3, "decode"): 50},
}
"""Four stages of 50 ms for a chunk of two steps; 190 ms from end to end."""
PATH_MS, BUSIEST_MS = 200.0, 50.0

part = st.tuples(st.integers(0, 2), st.integers(1, 9))
works = st.lists(st.lists(part, min_size=1, max_size=5), min_size=1, max_size=5)


@given(st.lists(st.tuples(*[st.integers(0, 20)] * 3), min_size=1, max_size=6))
def test_one_visit_of_each_stage_is_a_flow_shop(ms: list[tuple[int, int, int]]) -> None:
    """The recursion that everybody knows: C[i, s] = max(C[i - 1, s], C[i, s - 1]) + p[i, s]."""
    ends = [0.0] * 3
    for number, times in enumerate(ms):
        for stage, took in enumerate(times):
            ends[stage] = max(ends[stage], ends[stage - 1] if stage else 0.0) + took
        parts = [list(enumerate(map(float, t))) for t in ms[: number + 1]]
        begin = [0.0] * len(parts)
        assert left_ns(begin, parts, [0.0] * 3, number) == ends[2]


@given(works, st.lists(st.integers(0, 9), min_size=5, max_size=5), st.data())
def test_any_work_is_what_a_ticking_clock_says(
    parts: list[list[tuple[int, int]]], begin: list[int], data: st.DataObject
) -> None:
    of = data.draw(st.integers(0, len(parts) - 1))
    free = [data.draw(st.integers(0, 9)) for _ in range(3)]
    expected = ticking(begin[: len(parts)], parts, free, of)
    assert left_ns(begin[: len(parts)], parts, free, of) == expected


def ticking(begin: list[int], parts: list[list[tuple[int, int]]], free: list[int], of: int) -> int:
    """Tick by tick: who is done moves on, then every free stage takes the most urgent there."""
    at, until = [0] * len(parts), list(begin)
    busy = list(free)
    working = [False] * len(parts)
    for now in range(1000):
        for chunk in range(len(parts)):
            if working[chunk] and until[chunk] == now:
                working[chunk], at[chunk] = False, at[chunk] + 1
                if chunk == of and at[chunk] == len(parts[chunk]):
                    return now
        for stage in range(3):
            for chunk in range(len(parts)):
                here = at[chunk] < len(parts[chunk]) and parts[chunk][at[chunk]][0] == stage
                if here and not working[chunk] and begin[chunk] <= now and busy[stage] <= now:
                    working[chunk] = True
                    busy[stage] = until[chunk] = now + parts[chunk][at[chunk]][1]
    raise AssertionError("it never leaves")


def offered(load: float, phases_ms: list[float], budget_ms: float, seconds: float) -> World:
    """Three cameras that share `load` of what the chain can do."""
    world = World(CHAIN, 2)
    fps = 4 * load * 1e3 / BUSIEST_MS / 3
    for number, phase in enumerate(phases_ms):
        world.open(number, Terms(2, 2, 0, fps, round(budget_ms * MS)), phase_ms=phase)
    world.run(seconds)
    return world


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0, 300), min_size=3, max_size=3))
def test_below_the_capacity_nothing_is_lost_whatever_the_phases(phases: list[float]) -> None:
    """A chunk in 300 ms each, half of what can be done. Two others may come before it; the first
    frame waits 225 ms for the last of its chunk.
    """
    world = offered(0.5, phases, 225 + PATH_MS + 3 * BUSIEST_MS, 6)
    for source in world.sources.values():
        assert source.late == source.dropped == 0


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(0, 300), min_size=3, max_size=3), st.sampled_from([1.5, 2.0, 3.0]))
def test_overload_is_kept_before_the_chain_and_shared(phases: list[float], load: float) -> None:
    """However much time there is, what comes out is as fresh as it can be; equals get the same; and
    the busiest stage never runs dry.
    """
    world = offered(load, phases, 3000, 8)
    period_ms = 3 * BUSIEST_MS / load
    got = [s.on_time for s in world.sources.values()]
    assert sum(got) >= 0.93 * (8000 - max(phases) - PATH_MS) / BUSIEST_MS
    assert max(got) - min(got) <= 0.12 * max(got) + 2, got
    settled = [
        x for s in world.sources.values() for x in s.latencies_ms[len(s.latencies_ms) // 2 :]
    ]
    assert max(settled) <= 0.75 * period_ms + period_ms + PATH_MS + 3 * BUSIEST_MS


def test_who_comes_a_moment_later_does_not_overtake() -> None:
    """Three cameras 1 ms apart, whose clocks run a little backwards against each other."""
    world = World(CHAIN, 2)
    budgets_ms = (1000.0, 996.0, 992.0)  # Who comes last is due first.
    assert budgets_ms[0] - budgets_ms[-1] < OVERTAKES_NS / MS
    for number, budget in enumerate(budgets_ms):
        world.open(number, Terms(2, 2, 0, 4.0, round(budget * MS)), phase_ms=1.0 * number)
    world.run(0.9)
    runs = [d for d in world.log if isinstance(d, Decision) and d.what == "run" and d.stage == 3]
    assert [d.session for d in runs] == [0, 1, 2]


@pytest.mark.parametrize("first", [0, 1])
def test_who_is_due_much_sooner_does(first: int) -> None:
    world = World(CHAIN, 2)
    for number in (first, 1 - first):
        budget_ms = (2000.0, 1200.0)[number]
        phase_ms = 30.0 if number != first else 0.0
        world.open(number, Terms(2, 2, 0, 4.0, round(budget_ms * MS)), phase_ms=phase_ms)
    world.run(0.9)
    left = {n: s.latencies_ms[0] for n, s in world.sources.items()}
    assert not math.isnan(left[0])
    assert left[1] == pytest.approx(750 + PATH_MS, abs=25)
