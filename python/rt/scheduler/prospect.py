"""What becomes of a chunk that begins now: the chunks on their way are played forward, with passes
that take their mean time, until it has left. It decides nothing.

Sums (the work before a chunk on the busiest stage) are too early where stages wait for each other.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence

from .forecast import Forecast, Part
from .line import ARRIVED, Line, Passage
from .passes import Passes

OVERTAKES_NS = 100_000_000
"""How much sooner a chunk has to be due to overtake one that has begun."""


class Prospect:
    """Looks at the state of the controller; owns none of it."""

    def __init__(
        self, stages: int, forecast: Forecast, passes: Passes, lines: Mapping[int, Line]
    ) -> None:
        self._stages = range(stages)
        self._forecast = forecast
        self._passes = passes
        self._lines = lines

    def leaves_ns(self, passage: Passage, now_ns: int, waiting: bool = False) -> float:
        """How long until a chunk has left if it begins now and nothing else arrives: beside those
        that have begun and, if `waiting`, those that wait as well and will overtake it.
        """
        free_ns = [0.0 for _ in self._stages]
        begun: dict[tuple[int, int], float] = {}
        for stage in self._stages:
            running = self._passes.on(stage)
            if running is not None:
                task, since_ns = running
                took_ns = self._forecast.part_ns(stage, task.kind, len(task.jobs))
                free_ns[stage] = max(0.0, since_ns + took_ns - now_ns)
                begun |= {(job.session, job.chunk): free_ns[stage] for job in task.jobs}
        urgent = sorted(
            (p.due_ns, p.order, begun.get((line.session, p.chunk)), p)
            for line in self._lines.values()
            for p in line.passages.values()
            if p is passage
            or p.running
            or p.station != ARRIVED
            or (waiting and p.due_ns + OVERTAKES_NS < passage.due_ns)
        )
        parts = [self._forecast.parts_ns(p)[0 if at is None else 1 :] for _, _, at, p in urgent]
        of = next(i for i, (*_, p) in enumerate(urgent) if p is passage)
        return left_ns([at or 0.0 for _, _, at, _ in urgent], parts, free_ns, of)


def lined_up_ns(passage: Passage, lines: Iterable[Line]) -> int:
    """When a waiting chunk counts as due: by its deadline, but behind the chunks that have begun
    and are due only a little later. Cameras in step would else overtake each other by microseconds.
    """
    if passage.deadline_ns is None:
        return passage.due_ns
    latest_ns = passage.deadline_ns + OVERTAKES_NS
    begun = (p.due_ns + 1 for line in lines for p in line.begun())
    between = (due_ns for due_ns in begun if passage.deadline_ns < due_ns <= latest_ns)
    return max(between, default=passage.deadline_ns)


def left_ns(
    begin_ns: Sequence[float], parts: Sequence[Sequence[Part]], free_ns: Sequence[float], of: int
) -> float:
    """When chunk `of` has left, in ns from now.

    Chunks are in order of urgency. `begin_ns[c]`: when chunk c is ready for the first of
    `parts[c]`, which follow each other; `free_ns[s]`: when stage s has done what it does now. An
    idle stage takes up the most urgent chunk that is ready for it, and is not interrupted.
    """
    done = [0] * len(parts)
    waiting: list[list[int]] = [[] for _ in free_ns]
    free = list(free_ns)
    events = [(at, chunk) for chunk, at in enumerate(begin_ns)]
    events += [(at, -1) for at in free_ns]  # A stage that becomes free chooses anew.
    heapq.heapify(events)
    while True:
        now = events[0][0]
        while events and events[0][0] <= now:
            chunk = heapq.heappop(events)[1]
            if chunk < 0:
                continue
            if done[chunk] < len(parts[chunk]):
                stage = parts[chunk][done[chunk]][0]
                heapq.heappush(waiting[stage], chunk)
            elif chunk == of:
                return now
        for stage, queue in enumerate(waiting):
            if queue and free[stage] <= now:
                chunk = heapq.heappop(queue)
                free[stage] = now + parts[chunk][done[chunk]][1]
                done[chunk] += 1
                heapq.heappush(events, (free[stage], chunk))
