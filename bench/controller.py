"""Time that the controller takes for a decision, with many sessions in flight, on a virtual clock.

python -m bench.controller
"""

from __future__ import annotations

import heapq
import statistics
import time

from bench.table import Row, above, count, parser, publish
from rt.cost import Line, PassCost
from rt.frame import Kind
from rt.scheduler import Routes, Scheduler, Task, Terms

LIMIT_US = 50.0
STEPS = 2
CHUNK_MS = 10.0
"""Work of a chunk on every stage: all of them are equally loaded."""


def decisions(sessions: int, stages: int, load: float, seconds: float) -> list[float]:
    """us of every call of `next` that decided something, at `load` of the capacity."""
    ends = 0 if stages == 1 else 1
    routes = Routes((0,), tuple(range(ends, max(1, stages - ends))), (stages - 1,))
    share = CHUNK_MS / 4 if stages == 1 else CHUNK_MS
    parts: dict[Kind, float] = {"encode": share, "denoise": share / STEPS, "decode": share}
    costs = {
        (stage, kind): PassCost(Line(0.0, ms), 1.1)
        for kind, ms in parts.items()
        for stage in routes.of(kind)
    }
    scheduler = Scheduler(routes, STEPS, 4, costs)
    fps = 4 * load * 1e3 / CHUNK_MS / sessions
    events: list[tuple[int, int, int, Task | None]] = []
    for number in range(sessions):
        scheduler.open(number, number, Terms(STEPS, 1, 0, fps, 1_000_000_000))
        events.append((number * 1_000_003, number, number, None))
    heapq.heapify(events)
    chunks, serial, taken = [0] * sessions, sessions, []
    while events[0][0] < seconds * 1e9:
        now, _, where, task = heapq.heappop(events)
        if task is not None:
            scheduler.finished(where, task, now)
        else:
            if not scheduler.accepts(where):
                scheduler.withdraw(where, now)
            for session, chunk in scheduler.dropped():
                chunks[session] = chunk
            if scheduler.accepts(where):
                scheduler.arrived(where, chunks[where], now + 800_000_000, now)
                chunks[where] += 1
            serial += 1
            heapq.heappush(events, (now + round(4e9 / fps), serial, where, None))
        for stage in range(stages):
            if scheduler.task_on(stage) is not None:
                continue
            start = time.perf_counter_ns()
            began = scheduler.next(stage, now)
            stop = time.perf_counter_ns()
            for session, chunk in scheduler.dropped():
                chunks[session] = chunk
            if began is not None:
                taken.append((stop - start) * 1e-3)
                ms = parts[began.kind] * len(began.jobs)
                serial += 1
                heapq.heappush(events, (now + round(ms * 1e6), serial, stage, began))
    return taken


def main() -> None:
    p = parser(__doc__, "controller")
    p.add_argument("--sessions", type=count, default=16)
    p.add_argument("--seconds", type=above(0), default=20.0, help="on the virtual clock")
    options = p.parse_args()
    rows: list[Row] = []
    for stages in (1, 4):
        for load in (0.8, 2.0):
            taken = decisions(options.sessions, stages, load, options.seconds)
            name = f"{options.sessions} sessions, {stages} stages, load {load:g}"
            rows.append(
                Row(f"{name}: median", statistics.median(taken), "us", len(taken), LIMIT_US)
            )
            p99 = statistics.quantiles(taken, n=100)[-1]
            rows.append(Row(f"{name}: p99", p99, "us", len(taken)))
    publish("controller: time per decision", rows, options.json)


if __name__ == "__main__":
    main()
