"""Deadlines, drops, degradation, fairness and admission, on the clock of `virtual_clock`, so that
every number here is exact.
"""

from __future__ import annotations

import itertools
import statistics

import pytest
from virtual_clock import MS, Source, World

from rt.cost import Line, PassCost
from rt.frame import Kind
from rt.scheduler import Decision, Routes, Scheduler, Terms, replay
from rt.scheduler.ladder import CALM_NS, DWELL_NS, Ladder

ONE: dict[tuple[int, Kind], float] = {(0, "encode"): 20, (0, "denoise"): 20, (0, "decode"): 40}
FOUR: dict[tuple[int, Kind], float] = {
    (0, "encode"): 25,
    (1, "denoise"): 12.5,
    (2, "denoise"): 12.5,
    (3, "decode"): 25,
}
CAPACITY = {"one": 10.0, "four": 40.0}
"""Chunks a second at two steps."""


def overloaded(
    layout: str, load: float, sessions: int, budget_ms: float = 1000, seconds: float = 12
) -> World:
    world = World({"one": ONE, "four": FOUR}[layout], 2, jitter=0.1)
    fps = 4 * CAPACITY[layout] * load / sessions
    for number in range(sessions):
        world.open(number, Terms(2, 1, 0, fps, round(budget_ms * MS)), phase_ms=7 * number)
    world.run(seconds)
    return world


def decisions(world: World, *what: str) -> list[Decision]:
    return [x for x in world.log if isinstance(x, Decision) and x.what in what]


def on_time_per_s(world: World) -> float:
    return sum(s.on_time for s in world.sources.values()) / (world.now * 1e-9)


@pytest.mark.parametrize("sessions", [1, 3])
@pytest.mark.parametrize("layout", ["one", "four"])
def test_goodput_does_not_fall_beyond_capacity(layout: str, sessions: int) -> None:
    goodput = {}
    for load in (0.5, 0.8, 1.0, 1.5, 2.0, 3.0):
        world = overloaded(layout, load, sessions)
        goodput[load] = on_time_per_s(world)
        late = sum(s.late for s in world.sources.values())
        done = sum(s.late + s.on_time for s in world.sources.values())
        assert late <= 0.01 * done, load
        if load < 0.9:
            assert goodput[load] >= 0.98 * load * CAPACITY[layout]
            assert not decisions(world, "drop", "degrade")
        for source in world.sources.values():
            left = source.on_time + source.late + source.dropped
            assert source.arrived - left == len(source.deadlines), "in = out + dropped + in flight"
    capacity = {"one": 1000 / 84, "four": 1000 / 26.25}[layout]  # one step, mean of the jitter
    for load in (1.5, 2.0, 3.0):
        assert goodput[load] >= 0.9 * capacity
        assert goodput[load] >= 0.98 * goodput[1.0]


@pytest.mark.parametrize("budget_ms", [400, 550, 700])
def test_what_is_emitted_keeps_a_tight_budget(budget_ms: float) -> None:
    for load in (0.7, 1.5, 3.0):
        world = overloaded("one", load, 2, budget_ms)
        for source in world.sources.values():
            latencies = sorted(source.latencies_ms)
            assert latencies, load
            assert latencies[int(0.99 * (len(latencies) - 1))] <= budget_ms, load


def test_steps_go_before_chunks_do() -> None:
    world = overloaded("one", 3.0, 2)
    first_drop = decisions(world, "drop")[0].at_ns
    assert decisions(world, "degrade")[0].at_ns <= first_drop
    for source in world.sources.values():
        assert {n for at, n in source.steps if at > first_drop + 1e9} == {1}


@pytest.mark.parametrize("load", [1.5, 2.0, 2.5])
def test_equals_lose_equally(load: float) -> None:
    got = [s.on_time for s in overloaded("one", load, 3).sources.values()]
    assert max(got) - min(got) <= 0.05 * max(got), got


def test_recovery_and_no_oscillation() -> None:
    """Four steps; the load is 3 times what one step could do for 5 s, then a tenth of it."""
    world = World(ONE, 4)
    world.open(0, Terms(4, 1, 0, 4 * 30.0, 1000 * MS))
    world.run(5)
    assert world.scheduler.level == 3
    world.set_rate(0, 4 * 3.0)
    world.run(10)
    assert world.scheduler.level == 0
    changes = decisions(world, "degrade", "recover")
    assert [c.what for c in changes] == ["degrade"] * 3 + ["recover"] * 3
    ups = [c.at_ns for c in changes if c.what == "recover"]
    assert ups[0] - 5e9 >= CALM_NS * 0.9
    downs = [c.at_ns for c in changes if c.what == "degrade"]
    assert all(b - a >= DWELL_NS for a, b in itertools.pairwise(downs))


def test_a_source_that_became_slow_has_its_steps_back_in_time() -> None:
    """A chunk in 1.25 s: four of them, which tell its rate otherwise, would take 5 s. Idle stages
    ask every 250 ms, as the pipeline's watchdog makes them.
    """
    world = World(ONE, 4)
    world.open(0, Terms(4, 1, 0, 4 * 30.0, 1000 * MS))
    world.run(5)
    assert world.scheduler.level == 3
    world.set_rate(0, 4 * 0.8)
    for tick in range(20):
        world.at(world.now + tick * 250 * MS, lambda: None)
    world.run(10)
    assert world.scheduler.level == 0
    assert [c.what for c in decisions(world, "degrade", "recover")].count("degrade") == 3


@pytest.mark.parametrize("apart_ms", [1.5, 67.0])
def test_cameras_in_step_have_their_steps_back_in_time_and_keep_them(apart_ms: float) -> None:
    """Chunks of three sessions arrive together, at three times the capacity and then at half of it.
    Each waits for those that are due a little sooner, even if its turn to be encoded came first; a
    forecast that forgets them needs a margin that leaves no room for the second step.
    """
    ms: dict[tuple[int, Kind], float] = {
        **{(0, "encode"): 86, (0, "denoise"): 57, (1, "denoise"): 100},
        **{(2, "denoise"): 86, (2, "decode"): 29, (3, "decode"): 200},
    }
    for over_s in (8, 8.3):
        world = World(ms, 2, jitter=0.02)
        for number in range(3):
            world.open(number, Terms(2, 1, 0, 20.0, 2500 * MS), phase_ms=apart_ms * number)
        for tick in range(80):
            world.at(tick * 250 * MS, lambda: None)
        world.run(over_s)
        for number in range(3):
            world.set_rate(number, 10 / 3)
        world.run(20)
        changes = decisions(world, "degrade", "recover")
        assert [c.what for c in changes] == ["degrade", "recover"]
        assert changes[1].at_ns <= (over_s + 5) * 1e9


def test_a_level_is_kept_where_the_better_one_would_not_hold() -> None:
    """At one step 64 % of the stage, at two 96 %: it stays at one."""
    world = World(ONE, 2)
    world.open(0, Terms(2, 1, 0, 4 * 12.0, 1000 * MS))
    world.run(2)
    world.set_rate(0, 4 * 8.6)
    world.run(30)
    assert [c.what for c in decisions(world, "degrade", "recover")] == ["degrade"]


def test_priority_keeps_steps_and_chunks_longer() -> None:
    """Demand at full steps 1.0, with one step for the lower 0.9; later 0.6 + 1.2."""
    world = World(ONE, 2)
    fps = 4 * 5.0
    world.open(0, Terms(2, 1, 1, fps, 1000 * MS))
    world.open(1, Terms(2, 1, 0, fps, 1000 * MS), phase_ms=5)
    world.run(10)
    high, low = world.sources[0], world.sources[1]
    assert {n for _, n in high.steps} == {2}
    assert {n for at, n in low.steps if at > 3e9} == {1}
    world.set_rate(0, fps * 1.5)
    world.set_rate(1, fps * 3)
    world.run(25)
    assert not high.drops_ns
    assert low.drops_ns


def test_a_chunk_that_comes_too_late_to_be_done_presses_nobody() -> None:
    """The source stalled: no fewer steps would help, so nobody loses any."""
    scheduler = World(ONE, 2).scheduler
    scheduler.open(0, 0, Terms(2, 1, 0, 16.0, 1000 * MS))
    for chunk, deadline in ((0, 5000 * MS), (1, 1010 * MS)):
        scheduler.arrived(0, chunk, deadline, 1000 * MS)
        if chunk == 0:
            task = scheduler.next(0, 1000 * MS)
            assert task is not None
            scheduler.finished(0, task, 1000 * MS)
            while (task := scheduler.next(0, 1000 * MS)) is not None:
                scheduler.finished(0, task, 1000 * MS)
    assert scheduler.next(0, 1000 * MS) is None
    assert scheduler.dropped() == ((0, 1),)
    assert scheduler.level == 0


def test_a_batch_grows_only_while_every_member_keeps_its_deadline() -> None:
    """Two sessions wait for the DiT; a pass of one takes 20 ms, of two 38, decoding 40. Where two
    take 40 nobody waits for a neighbour.
    """
    for slack_ms, saved, members in ((85, 2.0, 2), (75, 2.0, 1), (5000, 0.0, 1)):
        costs = {(int(k != "encode"), k): PassCost(Line(0.0, ms)) for (_, k), ms in ONE.items()}
        costs[1, "denoise"] = PassCost(Line(saved, 20 - saved))
        scheduler = Scheduler(Routes((0,), (1,), (1,)), 1, 4, costs)
        for session in range(2):
            scheduler.open(session, session, Terms(1, 1, 0, 16.0, 1000 * MS))
            scheduler.arrived(session, 0, 10_000 * MS + session, 0)
            task = scheduler.next(0, 0)
            assert task is not None
            scheduler.finished(0, task, 0)
        task = scheduler.next(1, (10_000 - slack_ms) * MS)
        assert task is not None
        assert len(task.jobs) == members


def test_admission_refuses_with_numbers_and_takes_one_after_another_left() -> None:
    """Chunks of 100 ms. Four sessions of different rate and budget need 85 % at most."""
    world = World(ONE, 2)
    offers = [
        Terms(2, 1, 0, fps, ms * MS) for fps, ms in ((8, 1500), (10, 1200), (6, 1500), (8, 1400))
    ]
    for number, terms in enumerate(offers):
        assert world.scheduler.admit(terms, 0).fits
        world.open(number, terms, phase_ms=13 * number)
    fifth = Terms(2, 1, 0, 8.0, 1500 * MS)
    refused = world.scheduler.admit(fifth, 0)
    assert not refused.fits
    assert refused.demand == pytest.approx((8 + 10 + 6 + 8 + 8) / 4 * 0.1)
    assert "100%" in refused.why
    assert "85%" in refused.why
    world.run(60)
    for source in world.sources.values():
        assert (source.late, source.dropped) == (0, 0)
        assert statistics.mean(n for _, n in source.steps) == 2
    world.scheduler.close(1)
    assert world.scheduler.admit(fifth, 0).fits
    slow = world.scheduler.admit(Terms(2, 1, 0, 8.0, 300 * MS), 0)
    assert not slow.fits, "375 ms pass while a chunk of 8 fps is gathered"
    assert slow.latency_ms > 300


def test_a_replayed_log_decides_the_same() -> None:
    world = overloaded("four", 2.0, 3, seconds=5)
    costs = {key: PassCost(Line(0.0, ms), 1.1) for key, ms in FOUR.items()}
    again: list[object] = []
    replay(world.log, Scheduler(world.routes, 2, 4, costs, again.append))
    assert again == world.log
    assert decisions(world, "drop")
    assert "ms" in str(decisions(world, "run")[0])


def test_wrong_costs_are_learnt() -> None:
    """Told nothing, a fifth of the truth, or so much that no chunk seems to be worth its while: the
    second half of the run keeps the SLO.
    """
    for told in (None, 0.2, 20):
        world = World(ONE, 2, jitter=0.1)
        costs = None
        if told is not None:
            costs = {key: PassCost(Line(0.0, ms * told)) for key, ms in ONE.items()}
        world.scheduler = Scheduler(world.routes, 2, 4, costs, world.log.append)
        world.open(0, Terms(2, 1, 0, 4 * 20.0, 400 * MS))
        world.run(20)
        source = world.sources[0]
        latencies = source.latencies_ms[len(source.latencies_ms) // 2 :]
        assert sum(ms > 400 for ms in latencies) <= 0.01 * len(latencies)
        assert sum(at > 10e9 for at, _ in source.steps) >= 0.9 * 10 * 1000 / 84


def test_nobody_without_an_slo_starves_for_longer_than_its_patience() -> None:
    world = World(ONE, 2)
    world.open(0, Terms(2, 1, 0, 4 * 30.0, 1000 * MS))
    scheduler = world.scheduler
    scheduler.open(1, 1, Terms(2))
    world.sources[1] = Source(Terms(2, latency_ns=1 << 60))
    world.sources[1].deadlines[0] = 1 << 60
    scheduler.arrived(1, 0, None, 0)
    world.run(5.5)
    assert world.sources[1].latencies_ms


def test_ladder_takes_from_the_lowest_first() -> None:
    ladder = Ladder()
    low, high, file = Terms(3, 1, 0, 16, MS), Terms(2, 1, 5, 16, MS), Terms(4)
    ladder.fit([high, low, file])
    seen = []
    for moment in range(6):
        seen.append((ladder.steps(low), ladder.steps(high), ladder.steps(file)))
        ladder.press(moment * DWELL_NS)
    assert seen == [(3, 2, 4), (2, 2, 4), (1, 2, 4), (1, 1, 4), (1, 1, 4), (1, 1, 4)]
