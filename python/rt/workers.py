"""The threads of a pipeline: one per stage that runs what the scheduler chose, and one that watches
them. It carries decisions out and refuses to make any.

What is here is guarded by the pipeline's condition; stages run outside of it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from .errors import StageFailed
from .host import Changed
from .scheduler import Scheduler, Task
from .session import Session
from .stage import Stage
from .work import Work

CHECK_S = 0.25
"""How often the watchdog looks."""


class Lease(NamedTuple):
    """A session on its seat."""

    session: Session
    seat: int


class Workers:
    """Owns the sessions that are served, the chunks on their way, and the free seats."""

    def __init__(
        self,
        stages: Sequence[Stage],
        scheduler: Scheduler,
        changed: Changed,
        seats: int,
        hang_s: float,
    ) -> None:
        self.leases: dict[int, Lease] = {}
        self.free_seats = list(reversed(range(seats)))
        self.closing = False
        self.hung: dict[int, StageFailed] = {}
        """Stage -> why it is taken to hang; empty while all is well."""
        self.busy_ns = [0] * len(stages)
        self._scheduler = scheduler
        self._changed = changed
        self._hang_s = hang_s
        self._works: dict[tuple[int, int], Work] = {}
        self._leaving: dict[int, int] = {}
        """Session -> seat, of those that ended while a pass of theirs was on its way."""
        self._stages = stages
        self._threads = [
            threading.Thread(target=self._serve, args=(s,), name=f"stage-{s.index}", daemon=True)
            for s in stages
        ]
        self._threads.append(threading.Thread(target=self._watch, name="watchdog", daemon=True))
        for thread in self._threads:
            thread.start()

    # With the condition held

    def submit(self, work: Work, deadline_ns: int | None) -> None:
        """A chunk waits to be encoded."""
        session, chunk = work.chunk.session, work.chunk.index
        self._works[session, chunk] = work
        self._scheduler.arrived(session, chunk, deadline_ns, time.perf_counter_ns())
        self._changed.notify_all()

    def tell_drops(self) -> None:
        """Sessions are told which of their chunks the scheduler has dropped."""
        for session, chunk in self._scheduler.dropped():
            self.leases[session].session.dropped(self._works.pop((session, chunk)))
            self._changed.notify_all()

    def end(self, number: int) -> None:
        """Forget a session; its seat is free once none of its passes is on a device. Waits for
        that, unless a stage hangs.
        """
        self._scheduler.close(number)
        self._leaving[number] = self.leases.pop(number).seat
        self._sweep()
        self._changed.wait_for(lambda: number not in self._leaving or self.hung or self.closing)

    def close(self) -> None:
        """Stop all threads, but those of stages that hang: they are left behind."""
        with self._changed:
            self.closing = True
            hung = {f"stage-{index}" for index in self.hung}
            self._changed.notify_all()
        for thread in self._threads:
            if thread.name not in hung:
                thread.join()

    def _sweep(self) -> None:
        """Free the seats of sessions that ended and of which nothing runs any more."""
        for number in [n for n in self._leaving if not self._scheduler.running(n)]:
            self.free_seats.append(self._leaving.pop(number))
            self._works = {key: work for key, work in self._works.items() if key[0] != number}
            self._changed.notify_all()

    # Threads

    def _serve(self, stage: Stage) -> None:
        """Run what the scheduler chooses for a stage, until the pipeline closes."""
        try:
            stage.device.pin()
            while (chosen := self._choose(stage)) is not None:
                self._run(stage, *chosen)
        except BaseException as error:  # noqa: BLE001 - a broken invariant: nobody may wait for ever
            with self._changed:
                self.closing = True
                self._fail_all(_failure(stage, -1, error))

    def _choose(self, stage: Stage) -> tuple[Task, list[Work]] | None:
        """The next pass of a stage, once there is one; None when the pipeline closes."""
        with self._changed:
            while not self.closing:
                task = self._scheduler.next(stage.index, time.perf_counter_ns())
                self.tell_drops()
                if task is not None:
                    return task, [self._works[job.session, job.chunk] for job in task.jobs]
                self._changed.wait()
            return None

    def _run(self, stage: Stage, task: Task, works: list[Work]) -> None:
        start = time.perf_counter_ns()
        try:
            pictures = stage.run(task, works)
        except BaseException as error:  # noqa: BLE001 - the top of a worker
            self._fail(stage, task, error)
            return
        with self._changed:
            now_ns = time.perf_counter_ns()
            self.busy_ns[stage.index] += now_ns - start
            for work in works:
                work.passes_ns.append(now_ns - start)
            self.hung.pop(stage.index, None)
            for job in self._scheduler.finished(stage.index, task, now_ns):
                work = self._works.pop((job.session, job.chunk))
                assert pictures is not None
                self.leases[job.session].session.deliver(job, work, pictures)
            self._sweep()
            self._changed.notify_all()

    def _fail(self, stage: Stage, task: Task, error: BaseException) -> None:
        """The sessions of a failed pass end with StageFailed; the others and the pipeline go on."""
        stage.forget(task)
        with self._changed:
            self.hung.pop(stage.index, None)
            self._scheduler.failed(stage.index, task)
            for job in task.jobs:
                if job.session in self.leases:
                    self.leases[job.session].session.fail(_failure(stage, job.chunk, error))
            self._sweep()
            self._changed.notify_all()

    def _watch(self) -> None:
        """A pass that runs for too long ends all sessions, as each of them needs every stage. It
        cannot be stopped; if it ever ends, the pipeline is whole again.
        """
        with self._changed:
            while not self.closing:
                for stage in self._stages:
                    self._check(stage)
                if self._scheduler.level:  # It may be time to give a step back.
                    self._changed.notify_all()
                self._changed.wait(CHECK_S)

    def _check(self, stage: Stage) -> None:
        running = self._scheduler.task_on(stage.index)
        if running is None or stage.index in self.hung:
            return
        task, since_ns = running
        for_s = (time.perf_counter_ns() - since_ns) * 1e-9
        if for_s > self._hang_s:
            cause = TimeoutError(f"its {task.kind} pass has been running for {for_s:.1f} s")
            self.hung[stage.index] = _failure(stage, task.jobs[0].chunk, cause)
            self._fail_all(self.hung[stage.index])

    def _fail_all(self, failure: StageFailed) -> None:
        for lease in self.leases.values():
            lease.session.fail(failure)
        self._changed.notify_all()


def _failure(stage: Stage, chunk: int, error: BaseException) -> StageFailed:
    """What a caller sees of a failed pass: one line, with the cause behind it."""
    reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    failure = StageFailed(stage.device.name, stage.index, chunk, reason)
    failure.__cause__ = error
    return failure
