"""The scheduler against a naive model of rings and stations, driven by hypothesis as a random
device would.
"""

from __future__ import annotations

from collections import defaultdict

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from rt.scheduler import HANDOVER_DEPTH, Routes, Scheduler, Task

ROWS_PER_SEAT = 4
LAYOUTS = [
    Routes((0,), (0,), (0,)),
    Routes((0,), (0, 1), (1,)),
    Routes((0, 1), (1, 2), (2, 3)),
    Routes((0,), (1,), (2,)),
    Routes((0,), (0, 1, 2), (2, 3)),
]


class Controller(RuleBasedStateMachine):
    """Stages finish in any order; chunks arrive at any time; sessions come and go."""

    @initialize(layout=st.sampled_from(LAYOUTS), max_batch=st.integers(1, 4))
    def start(self, layout: Routes, max_batch: int) -> None:
        self.routes, self.max_batch = layout, max_batch
        self.scheduler = Scheduler(layout, ROWS_PER_SEAT, max_batch)
        self.stages = 1 + max(*layout.encode, *layout.denoise, *layout.decode)
        self.running: dict[int, Task] = {}
        self.steps: dict[int, int] = {}
        self.seats: dict[int, int] = {}
        self.arrived: dict[int, int] = defaultdict(int)
        self.left: dict[int, list[int]] = defaultdict(list)
        # (stage, kind, row or seat) -> chunks in the order in which this stage wrote that state
        self.written: dict[tuple[int, str, int], list[tuple[int, int]]] = defaultdict(list)
        self.done: dict[tuple[int, int], int] = {}
        self.opened = 0
        self.began: dict[int, Task] = {}

    @rule(steps=st.integers(1, ROWS_PER_SEAT))
    def open(self, steps: int) -> None:
        free = set(range(3)) - set(self.seats.values())
        if free:
            self.steps[self.opened], self.seats[self.opened] = steps, min(free)
            self.scheduler.open(self.opened, min(free), steps)
            self.opened += 1

    @rule(data=st.data(), deadline=st.none() | st.integers(0, 100))
    def arrive(self, data: st.DataObject, deadline: int | None) -> None:
        ready = [s for s in self.seats if self.scheduler.accepts(s)]
        if ready:
            session = data.draw(st.sampled_from(ready))
            chunk = self.arrived[session]
            self.scheduler.arrived(
                session, chunk, None if deadline is None else chunk * 10 + deadline
            )
            self.done[session, chunk] = -2
            self.arrived[session] += 1

    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        idle = [s for s in range(self.stages) if s not in self.running]
        if not idle:
            return
        stage = data.draw(st.sampled_from(idle))
        task = self.scheduler.next(stage, 0)
        if task is None:
            return
        self.running[stage] = task
        self.began[task.number] = task
        rows = [job.row for job in task.jobs]
        assert len(task.jobs) <= self.max_batch
        if task.kind == "denoise":
            assert rows == list(range(rows[0], rows[0] + len(rows))), "a run of adjacent rows"
        for job in task.jobs:
            place = job.row if task.kind == "denoise" else job.seat
            history = self.written[stage, task.kind, place]
            assert not history or history[-1] < (job.session, job.chunk), "state in frame order"
            history.append((job.session, job.chunk))
            if stage == self.routes.of(task.kind)[0] and job.session in self.seats:
                assert self.done[job.session, job.chunk] == job.step - 1, "after the step before"

    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        if not self.running:
            return
        stage = data.draw(st.sampled_from(sorted(self.running)))
        task = self.running.pop(stage)
        for job in self.scheduler.finished(stage, task):
            self.left[job.session].append(job.chunk)
        if stage == self.routes.of(task.kind)[-1]:
            self.began.pop(task.number)
            for job in task.jobs:
                self.done[job.session, job.chunk] = job.step

    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        if self.seats:
            session = data.draw(st.sampled_from(sorted(self.seats)))
            self.scheduler.close(session)
            for _ in range(1000):  # a seat is free again only when nothing of it runs
                if not self.scheduler.running(session):
                    break
                self._drain_one()
            assert not self.scheduler.running(session)
            del self.seats[session]

    def _drain_one(self) -> None:
        for stage in range(self.stages):
            task = self.running.pop(stage, None) or self.scheduler.next(stage, 0)
            if task is not None:
                for job in self.scheduler.finished(stage, task):
                    self.left[job.session].append(job.chunk)
                self.began[task.number] = task
                if stage == self.routes.of(task.kind)[-1]:
                    self.began.pop(task.number)
                    for job in task.jobs:
                        self.done[job.session, job.chunk] = job.step
                for job in task.jobs:
                    place = job.row if task.kind == "denoise" else job.seat
                    history = self.written[stage, task.kind, place]
                    if not history or history[-1] < (job.session, job.chunk):
                        history.append((job.session, job.chunk))

    @invariant()
    def conservation(self) -> None:
        for session in getattr(self, "seats", {}):
            assert self.arrived[session] == len(self.left[session]) + self.scheduler.in_flight(
                session
            )
            assert self.left[session] == list(range(len(self.left[session]))), "out in order"

    @invariant()
    def one_chunk_per_station(self) -> None:
        active = {(j.session, j.chunk) for t in self._tasks() for j in t.jobs}
        for session in getattr(self, "seats", {}):
            waiting = [
                self.done[session, chunk]
                for chunk in range(len(self.left[session]), self.arrived[session])
                if (session, chunk) not in active
            ]
            assert len(waiting) == len(set(waiting)), "two chunks in one buffer"

    def _tasks(self) -> list[Task]:
        return [] if not hasattr(self, "began") else list(self.began.values())

    @invariant()
    def bounded(self) -> None:
        for session in getattr(self, "seats", {}):
            most = self.steps[session] * 2 + 4 + HANDOVER_DEPTH * self.stages
            assert self.scheduler.in_flight(session) <= most

    def teardown(self) -> None:
        """No starvation: left alone, everything that arrived leaves."""
        if not hasattr(self, "scheduler"):
            return
        for _ in range(2000):
            if all(self.scheduler.in_flight(s) == 0 for s in self.seats):
                break
            self._drain_one()
        for session in self.seats:
            assert self.scheduler.in_flight(session) == 0
            assert self.left[session] == list(range(self.arrived[session]))


TestController = Controller.TestCase
TestController.settings = settings(max_examples=300, stateful_step_count=80, deadline=None)


def test_oldest_chunk_first_and_continuous() -> None:
    """One stage, two steps: a chunk goes right through before the next one is encoded."""
    scheduler = Scheduler(Routes((0,), (0,), (0,)), 2, 2)
    scheduler.open(0, 0, 2)
    order = []
    for chunk in range(3):
        scheduler.arrived(0, chunk, None)
        while (task := scheduler.next(0, 0)) is not None:
            order.append((task.kind, task.jobs[0].chunk, task.jobs[0].step))
            scheduler.finished(0, task)
    assert order == [
        (kind, chunk, step)
        for chunk in range(3)
        for kind, step in (("encode", -1), ("denoise", 0), ("denoise", 1), ("decode", 2))
    ]


def test_adjacent_rows_form_a_batch() -> None:
    """Two sessions that wait for the DiT on neighbouring seats run as one batch."""
    scheduler = Scheduler(Routes((0,), (1,), (2,)), 1, 4)
    for session in range(2):
        scheduler.open(session, session, 1)
        scheduler.arrived(session, 0, None)
        task = scheduler.next(0, 0)
        assert task is not None
        scheduler.finished(0, task)
    task = scheduler.next(1, 0)
    assert task is not None
    assert [job.row for job in task.jobs] == [0, 1]


def test_two_steps_of_one_session_in_one_batch() -> None:
    """Rows 0 and 1 of a seat: the younger chunk follows into the row that the older one leaves."""
    scheduler = Scheduler(Routes((0,), (1,), (2,)), 2, 4)
    scheduler.open(0, 0, 2)
    for chunk in range(2):
        scheduler.arrived(0, chunk, None)
        encode = scheduler.next(0, 0)
        assert encode is not None
        scheduler.finished(0, encode)
        if chunk == 0:
            first = scheduler.next(1, 0)
            assert first is not None
            scheduler.finished(1, first)
    both = scheduler.next(1, 0)
    assert both is not None
    assert [(j.chunk, j.step) for j in both.jobs] == [(1, 0), (0, 1)]


def test_a_batch_keeps_the_places_that_it_will_fill() -> None:
    """While chunk 1 is on its way to row 1, chunk 2 may not begin the step that ends there."""
    scheduler = Scheduler(Routes((0,), (1, 2), (3,)), 2, 4)
    scheduler.open(0, 0, 2)

    def run(stage: int) -> Task | None:
        task = scheduler.next(stage, 0)
        if task is not None:
            scheduler.finished(stage, task)
        return task

    for chunk in range(2):
        scheduler.arrived(0, chunk, None)
        assert run(0)
        if chunk == 0:
            assert run(1)
            assert run(2)
    both = run(1)
    assert both is not None
    assert len(both.jobs) == 2
    scheduler.arrived(0, 2, None)
    assert run(0)
    assert run(1) is None
    assert run(2) is both
    assert run(3)
    third = run(1)
    assert third is not None
    assert [(j.chunk, j.step) for j in third.jobs] == [(2, 0), (1, 1)]
