"""Writes down what the controller was told and what it decided, for whoever asked for it; and plays
such a log back.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from .records import Decision, Event, Log, Task, Terms


class Journal:
    """Without a log it does nothing."""

    def __init__(self, log: Log | None) -> None:
        self._log = log
        self._now_ns = 0

    def event(self, name: str, *values: Any, at_ns: int | None = None) -> None:
        """The controller is told something; what has no time of its own gets the last one seen."""
        if self._log:
            self._now_ns = self._now_ns if at_ns is None else at_ns
            self._log(Event(self._now_ns, name, values))

    def decided(
        self, what: str, why: str, session: int | None = None, chunk: int | None = None
    ) -> None:
        """The controller decided something because of the last event."""
        if self._log:
            self._log(Decision(self._now_ns, what, why, session, chunk))

    def runs(self, stage: int, task: Task) -> None:
        """A stage is to run this."""
        for job in task.jobs if self._log else ():
            due = "no deadline"
            if job.deadline_ns is not None:
                due = f"due in {(job.deadline_ns - self._now_ns) * 1e-6:.0f} ms"
            step = f" step {job.step + 1} of {job.steps}" if task.kind == "denoise" else ""
            why = f"{task.kind}{step} in a batch of {len(task.jobs)}, {due}"
            assert self._log
            self._log(Decision(self._now_ns, "run", why, job.session, job.chunk, stage))


class Played(Protocol):
    """What a log is played back to: a fresh `Scheduler` of the same making."""

    def open(self, session: int, seat: int, terms: Terms) -> None: ...
    def arrived(self, session: int, chunk: int, deadline_ns: int | None, now_ns: int) -> None: ...
    def withdraw(self, session: int, now_ns: int) -> bool: ...
    def next(self, stage: int, now_ns: int) -> Task | None: ...
    def finished(self, stage: int, task: Task, now_ns: int) -> Any: ...
    def failed(self, stage: int, task: Task) -> None: ...
    def close(self, session: int) -> None: ...
    def admit(self, terms: Terms, now_ns: int) -> Any: ...
    def task_on(self, stage: int) -> tuple[Task, int] | None: ...


def replay(log: Iterable[Event | Decision], scheduler: Played) -> None:
    """Tell a fresh scheduler all that another was told: it decides the same, and logs the same."""
    for entry in log:
        if isinstance(entry, Decision):
            continue
        if entry.name in ("finished", "failed"):
            stage, *times = entry.values
            running = scheduler.task_on(stage)
            assert running is not None
            getattr(scheduler, entry.name)(stage, running[0], *times)
        else:
            getattr(scheduler, entry.name)(*entry.values)
