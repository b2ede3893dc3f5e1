"""Gated stream batching, the policy of the paper's released code, as a baseline to compare with.

One session. Iteration k begins when chunk k is encoded and runs one batch through the DiT: step s
of chunk k - s G on G devices, because what goes round the ring of devices joins the first one again
G iterations later. So each further step waits for G further chunks of input, however idle the
devices are: (steps - 1) G periods of latency. Each device works through the iterations in order.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .frame import Job, Kind
from .scheduler import Admission, Routes, Task, Terms


@dataclass(slots=True)
class Gated:
    """Has the interface of `Scheduler`, for a single session."""

    routes: Routes
    steps: int
    devices: int
    encoded: int = 0
    """Chunks that arrived: how many iterations there may be."""
    begun: dict[int, int] = field(default_factory=dict)
    """Stage -> number of parts that it began, in the order of `_parts`."""
    ended: set[tuple[int, Kind, int]] = field(default_factory=set)
    """(Stage, kind, iteration) that ran."""
    number: int = 0

    def open(self, session: int, seat: int, terms: Terms) -> None:
        """The one session begins."""
        assert session == seat == 0
        assert terms.steps == self.steps

    def close(self, session: int) -> None:
        """Its last chunk has left."""

    def admit(self, terms: Terms, now_ns: int) -> Admission:
        """Nobody is refused."""
        del terms, now_ns
        return Admission(True, "gated batching admits everybody")

    def accepts(self, session: int) -> bool:
        """Its queue has no bound."""
        return session == 0

    def withdraw(self, session: int, now_ns: int) -> bool:
        """Nothing is dropped."""
        del session, now_ns
        return False

    def dropped(self) -> tuple[tuple[int, int], ...]:
        """Nothing is dropped."""
        return ()

    def arrived(self, session: int, chunk: int, deadline_ns: int | None, now_ns: int) -> None:
        """A chunk waits; deadlines are not looked at."""
        del session, deadline_ns, now_ns
        assert chunk == self.encoded
        self.encoded += 1

    def next(self, stage: int, now_ns: int) -> Task | None:
        """The next part of this stage's fixed order, if what it needs is there."""
        del now_ns
        kinds = self._kinds(stage)
        begun = self.begun.get(stage, 0)
        iteration, kind = begun // len(kinds), kinds[begun % len(kinds)]
        if not self._can(stage, kind, iteration):
            return None
        self.begun[stage] = begun + 1
        jobs = self._jobs(kind, iteration)
        if not jobs:  # Nothing to decode while the ring fills.
            self.ended.add((stage, kind, iteration))
            return self.next(stage, 0)
        self.number += 1
        return Task(self.number, kind, jobs)

    def finished(self, stage: int, task: Task, now_ns: int) -> tuple[Job, ...]:
        """A stage ran its part. Returns the jobs whose chunk has left the chain."""
        del now_ns
        iteration = task.jobs[0].chunk + self._lag(task.jobs[0].step)
        if task.kind == "encode":
            iteration = task.jobs[0].chunk
        self.ended.add((stage, task.kind, iteration))
        last = task.kind == "decode" and stage == self.routes.decode[-1]
        return task.jobs if last else ()

    def _kinds(self, stage: int) -> list[Kind]:
        every: tuple[Kind, ...] = ("encode", "denoise", "decode")
        return [kind for kind in every if stage in self.routes.of(kind)]

    def _lag(self, step: int) -> int:
        """Iterations between a chunk's own and that of a step; decoding follows the last step."""
        return min(step, self.steps - 1) * self.devices

    def _can(self, stage: int, kind: Kind, iteration: int) -> bool:
        route = self.routes.of(kind)
        position = route.index(stage)
        if position > 0:
            return (route[position - 1], kind, iteration) in self.ended
        if kind == "encode":
            return iteration < self.encoded
        if kind == "decode":
            return (self.routes.denoise[-1], "denoise", iteration) in self.ended
        before = iteration - self.devices
        return (self.routes.encode[-1], "encode", iteration) in self.ended and (
            before < 0 or (self.routes.denoise[-1], "denoise", before) in self.ended
        )

    def _jobs(self, kind: Kind, iteration: int) -> tuple[Job, ...]:
        if kind == "encode":
            wanted = [(-1, iteration)]
        elif kind == "decode":
            wanted = [(self.steps, iteration - self._lag(self.steps))]
        else:
            wanted = [(step, iteration - self._lag(step)) for step in range(self.steps)]
        return tuple(
            Job(0, 0, chunk, step, self.steps, max(0, step), None)
            for step, chunk in wanted
            if chunk >= 0
        )
