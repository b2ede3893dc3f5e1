"""The scheduler against a naive model of rings and stations, driven by hypothesis as a random
device would.
"""

from __future__ import annotations

import heapq
from collections import defaultdict

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from rt.cost import Line, PassCost
from rt.frame import Kind
from rt.scheduler import Decision, Event, Routes, Scheduler, Task, Terms, replay
from rt.scheduler.records import HANDOVER_DEPTH

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

    @initialize(layout=st.sampled_from(LAYOUTS), max_batch=st.integers(1, 4), known=st.booleans())
    def start(self, layout: Routes, max_batch: int, known: bool) -> None:
        self.routes, self.max_batch = layout, max_batch
        kinds: tuple[Kind, ...] = ("encode", "denoise", "decode")
        table = {(s, k): PassCost(Line(2, 5), 1.2) for k in kinds for s in layout.of(k)}
        self.costs = table if known else None
        self.log: list[Event | Decision] = []
        self.scheduler = Scheduler(layout, ROWS_PER_SEAT, max_batch, self.costs, self.log.append)
        self.stages = layout.stages
        self.now = 0
        self.running: dict[int, Task] = {}
        self.steps: dict[int, int] = {}
        self.live: dict[int, bool] = {}
        self.seats: dict[int, int] = {}
        self.arrived: dict[int, int] = defaultdict(int)
        self.offered: dict[int, int] = defaultdict(int)
        self.lost: dict[int, int] = defaultdict(int)
        self.left: dict[int, list[int]] = defaultdict(list)
        # (stage, kind, row or seat) -> chunks in the order in which this stage wrote that state
        self.written: dict[tuple[int, str, int], list[tuple[int, int]]] = defaultdict(list)
        self.done: dict[tuple[int, int], int] = {}
        self.chosen: dict[tuple[int, int], int] = {}
        self.opened = 0
        self.began: dict[int, Task] = {}
        # (later stage of a route, kind) -> passes that were handed over to it and have not ended
        self.handed: dict[tuple[int, Kind], int] = defaultdict(int)

    @rule(ms=st.integers(1, 60))
    def wait(self, ms: int) -> None:
        self.now += ms * 1_000_000

    @rule(steps=st.integers(1, ROWS_PER_SEAT), live=st.booleans(), priority=st.integers(0, 1))
    def open(self, steps: int, live: bool, priority: int) -> None:
        free = set(range(3)) - set(self.seats.values())
        if free:
            self.steps[self.opened], self.seats[self.opened] = steps, min(free)
            self.live[self.opened] = live
            terms = Terms(steps, 1, priority, None, 200_000_000) if live else Terms(steps, steps)
            self.scheduler.open(self.opened, min(free), terms)
            self.opened += 1

    @rule(data=st.data(), budget_ms=st.integers(0, 300))
    def arrive(self, data: st.DataObject, budget_ms: int) -> None:
        if not self.seats:
            return
        session = data.draw(st.sampled_from(sorted(self.seats)))
        if self.live[session] and not self.scheduler.accepts(session):
            assert self.scheduler.withdraw(session, self.now) == (self.arrived[session] > 1)
            self._collect()
        if not self.scheduler.accepts(session):
            return
        chunk = self.arrived[session]
        deadline = self.now + budget_ms * 1_000_000 if self.live[session] else None
        self.scheduler.arrived(session, chunk, deadline, self.now)
        self.done[session, chunk] = -2
        self.arrived[session] += 1
        self.offered[session] += 1

    def _collect(self) -> None:
        """What is dropped is the newest, has not begun, and is not the first of its session."""
        for session, chunk in self.scheduler.dropped():
            assert self.live[session]
            assert 0 < chunk == self.arrived[session] - 1
            assert self.done.pop((session, chunk)) == -2
            self.arrived[session] -= 1
            self.lost[session] += 1

    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        idle = [s for s in range(self.stages) if s not in self.running]
        if idle:
            stage = data.draw(st.sampled_from(idle))
            task = self._next(stage)
            if task is not None:
                self.running[stage] = task

    def _next(self, stage: int) -> Task | None:
        """What the scheduler wants to run on an idle stage, held against the model."""
        task = self.scheduler.next(stage, self.now)
        self._collect()
        if task is None:
            return None
        self.began[task.number] = task
        rows = [job.row for job in task.jobs]
        assert len(task.jobs) <= self.max_batch
        if task.kind == "denoise":
            assert rows == list(range(rows[0], rows[0] + len(rows))), "a run of adjacent rows"
        for job in task.jobs:
            assert self.chosen.setdefault((job.session, job.chunk), job.steps) == job.steps
            assert 1 <= job.steps <= self.steps[job.session]
            assert self.live[job.session] or job.steps == self.steps[job.session]
            place = job.row if task.kind == "denoise" else job.seat
            history = self.written[stage, task.kind, place]
            assert not history or history[-1] < (job.session, job.chunk), "state in frame order"
            history.append((job.session, job.chunk))
            if stage == self.routes.of(task.kind)[0] and job.session in self.seats:
                assert self.done[job.session, job.chunk] == job.step - 1, "after the step before"
        return task

    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        if self.running:
            stage = data.draw(st.sampled_from(sorted(self.running)))
            self._finished(stage, self.running.pop(stage))

    def _finished(self, stage: int, task: Task) -> None:
        for job in self.scheduler.finished(stage, task, self.now):
            self.left[job.session].append(job.chunk)
        self._leaves(stage, task)
        route = self.routes.of(task.kind)
        if stage != route[-1]:
            following = route[route.index(stage) + 1]
            self.handed[following, task.kind] += 1
            assert self.handed[following, task.kind] <= HANDOVER_DEPTH
            return
        self.began.pop(task.number)
        for job in task.jobs:
            self.done[job.session, job.chunk] = job.step

    def _leaves(self, stage: int, task: Task) -> None:
        if stage != self.routes.of(task.kind)[0]:
            self.handed[stage, task.kind] -= 1

    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        """A stage gives up on what it runs: the sessions of the pass end, and nobody else's."""
        if self.running:
            stage = data.draw(st.sampled_from(sorted(self.running)))
            task = self.running.pop(stage)
            self.scheduler.failed(stage, task)
            self._leaves(stage, task)
            self.began.pop(task.number)
            for session in sorted({job.session for job in task.jobs} & set(self.seats)):
                self._end(session)

    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        if self.seats:
            self._end(data.draw(st.sampled_from(sorted(self.seats))))

    def _end(self, session: int) -> None:
        self.scheduler.close(session)
        for _ in range(1000):  # a seat is free again only when nothing of it runs
            if not self.scheduler.running(session):
                break
            self._drain_one()
        assert not self.scheduler.running(session)
        del self.seats[session]

    def _drain_one(self) -> None:
        for stage in range(self.stages):
            task = self.running.pop(stage, None) or self._next(stage)
            if task is not None:
                self._finished(stage, task)

    @invariant()
    def conservation(self) -> None:
        for session in getattr(self, "seats", {}):
            inside = self.scheduler.in_flight(session)
            assert self.arrived[session] == len(self.left[session]) + inside
            assert self.offered[session] == len(self.left[session]) + self.lost[session] + inside
            assert self.left[session] == list(range(len(self.left[session]))), "out in order"

    @invariant()
    def one_chunk_per_place(self) -> None:
        active = {(j.session, j.chunk) for t in self._tasks() for j in t.jobs}
        for session in getattr(self, "seats", {}):
            waiting = [
                (self._station(session, chunk), chunk % self.routes.places)
                for chunk in range(len(self.left[session]), self.arrived[session])
                if (session, chunk) not in active
            ]
            assert len(waiting) == len(set(waiting)), "two chunks in one buffer"

    def _station(self, session: int, chunk: int) -> int:
        """Steps done; the decoder waits for chunks of any number of them."""
        done = self.done[session, chunk]
        last = done >= 0 and done == self.chosen[session, chunk] - 1
        return ROWS_PER_SEAT if last else done

    def _tasks(self) -> list[Task]:
        return [] if not hasattr(self, "began") else list(self.began.values())

    @invariant()
    def bounded(self) -> None:
        for session in getattr(self, "seats", {}):
            most = 2 + self.routes.places * (self.steps[session] + 1)
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
        again: list[Event | Decision] = []
        fresh = Scheduler(self.routes, ROWS_PER_SEAT, self.max_batch, self.costs, again.append)
        replay(self.log, fresh)
        assert again == self.log, "the same events, the same decisions"


TestController = Controller.TestCase
TestController.settings = settings(max_examples=100, stateful_step_count=80, deadline=None)


def test_oldest_chunk_first_and_continuous() -> None:
    """One stage, two steps: a chunk goes right through before the next one is encoded."""
    scheduler = Scheduler(Routes((0,), (0,), (0,)), 2, 2)
    scheduler.open(0, 0, Terms(2))
    order = []
    for chunk in range(3):
        scheduler.arrived(0, chunk, None, 0)
        while (task := scheduler.next(0, 0)) is not None:
            order.append((task.kind, task.jobs[0].chunk, task.jobs[0].step))
            scheduler.finished(0, task, 0)
    assert order == [
        (kind, chunk, step)
        for chunk in range(3)
        for kind, step in (("encode", -1), ("denoise", 0), ("denoise", 1), ("decode", 2))
    ]


def test_steps_of_several_chunks_meet_where_no_deadline_hurries_them() -> None:
    """One stage, four steps, input without end: once it is full every pass of the DiT takes one
    chunk through each step.
    """
    scheduler = Scheduler(Routes((0,), (0,), (0,)), 4, 4)
    scheduler.open(0, 0, Terms(4))
    chunks, sizes = 0, []
    while chunks < 40:
        if scheduler.accepts(0):
            scheduler.arrived(0, chunks, None, 0)
            chunks += 1
        task = scheduler.next(0, 0)
        assert task is not None
        if task.kind == "denoise":
            sizes.append(len(task.jobs))
        scheduler.finished(0, task, 0)
    assert sizes[:3] == [1, 2, 3]
    assert set(sizes[3:]) == {4}


def test_adjacent_rows_form_a_batch() -> None:
    """Two sessions that wait for the DiT on neighbouring seats run as one batch."""
    scheduler = Scheduler(Routes((0,), (1,), (2,)), 1, 4)
    for session in range(2):
        scheduler.open(session, session, Terms(1))
        scheduler.arrived(session, 0, None, 0)
        task = scheduler.next(0, 0)
        assert task is not None
        scheduler.finished(0, task, 0)
    task = scheduler.next(1, 0)
    assert task is not None
    assert [job.row for job in task.jobs] == [0, 1]


def test_two_steps_of_one_session_in_one_batch() -> None:
    """Rows 0 and 1 of a seat: two chunks of one session, one step apart."""
    scheduler = Scheduler(Routes((0,), (1,), (2,)), 2, 4)
    scheduler.open(0, 0, Terms(2))
    for chunk in range(2):
        scheduler.arrived(0, chunk, None, 0)
        encode = scheduler.next(0, 0)
        assert encode is not None
        scheduler.finished(0, encode, 0)
        if chunk == 0:
            first = scheduler.next(1, 0)
            assert first is not None
            scheduler.finished(1, first, 0)
    both = scheduler.next(1, 0)
    assert both is not None
    assert [(j.chunk, j.step) for j in both.jobs] == [(1, 0), (0, 1)]


def test_a_pass_begins_only_where_it_can_land() -> None:
    """Nobody decodes: the DiT fills the places before the decoder, then the encoder those before
    the DiT, then one chunk waits; the session accepts no more.
    """
    routes = Routes((0,), (1, 2), (3,))
    scheduler = Scheduler(routes, 1, 4)
    scheduler.open(0, 0, Terms(1))
    chunks = 0
    for _ in range(50):
        if scheduler.accepts(0):
            scheduler.arrived(0, chunks, None, 0)
            chunks += 1
        for stage in (0, 1, 2):
            if (task := scheduler.next(stage, 0)) is not None:
                scheduler.finished(stage, task, 0)
    assert chunks == 2 * routes.places + 1


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("stages", [1, 2, 4, 8])
def test_one_session_on_n_stages_gains_n(stages: int, steps: int) -> None:
    """Work of 8 units cut evenly over the stages, on a virtual clock, batches without gain: the
    chain as a whole is bound by nothing but the work of a stage.
    """
    units = 8  # 2 encode, 4 for all denoising steps, 2 decode
    kinds: dict[Kind, range] = {
        "encode": range(2),
        "denoise": range(2, 6),
        "decode": range(6, 8),
    }
    per_stage = units // stages
    work = {
        (kind, stage): len([u for u in of if u // per_stage == stage])
        for kind, of in kinds.items()
        for stage in range(stages)
    }
    routes = Routes(*(tuple(s for s in range(stages) if work[k, s]) for k in kinds))
    scheduler = Scheduler(routes, steps, 4)
    scheduler.open(0, 0, Terms(steps))
    chunks, left, now, events = 0, [], 0, [(0, 0, None)]
    running: dict[int, Task] = {}
    while len(left) < 200:
        now, stage, task = heapq.heappop(events)
        if task is not None:
            del running[stage]
            left += [now for _ in scheduler.finished(stage, task, now)]
        if scheduler.accepts(0):
            scheduler.arrived(0, chunks, None, now)
            chunks += 1
        for idle in set(range(stages)) - set(running):
            if (began := scheduler.next(idle, now)) is not None:
                running[idle] = began
                share = steps if began.kind == "denoise" else 1
                took = 1000 * work[began.kind, idle] * len(began.jobs) // share
                heapq.heappush(events, (now + took, idle, began))
    period = (left[-1] - left[50]) / (len(left) - 51)
    assert period <= 1000 * per_stage / 0.95
