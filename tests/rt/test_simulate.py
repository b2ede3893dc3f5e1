"""The simulator obeys the laws that queues obey, and gives exactly what a formula gives where there
is one.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from drawn_costs import chains
from hypothesis import given, settings

from bench.published_costs import files
from rt import costfile
from rt.cost import Costs
from rt.gated import Gated
from rt.placement import place
from rt.scheduler import Terms
from rt.simulate import Machine, Run, Stream, compute_ms, quantile, saturated_fps, simulate

COSTS = Path(costfile.__file__).parent / "costs"


def machine(costs: list[Costs], steps: int) -> Machine:
    """The best placement of a chain over devices."""
    return Machine.of(costs, place(costs, steps), steps)


def pass_ns(m: Machine, kind: str, batch: int) -> list[int]:
    """What each stage of a route takes, as the simulator counts: whole nanoseconds."""
    stages = m.routes.of(kind)  # type: ignore[arg-type]
    return [max(1, round(m.table[s, kind].pass_ns(batch)[0])) for s in stages]  # type: ignore[index]


def alone_ns(m: Machine, steps: int, batch: int = 1) -> int:
    """A chunk that waits for nothing: every pass once, one after the other."""
    vae = sum(pass_ns(m, "encode", 1)) + sum(pass_ns(m, "decode", 1))
    return vae + steps * sum(pass_ns(m, "denoise", batch))


MS = 1_000_000
steps_ = st.integers(1, 4)
drawn = chains(limited=False)


@given(
    st.floats(0, 9),
    st.floats(1, 60),
    st.lists(st.tuples(st.floats(0.1, 3), st.floats(1, 60)), max_size=4),
)
def test_a_source_keeps_the_rate_of_each_of_its_parts(
    begin_s: float, fps: float, parts: list[tuple[float, float]]
) -> None:
    ends = np.cumsum([length for length, _ in parts]).tolist()
    changes = tuple((end, rate) for end, (_, rate) in zip(ends, parts, strict=True))
    times = list(Stream(fps, 200, Terms(1), begin_s, changes=changes).due_s())
    assert len(times) == 200
    assert times[0] == begin_s
    for a, b in itertools.pairwise(times):
        rate = [fps, *(r for end, r in changes if a >= begin_s + end)][-1]
        assert b - a == pytest.approx(1 / rate)


@settings(deadline=None)
@given(drawn, steps_)
def test_what_never_waits_takes_the_sum_of_its_passes(costs: list[Costs], steps: int) -> None:
    m = machine(costs, steps)
    expected = alone_ns(m, steps)
    fps = 4e9 / (expected * 1.01)
    run = simulate(m, [Stream(fps, 21, Terms(steps))])
    assert [c.done_ns - c.ready_ns for c in run.done() if c.done_ns] == [expected] * 6
    assert {batch for _, _, batch in run.passes} == {1}


@settings(deadline=None)
@given(drawn, steps_)
def test_gated_waits_for_input_in_every_lap(costs: list[Costs], steps: int) -> None:
    """(n - 1) G periods, and one round with a full batch."""
    m = machine(costs, steps)
    period_ns = round(alone_ns(m, steps, steps) * 1.01)
    lap = (steps - 1) * m.stages
    frames = 1 + 4 * (2 * lap + 5)
    policy = Gated(m.routes, steps, m.stages)
    run = simulate(m, [Stream(4e9 / period_ns, frames, Terms(steps))], policy=policy)
    left = run.done()
    assert len(left) == len(run.chunks[0]) - lap
    vae = alone_ns(m, 0)
    last = left[-1]
    assert last.done_ns is not None
    assert last.done_ns - last.ready_ns == pytest.approx(
        lap * period_ns + vae + sum(pass_ns(m, "denoise", steps)), abs=100
    )


busy_streams = st.lists(
    st.builds(
        Stream,
        fps=st.sampled_from([5.0, 50.0, 1e6]),
        frames=st.integers(1, 60),
        terms=st.builds(
            Terms, st.integers(1, 2), latency_ns=st.sampled_from([None, 300 * MS, 3000 * MS])
        ),
        begin_s=st.sampled_from([0.0, 0.3]),
        jitter_ms=st.sampled_from([0.0, 20.0]),
    ),
    min_size=1,
    max_size=3,
)


@settings(deadline=None)
@given(drawn, busy_streams, st.integers(0, 3))
def test_laws_of_any_run(costs: list[Costs], streams: list[Stream], seed: int) -> None:
    m = machine([replace(c, spread=(0.8, 1.0, 1.5)) for c in costs], 2)
    run = simulate(m, streams, seed=seed)
    chunks = [c for session in run.chunks for c in session]
    ends = [c.done_ns if c.dropped_ns is None else c.dropped_ns for c in chunks]
    assert None not in ends, "in = out + dropped when all is over"
    assert not any(c.done_ns is not None and c.dropped_ns is not None for c in chunks)
    sojourns = [end - c.ready_ns for c, end in zip(chunks, ends, strict=True) if end is not None]
    assert run.waiting_ns == sum(sojourns), "Little: N T = X R T"
    for session, stream in zip(run.chunks, streams, strict=True):
        left = [c for c in session if c.done_ns is not None]
        assert sorted(left, key=lambda c: c.done_ns or 0) == left, "in order"
        assert left[0].chunk == 0, "the first chunk is never dropped"
        assert stream.terms.latency_ns is not None or len(left) == len(session)
    for stage in range(m.stages):
        assert sum(ns for (s, _), ns in run.busy_ns.items() if s == stage) <= run.end_ns
    assert_bottleneck(m, run)
    assert simulate(m, streams, seed=seed).done()[-1].done_ns == run.done()[-1].done_ns


def assert_bottleneck(m: Machine, run: Run) -> None:
    """No run is shorter than the least work of its busiest stage."""
    for stage in range(m.stages):
        least = 0.0
        for (where, kind), cost in m.table.items():
            if where == stage:
                per_job = min(cost.pass_ns(b)[0] / b for b in range(1, m.max_batch + 1))
                jobs = sum(c.steps if kind == "denoise" else 1 for c in run.done())
                least += jobs * per_job * m.spread[0]
        assert run.end_ns >= least * (1 - 1e-6)


@settings(deadline=None)
@given(drawn, busy_streams)
def test_utilisation_is_throughput_times_demand(costs: list[Costs], streams: list[Stream]) -> None:
    """Exactly, where service times do not vary: busy time = passes times what they take."""
    m = machine(costs, 2)
    run = simulate(m, streams)
    counted: dict[tuple[int, str], int] = {}
    jobs: dict[tuple[int, str], int] = {}
    for (stage, kind, batch), passes in run.passes.items():
        took = max(1, round(m.table[stage, kind].pass_ns(batch)[0]))
        counted[stage, kind] = counted.get((stage, kind), 0) + passes * took
        jobs[stage, kind] = jobs.get((stage, kind), 0) + passes * batch
    assert counted == run.busy_ns
    for (_, kind), number in jobs.items():
        assert number == sum(c.steps if kind == "denoise" else 1 for c in run.done())


@settings(deadline=None)
@given(st.integers(0, 50), st.floats(0.3, 1.5))
def test_one_server_is_lindleys_recursion(seed: int, load: float) -> None:
    """One device, one step, jittered arrivals: W' = max(0, W + S - A)."""
    costs = files()["h100-wan-1.3b-480p-published"]
    m = machine([replace(costs, spread=(1.0,))], 1)
    service = alone_ns(m, 1)
    stream = Stream(4e9 / service * load, 121, Terms(1), jitter_ms=150.0)
    run = simulate(m, [stream], seed=seed)
    arrivals = [c.ready_ns for c in run.chunks[0]]
    wait, waits = 0, [0]
    for between in np.diff(arrivals).tolist():
        wait = max(0, wait + service - between)
        waits.append(wait)
    assert [c.done_ns - c.ready_ns - service for c in run.chunks[0] if c.done_ns] == waits


def test_sessions_are_admitted_while_they_fit_and_leave_room_when_they_end() -> None:
    """One H200 as modelled: 16 fps at two steps are 30 % of it each."""
    costs = files()["h200-wan-1.3b-480p-modelled"]
    m = machine([costs], 2)
    terms = Terms(2, 2, fps=16.0, latency_ns=600 * MS)
    offered = [Stream(16.0, 160, terms, begin_s=b) for b in (0.0, 1.0, 2.0, 13.0)]
    run = simulate(m, offered, ask=True)
    assert list(run.refused) == [2]
    assert "at most 85%" in run.refused[2]
    assert all(c.done_ns is None and c.dropped_ns is None for c in run.chunks[2])
    for number in (0, 1, 3):
        ms = [(c.done_ns - c.captured_ns[0]) * 1e-6 for c in run.chunks[number] if c.done_ns]
        assert len(ms) == len(run.chunks[number])
        assert max(ms) <= 600
    assert not simulate(m, offered).refused


def test_a_balanced_line_is_as_fast_as_its_slowest_stage() -> None:
    costs = [replace(files()["h200-wan-1.3b-480p-modelled"], spread=(1.0,))] * 4
    placement = place(costs, 1)
    m = Machine.of(costs, placement, 1)
    fps = saturated_fps(simulate(m, [Stream(1e6, 1601, Terms(1))]), 4)
    assert fps == pytest.approx(4e3 / placement.slowest_ms, rel=0.01)


def test_draws_follow_the_spread() -> None:
    costs = files()["h100-wan-1.3b-480p-published"]
    m = machine([costs], 1)
    points = np.linspace(0, 1, len(m.spread))
    for share in (0.0, 0.1, 0.503, 0.99, 0.9999):
        assert m.ratio(share) == pytest.approx(np.interp(share, points, m.spread))


def test_quantile_is_nearest_rank() -> None:
    values = [5.0, 1.0, 3.0, 2.0]
    assert [quantile(values, q) for q in (0.01, 0.25, 0.5, 0.99)] == [1.0, 1.0, 2.0, 5.0]
    assert math.isnan(quantile([], 0.5))


def test_shipped_costs_are_what_the_script_writes() -> None:
    assert {p.stem: costfile.read(p) for p in COSTS.glob("*.json")} == files()


def test_continuous_and_gated_at_the_published_costs() -> None:
    """Four H100, four steps, 16 fps: the paper's policy takes seconds, the controller does not."""
    costs = [files()["h100-wan-1.3b-480p-published"]] * 4
    m = Machine.of(costs, place(costs, 4), 4)
    live, full = Stream(16, 1201, Terms(4)), Stream(1e6, 2401, Terms(4))
    gated = [simulate(m, [s], policy=Gated(m.routes, 4, 4)) for s in (live, full)]
    ours = [simulate(m, [s]) for s in (live, full)]
    assert quantile(compute_ms(gated[0], 20), 0.5) == pytest.approx(3290, rel=0.01)
    assert quantile(compute_ms(ours[0], 20), 0.5) < 500
    assert saturated_fps(ours[1], 4) == pytest.approx(saturated_fps(gated[1], 4), rel=0.02)
