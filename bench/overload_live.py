"""Offered load from half to three times the capacity and back, on stretched engines: goodput stays,
latency keeps the SLO, steps go before chunks, and all is given back afterwards. Table and plot.

    python -m bench.overload_live
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import rt
from bench.cameras import Viewer, camera
from bench.scaling import even
from bench.smallest import engines_of, live_parser
from bench.stretched import stretched
from bench.table import Row, above, publish
from rt import manifest as manifests
from rt.simulate import quantile

LOADS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 0.5)
"""Of the capacity at full steps; the last is for recovery."""
STAGES, STEPS, SESSIONS = 4, 2, 3
PLATEAU, RECOVERY_S = 0.9, 5.0


def measure(engines: Path, options: argparse.Namespace) -> list[Row]:
    """One run through all loads."""
    manifest = manifests.read(engines)
    costs = even(manifest, STAGES, STEPS, STAGES * options.stage_ms)
    capacity = 4e3 / options.stage_ms  # frames/s at full steps

    def rate(at: float) -> float | None:
        step = int(at / options.seconds)
        return LOADS[step] * capacity / SESSIONS if step < len(LOADS) else None

    log: list[rt.Decision] = []

    def note(entry: object) -> None:
        if isinstance(entry, rt.Decision) and entry.what in ("drop", "degrade", "recover"):
            log.append(entry)

    names = [f"cpu:{i}" for i in range(STAGES)]
    slo = rt.SLO(fps=0.5 * capacity / SESSIONS, latency_ms=options.slo_ms)
    with (
        stretched(manifest, costs),
        rt.Pipeline.load(engines, names, seats=SESSIONS, steps=STEPS, log=note) as pipeline,
    ):
        size = manifest.geometry.height
        viewers = [
            Viewer(pipeline.session(prompt="load", slo=slo, motion="off"), camera(rate, size))
            for _ in range(SESSIONS)
        ]
        start = time.perf_counter()
        for viewer in viewers:
            viewer.start()
        reports = [viewer.join() for viewer in viewers]
    for report in reports:
        left = report.frames_on_time + report.frames_late + report.frames_dropped
        assert report.frames_in == left, "counts add up"
    seen = [frame for viewer in viewers for frame in viewer.seen]
    rows = table(seen, log, start, capacity, options)
    if options.plot:
        plot(rows, options.plot)
    return rows


def table(
    seen: list[tuple[float, float]],
    log: list[rt.Decision],
    start: float,
    capacity: float,
    options: argparse.Namespace,
) -> list[Row]:
    """Goodput, p99 latency and drops at each load but for its first second; then recovery."""
    rows: list[Row] = []
    budget = options.slo_ms * 1e-3
    for number, load in enumerate(LOADS):
        begin, end = start + number * options.seconds + 1, start + (number + 1) * options.seconds
        latencies = [out - taken for taken, out in seen if begin <= taken < end]
        on_time = sum(latency <= budget for latency in latencies) / (end - begin)
        name = f"load {load:g}" + (" again" if number == len(LOADS) - 1 else "")
        limit = PLATEAU * min(load, 1.0) * capacity
        rows.append(Row(f"{name}: on time", on_time, "frames/s", len(latencies), limit))
        p99 = quantile(latencies, 0.99)
        rows.append(Row(f"{name}: latency p99", p99 * 1e3, "ms", len(latencies), options.slo_ms))
        drops = sum(begin <= d.at_ns * 1e-9 < end and d.what == "drop" for d in log)
        rows.append(Row(f"{name}: chunks dropped", drops, "", 1))
    first = {what: min((d.at_ns for d in log if d.what == what), default=0) for what in WHAT}
    before = (first["drop"] - first["degrade"]) * 1e-6
    rows.append(Row("first drop after first degradation", before, "ms", 1))
    fell = start + (len(LOADS) - 1) * options.seconds
    last = max((d.at_ns * 1e-9 for d in log if d.what == "recover"), default=float("inf"))
    rows.append(Row("all steps given back after the load fell", last - fell, "s", 1, RECOVERY_S))
    return rows


WHAT = ("drop", "degrade")


def plot(rows: list[Row], path: Path) -> None:
    """On-time frames and p99 latency by load, as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    loads = LOADS[:-1]
    for axis, what, label in (
        (above, "on time", "on time, frames/s"),
        (below, "latency p99", "ms"),
    ):
        chosen = [r for r in rows if r.name.endswith(what) and "again" not in r.name]
        axis.plot(loads, [r.value for r in chosen], marker="o", label=what)
        axis.plot(loads, [r.limit for r in chosen], linestyle=":", label="limit")
        axis.set(ylabel=label, ylim=(0, None))
        axis.legend()
    below.set(xlabel="offered load / capacity at full steps")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    p = live_parser(__doc__, "overload_live")
    p.add_argument("--stage-ms", type=above(0), default=200.0, help="work of a chunk on each stage")
    p.add_argument("--slo-ms", type=above(0), default=2500.0)
    p.add_argument("--seconds", type=above(1), default=10.0, help="at each load")
    p.add_argument("--plot", type=Path, metavar="FILE", help="draw it (default: no plot)")
    options = p.parse_args()
    with engines_of(options) as engines:
        rows = measure(engines, options)
    publish(
        f"overload: {SESSIONS} sessions, {STAGES} stages, stretched engines", rows, options.json
    )


if __name__ == "__main__":
    main()
