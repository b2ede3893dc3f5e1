"""Overload, simulated: what becomes of frames, latency and steps while the offered load rises from
half to three times what the devices can do, and how fast a burst is forgotten. Writes the table of
docs/scaling.md and the picture beside it.

    python -m bench.overload
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.policies import DOCS, replace_section
from bench.published_costs import files
from rt.placement import place
from rt.plot import Panel, write_panels
from rt.scheduler import Decision, Event, Terms
from rt.simulate import Machine, Passed, Run, Stream, quantile, saturated_fps, simulate

COSTS = "h200-wan-1.3b-480p-modelled"
SESSIONS, STEPS = 3, 4
SLO_MS = {1: 1500.0, 4: 800.0}
"""By devices: one has slower sessions, whose chunks take longer to gather."""
LOADS = (0.5, 0.7, 0.85, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
SECONDS, BURST = 60.0, (10.0, 30.0)


@dataclass(frozen=True, slots=True)
class Point:
    """One offered load, relative to the capacity at all steps. Rates in frames/s."""

    load: float
    offered: float
    on_time: float
    late_share: float
    dropped_share: float
    p99_ms: float
    steps: float
    degraded_first: bool


def machine(gpus: int) -> Machine:
    costs = [files()[COSTS]] * gpus
    return Machine.of(costs, place(costs, STEPS, SESSIONS), STEPS)


def capacity(m: Machine, steps: int) -> float:
    """Frames per second of all sessions, saturated, each chunk with so many steps."""
    full = Stream(1e6, 2401, Terms(steps, steps))
    return saturated_fps(simulate(m, [full] * SESSIONS), m.frames_per_chunk)


def streams(fps: float, slo_ms: float, begin_s: float, seconds: float) -> list[Stream]:
    """Sessions that share `fps`, a little apart."""
    each = fps / SESSIONS
    terms = Terms(STEPS, 1, fps=each, latency_ns=round(slo_ms * 1e6))
    return [
        Stream(each, max(2, round(seconds * each)), terms, begin_s + 0.013 * n, jitter_ms=2.0)
        for n in range(SESSIONS)
    ]


def point(m: Machine, load: float, capacity_fps: float, slo_ms: float) -> Point:
    """A steady load, after the first two seconds."""
    log: list[Event | Decision] = []
    run = simulate(m, streams(load * capacity_fps, slo_ms, 0.0, SECONDS), log=log.append)
    chunks = [c for c in everything(run) if 2e9 < c.captured_ns[0] < (SECONDS - 2) * 1e9]
    frames = [(c, t) for c in chunks for t in c.captured_ns]
    ms = [(c.done_ns - t) * 1e-6 for c, t in frames if c.done_ns is not None]
    done = [c for c in chunks if c.done_ns is not None]
    first = {x.what: x.at_ns for x in reversed(log) if isinstance(x, Decision)}
    return Point(
        load,
        len(frames) / (SECONDS - 4),
        sum(x <= slo_ms for x in ms) / (SECONDS - 4),
        sum(x > slo_ms for x in ms) / len(frames),
        1 - len(ms) / len(frames),
        quantile(ms, 0.99),
        sum(c.steps for c in done) / len(done),
        "drop" not in first or first.get("degrade", first["drop"] + 1) <= first["drop"],
    )


def burst(m: Machine, capacity_fps: float, slo_ms: float) -> tuple[Run, list[Decision]]:
    """A third of the capacity throughout; three times as much for twenty seconds besides."""
    log: list[Event | Decision] = []
    calm = streams(0.33 * capacity_fps, slo_ms, 0.0, SECONDS)
    more = streams(2.67 * capacity_fps, slo_ms, BURST[0], BURST[1] - BURST[0])
    run = simulate(m, [*calm, *more], log=log.append)
    return run, [x for x in log if isinstance(x, Decision) and x.what != "run"]


def everything(run: Run) -> list[Passed]:
    return [c for session in run.chunks for c in session]


def table(gpus: Sequence[int], found: dict[int, list[Point]]) -> Iterator[str]:
    yield "| devices | load | offered fps | on time | late | dropped | p99, ms | mean steps |"
    yield "|---|---|---|---|---|---|---|---|"
    for g in gpus:
        for p in found[g]:
            yield (
                f"| {g} | {p.load:g} | {p.offered:.1f} | {p.on_time:.1f} | {p.late_share:.2%} | "
                f"{p.dropped_share:.1%} | {p.p99_ms:.0f} | {p.steps:.2f} |"
            )


def facts(m: Machine, gpus: int, found: list[Point], all_steps: float) -> Iterator[str]:
    """What has to hold, with the numbers that say whether it does."""
    least = capacity(m, 1)
    beyond = [p for p in found if p.offered > least]
    plateau = min((p.on_time for p in beyond), default=float("nan"))
    falls = max((a.on_time - b.on_time for a, b in itertools.pairwise(found)), default=0.0)
    _, decisions = burst(m, all_steps, SLO_MS[gpus])
    levels = [d for d in decisions if d.what in ("degrade", "recover")]
    back = [d.at_ns * 1e-9 for d in levels if d.what == "recover"]
    down = [d.at_ns * 1e-9 for d in levels if d.what == "degrade"]
    # One oscillation is a step down that follows a step up.
    apart = [
        (b.at_ns - a.at_ns) * 1e-9
        for a, b in itertools.pairwise(levels)
        if (a.what, b.what) == ("recover", "degrade")
    ]
    yield f"- {gpus} devices: capacity {all_steps:.1f} fps at {STEPS} steps, {least:.1f} at one"
    yield f"  - on time beyond the capacity at one step: at least {plateau / least:.0%} of it"
    yield f"  - most that on-time frames fall from one load to the next: {falls:.2f} fps"
    yield f"  - steps go before chunks at every load: {all(p.degraded_first for p in found)}"
    yield (
        f"  - burst: {len(down)} levels down, first after {min(down) - BURST[0]:.2f} s; all back "
        f"{max(back) - BURST[1]:.2f} s after its end; down again after up: {len(apart)} times"
        + (f", soonest after {min(apart):.2f} s" if apart else "")
    )


def panels(gpus: int, found: list[Point], run: Run, full: float, least: float) -> list[Panel]:
    def line(name: str) -> list[tuple[float, float]]:
        return [(p.load, float(getattr(p, name))) for p in found]

    across = f"offered load over capacity at {STEPS} steps"
    rates = {"offered": line("offered"), "on time": line("on_time")}
    limits = {f"capacity, {STEPS} steps": full, "capacity, 1 step": least}
    done = sorted(run.done(), key=lambda c: c.captured_ns[0])[::5]
    steps = {"steps of a chunk": [(c.captured_ns[0] * 1e-9, float(c.steps)) for c in done]}
    ms = {
        "latency": [
            (c.captured_ns[0] * 1e-9, (c.done_ns - c.captured_ns[0]) * 1e-6)
            for c in done
            if c.done_ns is not None
        ]
    }
    slo, when = {"SLO": SLO_MS[gpus]}, "Burst from 10 s to 30 s"
    return [
        Panel(f"Frames ({gpus} x H200, simulated)", across, "frames/s", rates, limits),
        Panel("Latency of emitted frames", across, "ms, p99", {"p99": line("p99_ms")}, slo),
        Panel("Steps", across, "mean steps", {"steps": line("steps")}),
        Panel(when, "s", "steps", steps),
        Panel(when, "s", "ms, first frame of a chunk", ms, slo),
    ]


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--docs", type=Path, default=DOCS)
    folder = p.parse_args().docs
    found: dict[int, list[Point]] = {}
    told: list[str] = []
    for gpus in (1, 4):
        m = machine(gpus)
        full = capacity(m, STEPS)
        found[gpus] = [point(m, load, full, SLO_MS[gpus]) for load in LOADS]
        told += facts(m, gpus, found[gpus], full)
    print("\n".join(told))
    replace_section(folder / "scaling.md", "overload", iter([*table((1, 4), found), "", *told]))
    run, _ = burst(m, full, SLO_MS[4])
    picture = panels(4, found[4], run, full, capacity(m, 1))
    write_panels(folder / "overload.png", picture, columns=3)


if __name__ == "__main__":
    main()
