"""Passes on their way: which stage runs which, and what was handed over to a stage and waits there.
Bounded: a stage holds at most two passes of one kind.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..frame import Kind
from .forecast import KINDS
from .records import HANDOVER_DEPTH, Routes, Task


class Passes:
    """Owns the tasks that have begun and not ended."""

    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        self._busy: dict[int, tuple[Task, int]] = {}
        """Stage -> the task that it runs, and since when."""
        self._waiting: dict[tuple[int, Kind], list[Task]] = {
            (stage, kind): [] for kind in KINDS for stage in routes.of(kind)[1:]
        }
        """(Later stage of a route, kind) -> tasks handed over to it, in the order in which they
        began; the first may be running.
        """

    def start(self, stage: int, task: Task, now_ns: int) -> None:
        """A stage takes up its part of a task."""
        assert stage not in self._busy
        self._busy[stage] = task, now_ns

    def end(self, stage: int, task: Task) -> tuple[int, int]:
        """A stage is done with it. Returns its position in the route, and since when it ran."""
        running, since_ns = self._busy.pop(stage)
        assert running is task
        position = self._routes.of(task.kind).index(stage)
        if position > 0:
            self._waiting[stage, task.kind].remove(task)
        return position, since_ns

    def hand_over(self, stage: int, task: Task) -> None:
        """It waits for a later stage of its route now."""
        self._waiting[stage, task.kind].append(task)

    def on(self, stage: int) -> tuple[Task, int] | None:
        """What a stage runs, and since when; None while it is idle."""
        return self._busy.get(stage)

    def handed(self, stage: int) -> Iterator[Task]:
        """Of each kind the task that a stage may take up next."""
        for kind in KINDS:
            tasks = self._waiting.get((stage, kind))
            if tasks and self.room_after(stage, kind):
                yield tasks[0]

    def first_here(self, stage: int) -> tuple[Kind, ...]:
        """The kinds of pass that may begin on a stage now."""
        return tuple(
            kind
            for kind in KINDS
            if self._routes.of(kind)[0] == stage and self.room_after(stage, kind)
        )

    def room_after(self, stage: int, kind: Kind) -> bool:
        """Whether the next stage of the route has room for one more pass."""
        route = self._routes.of(kind)
        if stage == route[-1]:
            return True
        return len(self._waiting[route[route.index(stage) + 1], kind]) < HANDOVER_DEPTH

    def of(self, session: int) -> bool:
        """Whether any pass that began for this session is still on its way."""
        waiting = (task for tasks in self._waiting.values() for task in tasks)
        tasks = (*(task for task, _ in self._busy.values()), *waiting)
        return any(job.session == session for task in tasks for job in task.jobs)
