"""The controller itself: what waits, what runs, and the choice between them."""

from __future__ import annotations

from collections.abc import Iterator
from operator import itemgetter

from ..frame import Job, Kind
from .line import Line, Passage
from .records import HANDOVER_DEPTH, Routes, Task, Terms

_NEVER_NS = 1 << 62

Urgency = tuple[int, int, int]
"""Smaller is sooner: deadline, order of arrival, steps already done (more first)."""

_first = itemgetter(0)


class Scheduler:
    """Owns what is waiting and what is running; events go in, tasks come out."""

    def __init__(self, routes: Routes, rows_per_seat: int, max_batch: int) -> None:
        self._routes = routes
        self._rows_per_seat = rows_per_seat
        self._max_batch = max_batch
        self._lines: dict[int, Line] = {}
        self._on_seat: dict[int, Line] = {}
        self._busy: dict[int, Task] = {}
        """Stage -> the task that it runs."""
        self._waiting: dict[tuple[int, Kind], list[Task]] = {}
        """(Later stage of a route, kind) -> tasks handed over to it, in the order in which they
        began; the first may be running.
        """
        self._number = 0
        self._order = 0

    # Events

    def open(self, session: int, seat: int, terms: Terms) -> None:
        """A session begins on a free seat."""
        assert session not in self._lines
        assert seat not in self._on_seat
        assert 1 <= terms.min_steps <= terms.steps <= self._rows_per_seat
        line = Line(session, seat, terms, self._rows_per_seat, self._routes.places)
        self._lines[session] = self._on_seat[seat] = line

    def arrived(self, session: int, chunk: int, deadline_ns: int | None, now_ns: int) -> None:
        """A chunk of a session waits to be encoded. The caller has asked `accepts`."""
        del now_ns
        line = self._lines[session]
        line.arrive(Passage(chunk, line.terms.steps, deadline_ns, self._order))
        self._order += 1

    def finished(self, stage: int, task: Task, now_ns: int) -> tuple[Job, ...]:
        """A stage has run its part of a task. Returns the jobs whose chunk has left the chain."""
        del now_ns
        assert self._busy.pop(stage) is task
        route = self._routes.of(task.kind)
        position = route.index(stage)
        if position > 0:
            self._waiting[stage, task.kind].remove(task)
        else:
            for line, passage, _ in self._live(task):
                line.leave(passage)
        if position + 1 < len(route):
            self._waiting.setdefault((route[position + 1], task.kind), []).append(task)
            return ()
        return tuple(job for line, passage, job in self._live(task) if line.land(passage))

    def failed(self, stage: int, task: Task) -> None:
        """A stage gave up on a task. The caller closes the sessions of its jobs."""
        assert self._busy.pop(stage) is task
        waiting = self._waiting.get((stage, task.kind), [])
        if task in waiting:
            waiting.remove(task)

    def close(self, session: int) -> None:
        """A session ends; what it still had waiting is forgotten. Passes in flight finish and are
        ignored.
        """
        del self._on_seat[self._lines.pop(session).seat]

    # Questions

    def accepts(self, session: int) -> bool:
        """Whether a further chunk may arrive: at most one waits per session."""
        return self._lines[session].accepts()

    def in_flight(self, session: int) -> int:
        """Chunks of a session that arrived and did not leave."""
        return len(self._lines[session].passages)

    def running(self, session: int) -> bool:
        """Whether any pass that began for this session is still on its way."""
        tasks = (*self._busy.values(), *(t for waiting in self._waiting.values() for t in waiting))
        return any(job.session == session for task in tasks for job in task.jobs)

    def next(self, stage: int, now_ns: int) -> Task | None:
        """What an idle stage should run now, which is taken as begun; None if nothing can run.

        Earliest deadline first, then oldest chunk first; later passes before earlier ones. Passes
        that were handed over run in the order in which they began, which keeps the rings of a row
        in frame order.
        """
        assert stage not in self._busy
        del now_ns
        handed = min(self._continuations(stage), key=_first, default=None)
        fresh = min(self._beginnings(stage), key=_first, default=None)
        if handed is not None and (fresh is None or handed[0] < fresh[0]):
            task = handed[1]
        elif fresh is not None:
            task = self._begin(*fresh[1])
        else:
            return None
        self._busy[stage] = task
        return task

    # Decisions

    def _continuations(self, stage: int) -> Iterator[tuple[Urgency, Task]]:
        for (where, kind), tasks in self._waiting.items():
            if where == stage and tasks and self._room_after(stage, kind):
                yield min(self._urgency_of(job) for job in tasks[0].jobs), tasks[0]

    def _beginnings(self, stage: int) -> Iterator[tuple[Urgency, tuple[Line, Passage]]]:
        kinds: tuple[Kind, ...] = ("encode", "denoise", "decode")
        here = [k for k in kinds if self._routes.of(k)[0] == stage and self._room_after(stage, k)]
        for line in self._lines.values() if here else ():
            for passage in line.ready():
                if line.kind(passage) in here:
                    yield _urgency(passage), (line, passage)

    def _room_after(self, stage: int, kind: Kind) -> bool:
        route = self._routes.of(kind)
        position = route.index(stage)
        if position + 1 == len(route):
            return True
        return len(self._waiting.get((route[position + 1], kind), ())) < HANDOVER_DEPTH

    def _begin(self, line: Line, passage: Passage) -> Task:
        kind = line.kind(passage)
        members = self._batch(line, passage) if kind == "denoise" else [(line, passage)]
        jobs = tuple(owner.job(member) for owner, member in members)
        for owner, member in members:
            owner.begin(member)
        self._number += 1
        return Task(self._number, kind, jobs)

    def _batch(self, line: Line, passage: Passage) -> list[tuple[Line, Passage]]:
        """The run of adjacent ready rows around a job, as long as the profiles allow."""
        members = [(line, passage)]
        first = last = line.job(passage).row
        while len(members) < self._max_batch:
            if (below := self._in_row(first - 1)) is not None:
                members.insert(0, below)
                first -= 1
            elif (above := self._in_row(last + 1)) is not None:
                members.append(above)
                last += 1
            else:
                break
        return members

    def _in_row(self, row: int) -> tuple[Line, Passage] | None:
        """The chunk that is ready for the step of `row`, if any."""
        seat, step = divmod(row, self._rows_per_seat)
        line = self._on_seat.get(seat)
        for passage in () if line is None else line.ready():
            if passage.station == step + 1:
                assert line is not None
                return line, passage
        return None

    def _live(self, task: Task) -> Iterator[tuple[Line, Passage, Job]]:
        for job in task.jobs:
            line = self._lines.get(job.session)
            if line is not None:
                yield line, line.passages[job.chunk], job

    def _urgency_of(self, job: Job) -> Urgency:
        line = self._lines.get(job.session)
        if line is None:  # Nobody waits for it, but what comes behind it does.
            return (-1, -1, -1)
        return _urgency(line.passages[job.chunk])


def _urgency(passage: Passage) -> Urgency:
    deadline = _NEVER_NS if passage.deadline_ns is None else passage.deadline_ns
    return deadline, passage.order, -passage.station
