"""A naive world around the scheduler: stages that take known times, sources that never wait, and
a clock that jumps from event to event. Tests ask it what became of every chunk.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rt.cost import Line, PassCost
from rt.frame import Job, Kind
from rt.scheduler import Decision, Event, Routes, Scheduler, Task, Terms

MS = 1_000_000


@dataclass
class Source:
    """A live session: a chunk every 4 / fps, gathered since its first frame was captured."""

    terms: Terms
    on_time: int = 0
    late: int = 0
    dropped: int = 0
    arrived: int = 0
    next_chunk: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    steps: list[tuple[int, int]] = field(default_factory=list)
    drops_ns: list[int] = field(default_factory=list)
    deadlines: dict[int, int] = field(default_factory=dict)


class World:
    """`ms[kind, stage]` is what a pass of one job takes; a batch of b takes `b` times that."""

    def __init__(
        self, ms: dict[tuple[int, Kind], float], rows: int, jitter: float = 0.0, seed: int = 0
    ) -> None:
        kinds: tuple[Kind, ...] = ("encode", "denoise", "decode")
        stages = range(1 + max(stage for stage, _ in ms))
        routes = Routes(*(tuple(s for s in stages if (s, k) in ms) for k in kinds))
        self.log: list[Event | Decision] = []
        self.routes, self.ms, self.jitter = routes, ms, jitter
        costs = {key: PassCost(Line(0.0, m), 1 + jitter) for key, m in ms.items()}
        self.scheduler = Scheduler(routes, rows, 4, costs, self.log.append)
        self.random = random.Random(seed)
        self.now = 0
        self.sources: dict[int, Source] = {}
        self._events: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._serial = itertools.count()

    def at(self, when: int, what: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._events, (when, next(self._serial), what, arguments))

    def open(self, number: int, terms: Terms, phase_ms: float = 0.0) -> None:
        seats = {s: n for n, s in enumerate(self.sources)}
        self.scheduler.open(number, seats.setdefault(number, len(seats)), terms)
        self.sources[number] = Source(terms)
        self.at(self.now + round(phase_ms * MS), self._arrive, number)

    def set_rate(self, number: int, fps: float) -> None:
        terms = self.sources[number].terms
        changed = Terms(terms.steps, terms.min_steps, terms.priority, fps, terms.latency_ns)
        self.sources[number].terms = changed

    def run(self, until_s: float) -> None:
        while self._events and self._events[0][0] <= until_s * 1e9:
            self.now, _, what, arguments = heapq.heappop(self._events)
            what(*arguments)
            for stage in range(self.routes.stages):
                if self.scheduler.task_on(stage) is None:
                    self._begin(stage)
            self._collect()

    def _arrive(self, number: int) -> None:
        source = self.sources[number]
        fps, budget = source.terms.fps, source.terms.latency_ns
        assert fps is not None
        assert budget is not None
        if not self.scheduler.accepts(number):
            self.scheduler.withdraw(number, self.now)
            self._collect()
        source.arrived += 1
        if self.scheduler.accepts(number):
            deadline = self.now - round(3e9 / fps) + budget
            source.deadlines[source.next_chunk] = deadline
            self.scheduler.arrived(number, source.next_chunk, deadline, self.now)
            source.next_chunk += 1
        else:
            source.dropped += 1
        self.at(self.now + round(4e9 / fps), self._arrive, number)

    def _begin(self, stage: int) -> None:
        task = self.scheduler.next(stage, self.now)
        if task is not None:
            ms = self.ms[stage, task.kind] * len(task.jobs)
            took = ms * (1 + self.jitter * self.random.random())
            self.at(self.now + round(took * MS), self._finish, stage, task)

    def _finish(self, stage: int, task: Task) -> None:
        for job in self.scheduler.finished(stage, task, self.now):
            self._leave(job)

    def _leave(self, job: Job) -> None:
        source = self.sources[job.session]
        deadline = source.deadlines.pop(job.chunk)
        assert source.terms.latency_ns is not None
        source.on_time += self.now <= deadline
        source.late += self.now > deadline
        source.latencies_ms.append((self.now - deadline + source.terms.latency_ns) / MS)
        source.steps.append((self.now, job.steps))

    def _collect(self) -> None:
        for session, chunk in self.scheduler.dropped():
            source = self.sources[session]
            assert chunk == source.next_chunk - 1, "only the newest may be dropped"
            source.next_chunk -= 1
            source.dropped += 1
            source.drops_ns.append(self.now)
            del source.deadlines[chunk]
