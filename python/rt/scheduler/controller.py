"""The controller itself: what waits, what runs, and the choice between them."""

from __future__ import annotations

from collections.abc import Iterator
from operator import itemgetter

from ..cost import Timetable
from ..frame import Job
from .admission import Admission, admission
from .batches import Batches
from .forecast import Forecast
from .journal import Journal
from .ladder import DEGRADE_ABOVE, Ladder
from .line import ARRIVED, Line, Passage
from .passes import Passes
from .prospect import Prospect, lined_up_ns
from .records import Log, Routes, Task, Terms

PATIENCE_NS = 5_000_000_000
"""A chunk without a deadline comes behind those that have one, but not for longer than this."""

GATHER_NS = 2_500_000_000
"""How much sooner such a chunk counts as due where its next pass is no denoising step, if steps of
several chunks could meet at all: they then run as one batch, and full batches are faster.
"""

TEST_NS = 250_000_000
"""Least time between two chunks that are run although they are thought to come late."""

WATCH_NS = 100_000_000
"""While steps are taken away, how often the load is looked at, whether or not chunks arrive."""

Urgency = tuple[int, int, int]
"""Smaller is sooner: deadline, order of arrival, steps already done (more first)."""

Turn = tuple[Line, Passage]
"""A chunk and its session."""

_first = itemgetter(0)


def _turn_of(waiting: Turn) -> tuple[int, float, int]:
    line, passage = waiting
    return line.turn(passage)


class Scheduler:
    """Owns what is waiting and what is running; events go in, tasks come out."""

    def __init__(
        self,
        routes: Routes,
        rows_per_seat: int,
        max_batch: int,
        costs: Timetable | None = None,
        log: Log | None = None,
    ) -> None:
        self._routes = routes
        self._rows_per_seat = rows_per_seat
        self._forecast = Forecast(routes, max_batch, costs)
        self._batches = Batches(rows_per_seat, max_batch, self._forecast)
        self._ladder = Ladder()
        self._passes = Passes(routes)
        self._journal = Journal(log)
        self._lines: dict[int, Line] = {}
        self._prospect = Prospect(routes.stages, self._forecast, self._passes, self._lines)
        self._gather_ns = 0
        self._dropped: list[tuple[int, int]] = []
        self._number = 0
        self._order = 0
        self._tested_ns = -TEST_NS
        self._watched_ns = 0
        self._load = 0.0

    # Events

    def open(self, session: int, seat: int, terms: Terms) -> None:
        """A session begins on a free seat. Whether it should is asked of `admit`."""
        self._journal.event("open", session, seat, terms)
        assert session not in self._lines
        assert 1 <= terms.min_steps <= terms.steps <= self._rows_per_seat
        line = Line(session, seat, terms, self._rows_per_seat, self._routes.places)
        line.losses = max((other.losses for other in self._lines.values()), default=0.0)
        self._lines[session] = line
        self._batches.open(line)
        self._fit()

    def arrived(self, session: int, chunk: int, deadline_ns: int | None, now_ns: int) -> None:
        """A chunk of a session waits to be encoded. The caller has asked `accepts`."""
        self._journal.event("arrived", session, chunk, deadline_ns, now_ns, at_ns=now_ns)
        line = self._lines[session]
        due_ns = now_ns + PATIENCE_NS if deadline_ns is None else deadline_ns
        steps = self._ladder.steps(line.terms)
        line.arrive(Passage(chunk, steps, deadline_ns, due_ns, self._order))
        self._order += 1
        if line.terms.latency_ns is not None:
            line.arrivals_ns.append(now_ns)
            self._watch(now_ns)

    def withdraw(self, session: int, now_ns: int) -> bool:
        """A newer chunk is complete: drop the one that waits, so that the newer may arrive. The
        first chunk of a session is never dropped. Returns whether one was.
        """
        self._journal.event("withdraw", session, now_ns, at_ns=now_ns)
        line = self._lines[session]
        passage = line.waiting()
        if passage is None:
            return False
        if passage.chunk == 0:
            line.losses += 1  # The newer one is lost instead.
            return False
        self._press(now_ns, f"session {session} has a newer chunk than the one that waits")
        self._drop(line, passage, "a newer one is complete")
        return True

    def finished(self, stage: int, task: Task, now_ns: int) -> tuple[Job, ...]:
        """A stage has run its part of a task. Returns the jobs whose chunk has left the chain."""
        self._journal.event("finished", stage, now_ns, at_ns=now_ns)
        position, since_ns = self._passes.end(stage, task)
        self._forecast.seen(stage, task.kind, len(task.jobs), now_ns - since_ns)
        for line, passage, _ in self._live(task):
            passage.position = position + 1
            if position == 0:
                line.leave(passage)
        route = self._routes.of(task.kind)
        if position + 1 < len(route):
            self._passes.hand_over(route[position + 1], task)
            return ()
        return tuple(
            job for line, passage, job in self._live(task) if self._land(line, passage, now_ns)
        )

    def failed(self, stage: int, task: Task) -> None:
        """A stage gave up on a task. The caller closes the sessions of its jobs."""
        self._journal.event("failed", stage)
        self._passes.end(stage, task)

    def close(self, session: int) -> None:
        """A session ends; what it still had waiting is forgotten. Passes in flight finish and are
        ignored.
        """
        self._journal.event("close", session)
        self._batches.close(self._lines.pop(session))
        self._fit()

    # Questions

    def accepts(self, session: int) -> bool:
        """Whether a further chunk may arrive: at most one waits per session."""
        return self._lines[session].waiting() is None

    def in_flight(self, session: int) -> int:
        """Chunks of a session that arrived, were not dropped and did not leave."""
        return len(self._lines[session].passages)

    def running(self, session: int) -> bool:
        """Whether any pass that began for this session is still on its way."""
        return self._passes.of(session)

    def admit(self, terms: Terms, now_ns: int) -> Admission:
        """Whether a session of these terms fits beside those that are open."""
        self._journal.event("admit", terms, now_ns, at_ns=now_ns)
        others = [x.terms for x in self._lines.values() if x.terms.latency_ns is not None]
        answer = admission(terms, others, self._routes, self._forecast)
        self._journal.decided("admit" if answer.fits else "refuse", answer.why)
        return answer

    @property
    def level(self) -> int:
        """Of degradation; 0 is none."""
        return self._ladder.level

    def steps(self, session: int) -> int:
        """Denoising steps that a chunk of this session would get now."""
        return self._ladder.steps(self._lines[session].terms)

    def utilisation(self, now_ns: int, level: int | None = None) -> float:
        """Demand of the sessions with an SLO on the busiest stage, at the present level or another:
        above 1 it cannot be met.
        """
        rates = [
            (line.rate_per_ns(now_ns), self._ladder.steps(line.terms, level))
            for line in self._lines.values()
            if line.arrivals_ns
        ]
        return self._forecast.utilisation(rates)[0]

    def dropped(self) -> tuple[tuple[int, int], ...]:
        """(Session, chunk) of what was dropped since this was last asked."""
        dropped = tuple(self._dropped)
        self._dropped.clear()
        return dropped

    def task_on(self, stage: int) -> tuple[Task, int] | None:
        """What a stage runs, and since when; None while it is idle."""
        return self._passes.on(stage)

    def next(self, stage: int, now_ns: int) -> Task | None:
        """What an idle stage should run now, which is taken as begun; None if nothing can run.

        Earliest deadline first, then oldest chunk first; later passes before earlier ones. Without
        deadlines denoising steps come behind encoding and decoding. Passes that were handed over
        run in the order in which they began, which keeps the rings of a row in frame order. Chunks
        that would come out late are dropped before they are encoded.
        """
        self._journal.event("next", stage, now_ns, at_ns=now_ns)
        assert self._passes.on(stage) is None
        if self.level and now_ns - self._watched_ns >= WATCH_NS:
            self._watch(now_ns)
        begun, waiting = self._ready(stage)
        choices: tuple[tuple[Urgency, Task | Turn], ...] = (
            *self._continuations(stage),
            *((self._urgency(turn[1]), turn) for turn in begun),
        )
        most = min(choices, key=_first, default=None)
        new = self._new(waiting, now_ns, most and most[0])
        chosen = new or (most and most[1])
        if chosen is None:
            return None
        task = chosen if isinstance(chosen, Task) else self._begin(*chosen, now_ns)
        self._passes.start(stage, task, now_ns)
        self._journal.runs(stage, task)
        return task

    # Choosing

    def _continuations(self, stage: int) -> Iterator[tuple[Urgency, Task]]:
        for task in self._passes.handed(stage):
            yield min(self._urgency_of(job) for job in task.jobs), task

    def _ready(self, stage: int) -> tuple[list[Turn], list[Turn]]:
        """Whose next pass could begin here: chunks that have begun, and those that wait to be
        encoded.
        """
        here = self._passes.first_here(stage)
        begun: list[Turn] = []
        waiting: list[Turn] = []
        for line in self._lines.values() if here else ():
            for passage in line.ready():
                if passage.kind in here:
                    (waiting if passage.station == ARRIVED else begun).append((line, passage))
        return begun, waiting

    def _new(self, waiting: list[Turn], now_ns: int, most: Urgency | None) -> Turn | None:
        """The chunk whose encoding should begin, unless `most` is more urgent: what has begun goes
        by its deadline alone, so that nothing is left half done. Those that would come out late
        are dropped before it.
        """
        while waiting:
            turn = min(waiting, key=_turn_of)
            passage = turn[1]
            passage.due_ns = lined_up_ns(passage, self._lines.values())
            if (most is not None and most < self._urgency(passage)) or self._early(*turn, now_ns):
                return None
            if self._worthwhile(*turn, now_ns):
                return turn
            waiting.remove(turn)
        return None

    def _early(self, line: Line, passage: Passage, now_ns: int) -> bool:
        """Whether more is offered than can be done and a chunk that began now would only wait
        further on. It waits here instead, where a newer one may take its place and who lost more
        comes before it: latency then stays near that of an idle chain, and all lose alike.
        """
        if passage.deadline_ns is None or self._load <= DEGRADE_ABOVE:
            return False
        passage.steps = self._ladder.steps(line.terms)
        leaves_ns = self._prospect.leaves_ns(passage, now_ns)
        waits_ns = leaves_ns - self._forecast.path_ns(passage.steps)
        return waits_ns > self._forecast.ahead_ns(passage.steps)

    def _worthwhile(self, line: Line, passage: Passage, now_ns: int) -> bool:
        """Decide the steps of a chunk that is about to be encoded; drop it if it would be late with
        the fewest that may be given now.
        """
        if passage.station != ARRIVED or passage.deadline_ns is None:
            return True
        passage.steps = self._ladder.steps(line.terms)
        late_ns = self._predict(passage, now_ns) - passage.deadline_ns
        hopeless = now_ns + self._forecast.path_ns(line.terms.min_steps) > passage.deadline_ns
        if late_ns > 0 and not hopeless:
            words = f"session {line.session} would be {late_ns * 1e-6:.0f} ms late"
            if self._press(now_ns, words):
                passage.steps = self._ladder.steps(line.terms)
                late_ns = self._predict(passage, now_ns) - passage.deadline_ns
        if late_ns <= 0 or passage.chunk == 0 or self._untested(line, passage, now_ns):
            return True
        self._drop(line, passage, f"it would be {late_ns * 1e-6:.0f} ms late")
        return False

    def _predict(self, passage: Passage, now_ns: int) -> float:
        """When a chunk will have left if it begins now, at the upper quantile."""
        passage.predicted_ns = now_ns + self._prospect.leaves_ns(passage, now_ns, waiting=True)
        return passage.predicted_ns + self._forecast.margin_ns(passage.steps)

    def _untested(self, line: Line, passage: Passage, now_ns: int) -> bool:
        """Nothing is on its way, so a forecast that is too dark would stay so for ever: a fresh
        chunk may go and correct it, now and then.
        """
        fresh = (passage.deadline_ns or 0) - now_ns >= (line.terms.latency_ns or 0) / 4
        idle = not any(True for other in self._lines.values() for _ in other.begun())
        if not (fresh and idle and now_ns - self._tested_ns >= TEST_NS):
            return False
        self._tested_ns = now_ns
        return True

    def _begin(self, line: Line, passage: Passage, now_ns: int) -> Task:
        kind = passage.kind
        members = [(line, passage)]
        if kind == "denoise":
            members = self._batches.around(line, passage, now_ns)
        jobs = tuple(owner.job(member) for owner, member in members)
        for owner, member in members:
            owner.begin(member)
        self._number += 1
        return Task(self._number, kind, jobs)

    # Keeping

    def _fit(self) -> None:
        """Sessions came or went."""
        terms = [line.terms for line in self._lines.values()]
        self._ladder.fit(terms)
        rows = sum(t.steps for t in terms if t.latency_ns is None)
        self._gather_ns = GATHER_NS if rows > 1 else 0

    def _land(self, line: Line, passage: Passage, now_ns: int) -> bool:
        left = line.land(passage)
        if left and passage.predicted_ns is not None:
            self._forecast.left(passage.steps, now_ns - passage.predicted_ns)
        return left

    def _drop(self, line: Line, passage: Passage, why: str) -> None:
        line.drop(passage)
        self._dropped.append((line.session, passage.chunk))
        self._journal.decided("drop", why, line.session, passage.chunk)

    def _press(self, now_ns: int, why: str) -> bool:
        pressed = self._ladder.press(now_ns)
        if pressed:
            self._journal.decided("degrade", f"to level {self.level}: {why}")
        return pressed

    def _watch(self, now_ns: int) -> None:
        """Let the ladder see how loaded the busiest stage is."""
        self._watched_ns = now_ns
        self._load = now = self.utilisation(now_ns)
        change = self._ladder.observe(now_ns, lambda level: self.utilisation(now_ns, level))
        if change:
            what = "degrade" if change > 0 else "recover"
            self._journal.decided(what, f"to level {self.level}: utilisation {now:.2f}")

    def _live(self, task: Task) -> Iterator[tuple[Line, Passage, Job]]:
        for job in task.jobs:
            line = self._lines.get(job.session)
            if line is not None:
                yield line, line.passages[job.chunk], job

    def _urgency_of(self, job: Job) -> Urgency:
        line = self._lines.get(job.session)
        if line is None:  # Nobody waits for it, but what comes behind it does.
            return (-1, -1, -1)
        return self._urgency(line.passages[job.chunk])

    def _urgency(self, passage: Passage) -> Urgency:
        gathers = passage.deadline_ns is None and passage.kind != "denoise"
        due_ns = passage.due_ns - self._gather_ns if gathers else passage.due_ns
        return due_ns, passage.order, -passage.station
