"""The loads of `bench.overload_live` on the virtual clock, with cameras in many phases: in step,
almost in step, or as it happens. What one run on real time shows once is here a share of draws.

    python -m bench.phases
"""

from __future__ import annotations

import dataclasses
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bench.overload_live import LOADS, RECOVERY_S, SESSIONS, STAGES, STEPS
from bench.scaling import even
from bench.table import ROOT, Row, above, count, parser, publish
from rt import manifest as manifests
from rt.placement import place
from rt.scheduler import Decision, Event, Terms
from rt.simulate import Machine, Run, Stream, quantile, simulate

STAGE_MS, BUDGET_MS, SECONDS = 200.0, 2500.0, 10.0
"""Work of a chunk on each stage; budget; how long each load lasts."""
CAPACITY = 4e3 / STAGE_MS
"""Frames a second at full steps."""
SHAPE = (0.0, 0.0, 0.1, 0.2, 0.3, 0.5, 0.8, 1.5, 4.0)
"""Of the spread of a pass: quantiles, in units of `--spread`."""


@dataclass(frozen=True, slots=True)
class Draw:
    """One run through all loads. `back_s`: from the fall of the load to the last recovery."""

    back_s: float
    p99_ms: tuple[float, ...]
    on_time: tuple[float, ...]


def machine(spread: float) -> Machine:
    costs = even(manifests.read(ROOT / "engines" / "tiny"), STAGES, STEPS, STAGES * STAGE_MS)
    made = Machine.of([costs] * STAGES, place([costs] * STAGES, STEPS), STEPS)
    return dataclasses.replace(made, spread=tuple(1 + spread * x for x in SHAPE))


def draw(m: Machine, seed: int) -> Draw:
    rng = random.Random(seed)
    rates = [load * CAPACITY / SESSIONS for load in LOADS]
    terms = Terms(STEPS, 1, fps=rates[0], latency_ns=round(BUDGET_MS * 1e6))
    changes = tuple((n * SECONDS, rate) for n, rate in enumerate(rates) if n)
    streams = [
        Stream(
            rates[0],
            round(SECONDS * sum(rates)),
            terms,
            begin_s=rng.choice((0.0, rng.uniform(0, 0.005), rng.uniform(0, 4 / rates[0]))),
            jitter_ms=4.0,
            changes=changes,
        )
        for _ in range(SESSIONS)
    ]
    log: list[Event | Decision] = []
    run = simulate(m, streams, seed=seed, log=log.append)
    up = [d.at_ns * 1e-9 for d in log if isinstance(d, Decision) and d.what == "recover"]
    down = [d.at_ns * 1e-9 for d in log if isinstance(d, Decision) and d.what == "degrade"]
    for_good = len(up) == len(down)
    fell_s = SECONDS * (len(LOADS) - 1)
    at = [latencies_ms(run, SECONDS * n + 1, SECONDS * (n + 1)) for n in range(len(LOADS))]
    return Draw(
        max(up) - fell_s if up and for_good else float("inf"),
        tuple(quantile(ms, 0.99) for ms in at),
        tuple(sum(x <= BUDGET_MS for x in ms) / (SECONDS - 1) for ms in at),
    )


def latencies_ms(run: Run, begin_s: float, end_s: float) -> list[float]:
    """Of frames captured in between that came out, each as old as the first of its chunk."""
    return [
        (c.done_ns - c.captured_ns[0]) * 1e-6
        for session in run.chunks
        for c in session
        for _ in c.captured_ns
        if c.done_ns is not None and begin_s <= c.captured_ns[0] * 1e-9 < end_s
    ]


def rows(draws: Sequence[Draw]) -> list[Row]:
    p99 = [ms for d in draws for ms in d.p99_ms]
    beyond = [fps for d in draws for fps in d.on_time[1:-1]]
    count = len(draws)
    return [
        Row("draws back for good in time", sum(d.back_s <= RECOVERY_S for d in draws), "", count),
        Row("all steps given back, worst", max(d.back_s for d in draws), "s", count, RECOVERY_S),
        Row(
            "draws with a p99 above the budget",
            sum(max(d.p99_ms) > BUDGET_MS for d in draws),
            "",
            count,
        ),
        Row("latency p99, worst load", max(p99), "ms", len(p99), BUDGET_MS),
        Row("on time from load 1 on, worst", min(beyond), "frames/s", len(beyond), 0.9 * CAPACITY),
        Row(
            "on time from load 1 on, mean",
            statistics.mean(beyond),
            "frames/s",
            len(beyond),
            CAPACITY,
        ),
    ]


def main() -> None:
    p = parser(__doc__, "phases")
    p.add_argument("--draws", type=count, default=60)
    p.add_argument(
        "--spread", type=above(0), default=0.01, help="of a pass, as a share of its time"
    )
    options = p.parse_args()
    m = machine(options.spread)
    found = [draw(m, seed) for seed in range(options.draws)]
    publish(f"overload on the virtual clock: {options.draws} draws", rows(found), options.json)


if __name__ == "__main__":
    main()
