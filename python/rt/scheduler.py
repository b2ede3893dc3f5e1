"""The batch controller: given events and a clock it decides what each stage runs next. It touches
no device.

A chunk of a session moves along stations: arrived, row 0 .. row steps-1, decoded. A station holds
one chunk, so nothing queues without bound; a pass moves a chunk to the next station and needs that
station to be free. A chunk that finished a step is at once ready for the next one (continuous step
batching); it never waits for new input. Production and simulation call the same object; the caller
serialises the calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from .frame import Job

Kind = Literal["encode", "denoise", "decode"]

HANDOVER_DEPTH = 2
"""Passes that may be at a later stage of a route at once: one running, one waiting."""

_NEVER_NS = 1 << 62


@dataclass(frozen=True, slots=True)
class Routes:
    """The stages that each kind of pass visits, in order. Every route has at least one stage."""

    encode: tuple[int, ...]
    denoise: tuple[int, ...]
    decode: tuple[int, ...]

    def of(self, kind: Kind) -> tuple[int, ...]:
        return {"encode": self.encode, "denoise": self.denoise, "decode": self.decode}[kind]


@dataclass(frozen=True, slots=True)
class Task:
    """A decision: run this pass. Jobs of a denoising pass occupy the rows from `jobs[0].row`
    upwards, without a gap.
    """

    number: int
    kind: Kind
    jobs: tuple[Job, ...]


@dataclass(slots=True)
class _Passage:
    """A chunk on its way. `station` is where it waits, or where its running pass began."""

    chunk: int
    deadline_ns: int | None
    order: int
    station: int = 0
    running: bool = False


@dataclass(slots=True)
class _Session:
    seat: int
    steps: int
    passages: dict[int, _Passage] = field(default_factory=dict)
    held: dict[int, int] = field(default_factory=dict)
    """Station -> chunk that occupies it or has reserved it."""


class Scheduler:
    """Owns what is waiting and what is running; events go in, tasks come out."""

    def __init__(self, routes: Routes, rows_per_seat: int, max_batch: int) -> None:
        self._routes = routes
        self._rows_per_seat = rows_per_seat
        self._max_batch = max_batch
        self._sessions: dict[int, _Session] = {}
        self._busy: dict[int, Task] = {}
        """Stage -> the task that it runs."""
        self._waiting: dict[tuple[int, Kind], list[Task]] = {}
        """(Later stage of a route, kind) -> tasks handed over to it, in the order in which they
        began.
        """
        self._number = 0
        self._order = 0

    # Events

    def open(self, session: int, seat: int, steps: int) -> None:
        """A session begins on a seat and will denoise each chunk `steps` times."""
        assert session not in self._sessions
        assert 1 <= steps <= self._rows_per_seat
        self._sessions[session] = _Session(seat, steps)

    def arrived(self, session: int, chunk: int, deadline_ns: int | None) -> None:
        """A chunk of a session waits to be encoded. The caller has asked `accepts`."""
        line = self._sessions[session]
        assert self.accepts(session)
        line.passages[chunk] = _Passage(chunk, deadline_ns, self._order)
        line.held[0] = chunk
        self._order += 1

    def finished(self, stage: int, task: Task) -> tuple[Job, ...]:
        """A stage has run its part of a task. Returns the jobs whose chunk has left the chain."""
        assert self._busy.pop(stage) is task
        route = self._routes.of(task.kind)
        position = route.index(stage)
        if position > 0:
            self._waiting[stage, task.kind].remove(task)
        if position == 0:
            self._leave(task)
        if position + 1 < len(route):
            self._waiting.setdefault((route[position + 1], task.kind), []).append(task)
            return ()
        return self._arrive(task)

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
        del self._sessions[session]

    # Questions

    def accepts(self, session: int) -> bool:
        """Whether a further chunk may arrive: at most one waits per session."""
        return 0 not in self._sessions[session].held

    def in_flight(self, session: int) -> int:
        """Chunks of a session that arrived and did not leave."""
        return len(self._sessions[session].passages)

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
        del now_ns  # The deadline test on predicted finish times reads it once costs are known.
        candidates = [*self._continuations(stage), *self._beginnings(stage)]
        if not candidates:
            return None
        kind, job, task = min(candidates, key=lambda c: self._urgency(c[1]))
        if task is None:
            task = self._begin(kind, job)
        self._busy[stage] = task
        return task

    # Decisions

    def _continuations(self, stage: int) -> Iterator[tuple[Kind, Job, Task]]:
        for (where, kind), tasks in self._waiting.items():
            if where == stage and tasks and self._room_after(stage, kind):
                yield kind, min(tasks[0].jobs, key=self._urgency), tasks[0]

    def _beginnings(self, stage: int) -> Iterator[tuple[Kind, Job, None]]:
        for session, line in self._sessions.items():
            for passage in line.passages.values():
                kind = self._kind(line, passage.station)
                first = self._routes.of(kind)[0]
                if first == stage and self._ready(line, passage) and self._room_after(stage, kind):
                    yield kind, self._job(session, line, passage), None

    def _room_after(self, stage: int, kind: Kind) -> bool:
        route = self._routes.of(kind)
        position = route.index(stage)
        if position + 1 == len(route):
            return True
        return len(self._waiting.get((route[position + 1], kind), ())) < HANDOVER_DEPTH

    def _ready(self, line: _Session, passage: _Passage) -> bool:
        return not passage.running and line.held.get(passage.station + 1) is None

    def _begin(self, kind: Kind, job: Job) -> Task:
        jobs = self._batch(job) if kind == "denoise" else (job,)
        for member in jobs:
            line = self._sessions[member.session]
            passage = line.passages[member.chunk]
            passage.running = True
            if kind == "encode":
                del line.held[0]  # The frames are in the task; the next chunk may arrive.
        for member in jobs:
            line = self._sessions[member.session]
            line.held.setdefault(member.step + 2, member.chunk)
        self._number += 1
        return Task(self._number, kind, jobs)

    def _batch(self, job: Job) -> tuple[Job, ...]:
        """The run of adjacent ready rows around `job`, as long as the profiles allow."""
        jobs = [job]
        while len(jobs) < self._max_batch:
            below = self._joins(jobs[0].row - 1, jobs)
            above = self._joins(jobs[-1].row + 1, jobs) if below is None else None
            if below is None and above is None:
                break
            jobs = (
                [below, *jobs]
                if below is not None
                else [*jobs, above]
                if above is not None
                else jobs
            )
        return tuple(jobs)

    def _joins(self, row: int, batch: list[Job]) -> Job | None:
        """The job that waits in `row`, if it can run in one pass with `batch`.

        Its target station must be free, or be left by a member of the same batch (one step ahead on
        the same seat).
        """
        seat, step = divmod(row, self._rows_per_seat)
        for session, line in self._sessions.items():
            if line.seat != seat:
                continue
            chunk = line.held.get(step + 1)
            passage = None if chunk is None else line.passages.get(chunk)
            if (
                passage is None
                or passage.station != step + 1
                or passage.running
                or step >= line.steps
            ):
                return None
            leaving = any(m.session == session and m.step == step + 1 for m in batch)
            if not leaving and line.held.get(step + 2) is not None:
                return None
            return self._job(session, line, passage)
        return None

    def _leave(self, task: Task) -> None:
        """The first stage of a route has read its inputs: stations fall free, targets stay
        reserved.
        """
        for passage, line in self._live(task):
            if line.held.get(passage.station) == passage.chunk:
                del line.held[passage.station]
        for passage, line in self._live(task):
            line.held[passage.station + 1] = passage.chunk

    def _arrive(self, task: Task) -> tuple[Job, ...]:
        """The last stage of a route is done: every chunk of the task stands at its next station."""
        left: list[Job] = []
        for passage, line in self._live(task):
            passage.station += 1
            passage.running = False
            line.held[passage.station] = passage.chunk
        for job in task.jobs:
            line_or_none = self._sessions.get(job.session)
            if task.kind == "decode" and line_or_none is not None:
                del line_or_none.passages[job.chunk]
                del line_or_none.held[line_or_none.steps + 2]
                left.append(job)
        return tuple(left)

    def _live(self, task: Task) -> Iterator[tuple[_Passage, _Session]]:
        for job in task.jobs:
            line = self._sessions.get(job.session)
            if line is not None:
                yield line.passages[job.chunk], line

    # Station s: 0 = arrived, 1 + step = row `step`, steps + 1 = to be decoded, steps + 2 = out.

    @staticmethod
    def _kind(line: _Session, station: int) -> Kind:
        return "encode" if station == 0 else "decode" if station == line.steps + 1 else "denoise"

    def _job(self, session: int, line: _Session, passage: _Passage) -> Job:
        step = passage.station - 1
        row = line.seat * self._rows_per_seat + step
        return Job(session, line.seat, passage.chunk, step, row, passage.deadline_ns)

    def _urgency(self, job: Job) -> tuple[int, int, int]:
        line = self._sessions.get(job.session)
        order = -1 if line is None else line.passages[job.chunk].order
        return (_NEVER_NS if job.deadline_ns is None else job.deadline_ns, order, -job.step)
