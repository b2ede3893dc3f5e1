"""The production scheduler on a virtual clock: sources, stages and passes as events, nothing else.

Deterministic for a seed. Service times are a stage's measured median for the batch, times a draw
from the measured spread; the copy to the next device is part of a pass, as in production. It cannot
show what is not in the costs: contention of copies with kernels, clocks that fall, a busy host.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from .cost import Costs, Timetable, timetable
from .frame import Job, Kind
from .placement import Placement
from .scheduler import Admission, Log, Routes, Scheduler, Task, Terms


@dataclass(frozen=True, slots=True)
class Machine:
    """What runs: the stages' costs, the spread of a pass around its median, and the rings."""

    table: Timetable
    spread: tuple[float, ...]
    rows_per_seat: int
    max_batch: int
    frames_per_chunk: int

    @classmethod
    def of(cls, costs: Sequence[Costs], placement: Placement, rows_per_seat: int) -> Machine:
        """Devices with these costs, cut like this."""
        first = costs[0]
        return cls(
            timetable(list(zip(costs, placement.ranges, strict=True))),
            first.spread,
            rows_per_seat,
            first.max_batch,
            first.frames_per_chunk,
        )

    @property
    def stages(self) -> int:
        return 1 + max(stage for stage, _ in self.table)

    @property
    def routes(self) -> Routes:
        """The stages that each kind of pass visits."""

        def route(kind: Kind) -> tuple[int, ...]:
            return tuple(sorted(stage for stage, k in self.table if k == kind))

        return Routes(route("encode"), route("denoise"), route("decode"))

    def ratio(self, share: float) -> float:
        """The quantile of the spread, linear between its points; `share` in [0, 1)."""
        place = share * (len(self.spread) - 1)
        below = int(place)
        above = min(below + 1, len(self.spread) - 1)
        return self.spread[below] + (place - below) * (self.spread[above] - self.spread[below])


@dataclass(frozen=True, slots=True)
class Stream:
    """One video that is offered: `frames` pictures at `fps`, each up to `jitter_ms` late.

    `changes`: (seconds after its begin, fps from then on), in order.
    """

    fps: float
    frames: int
    terms: Terms
    begin_s: float = 0.0
    jitter_ms: float = 0.0
    changes: tuple[tuple[float, float], ...] = ()

    def due_s(self) -> Iterator[float]:
        """When each frame would be captured if none were late."""
        since_s, count, fps = self.begin_s, 0, self.fps
        changes = iter(self.changes)
        change = next(changes, None)
        for _ in range(self.frames):
            due_s = since_s + count / fps
            while change is not None and due_s >= self.begin_s + change[0]:
                since_s, count, fps = due_s, 0, change[1]
                change = next(changes, None)
            yield due_s
            count += 1


@dataclass(slots=True, eq=False)
class Passed:
    """A chunk of a source: when its frames were captured, and when it left the chain or was
    dropped; neither of a session that was refused, or of a policy that leaves chunks inside.
    """

    session: int
    chunk: int
    captured_ns: tuple[int, ...]
    done_ns: int | None = None
    dropped_ns: int | None = None
    steps: int = 0

    @property
    def ready_ns(self) -> int:
        """When its last frame was there."""
        return self.captured_ns[-1]


@dataclass(frozen=True, slots=True)
class Run:
    """What happened, from 0 to `end_ns`, when nothing was left to do."""

    chunks: tuple[tuple[Passed, ...], ...]
    """Per session, in order."""
    busy_ns: Mapping[tuple[int, Kind], int]
    passes: Mapping[tuple[int, Kind, int], int]
    """(Stage, kind, jobs in the batch) -> how many."""
    waiting_ns: int
    """Integral over time of the chunks that are ready, and neither left nor dropped."""
    end_ns: int
    refused: Mapping[int, str]
    """Session -> why it was not admitted."""

    def done(self) -> list[Passed]:
        """Chunks that left, in the order in which they did."""
        left = (c for session in self.chunks for c in session if c.done_ns is not None)
        return sorted(left, key=lambda c: c.done_ns or 0)

    def utilisation(self, stage: int) -> float:
        """Share of the time that a stage worked."""
        return sum(ns for (s, _), ns in self.busy_ns.items() if s == stage) / self.end_ns


class Policy(Protocol):
    """What decides: the production scheduler, or a baseline to compare it with."""

    def open(self, session: int, seat: int, terms: Terms) -> None: ...
    def close(self, session: int) -> None: ...
    def accepts(self, session: int) -> bool: ...
    def arrived(self, session: int, chunk: int, deadline_ns: int | None, now_ns: int) -> None: ...
    def withdraw(self, session: int, now_ns: int) -> bool: ...
    def next(self, stage: int, now_ns: int) -> Task | None: ...
    def finished(self, stage: int, task: Task, now_ns: int) -> tuple[Job, ...]: ...
    def dropped(self) -> tuple[tuple[int, int], ...]: ...
    def admit(self, terms: Terms, now_ns: int) -> Admission: ...


def simulate(
    machine: Machine,
    streams: Sequence[Stream],
    *,
    seed: int = 0,
    policy: Policy | None = None,
    log: Log | None = None,
    ask: bool = False,
) -> Run:
    """Offer the streams, each on a seat of its own, and run until nothing is left to do.

    `policy` None is the production scheduler, which tells `log` what it decides. `ask`: sessions
    are opened only if they are admitted.
    """
    rows, batch = machine.rows_per_seat, machine.max_batch
    chosen = policy or Scheduler(machine.routes, rows, batch, machine.table, log)
    return _Simulation(machine, streams, random.Random(seed), chosen, ask).run()


@dataclass(slots=True)
class _Session:
    """A source and what the policy knows of it. A chunk that is dropped leaves its index to the
    next one, so `inside` maps the policy's indices to chunks.
    """

    stream: Stream
    chunks: list[Passed]
    seat: int = -1
    to_come: int = 0
    held: deque[Passed] = field(default_factory=deque)
    """Chunks that are ready while one waits already."""
    inside: dict[int, Passed] = field(default_factory=dict)
    next_index: int = 0


@dataclass(slots=True)
class _Simulation:
    """The state of one run."""

    machine: Machine
    streams: Sequence[Stream]
    rng: random.Random
    policy: Policy
    ask: bool
    now_ns: int = 0
    ready: int = 0
    waiting_ns: int = 0
    events: list[tuple[int, int, Callable[[], None]]] = field(default_factory=list)
    numbers: itertools.count[int] = field(default_factory=itertools.count)
    idle: set[int] = field(default_factory=set)
    sessions: list[_Session] = field(default_factory=list)
    seats: set[int] = field(default_factory=set)
    refused: dict[int, str] = field(default_factory=dict)
    busy_ns: dict[tuple[int, Kind], int] = field(default_factory=dict)
    passes: dict[tuple[int, Kind, int], int] = field(default_factory=dict)

    def run(self) -> Run:
        self.idle = set(range(self.machine.stages))
        for number, stream in enumerate(self.streams):
            self.sessions.append(_Session(stream, self._captured(number, stream)))
            self._at(round(stream.begin_s * 1e9), functools.partial(self._open, number))
        while self.events:
            time_ns, _, action = heapq.heappop(self.events)
            self.waiting_ns += self.ready * (time_ns - self.now_ns)
            self.now_ns = time_ns
            action()
            # What happens at the same instant is known before anything is decided.
            if not self.events or self.events[0][0] > time_ns:
                self._decide()
        chunks = tuple(tuple(session.chunks) for session in self.sessions)
        return Run(chunks, self.busy_ns, self.passes, self.waiting_ns, self.now_ns, self.refused)

    def _at(self, time_ns: int, action: Callable[[], None]) -> None:
        heapq.heappush(self.events, (time_ns, next(self.numbers), action))

    def _captured(self, session: int, stream: Stream) -> list[Passed]:
        """Grouped as `Chunker` does: 1 frame, then `frames_per_chunk` and so on."""
        times: list[int] = []
        for due_s in stream.due_s():
            late_s = self.rng.uniform(0, stream.jitter_ms) * 1e-3 if stream.jitter_ms else 0.0
            captured = round((due_s + late_s) * 1e9)
            times.append(max(captured, times[-1] if times else 0))
        size = self.machine.frames_per_chunk
        starts = [0, *range(1, stream.frames, size)]
        groups = [tuple(times[a:b]) for a, b in itertools.pairwise([*starts, stream.frames])]
        return [Passed(session, i, group) for i, group in enumerate(groups) if group]

    # Events

    def _open(self, number: int) -> None:
        session = self.sessions[number]
        if self.ask:
            answer = self.policy.admit(session.stream.terms, self.now_ns)
            if not answer.fits:
                self.refused[number] = answer.why
                return
        session.seat = min(set(range(len(self.seats) + 1)) - self.seats)
        self.seats.add(session.seat)
        self.policy.open(number, session.seat, session.stream.terms)
        session.to_come = len(session.chunks)
        for chunk in session.chunks:
            self._at(chunk.ready_ns, functools.partial(self._ready, chunk))

    def _ready(self, chunk: Passed) -> None:
        self.ready += 1
        self.sessions[chunk.session].held.append(chunk)

    def _finished(self, stage: int, task: Task) -> None:
        self.idle.add(stage)
        for job in self.policy.finished(stage, task, self.now_ns):
            chunk = self.sessions[job.session].inside.pop(job.chunk)
            chunk.done_ns, chunk.steps = self.now_ns, job.steps
            self._gone(chunk)

    def _gone(self, chunk: Passed) -> None:
        """A chunk has left or was dropped; a session ends with its last one."""
        session = self.sessions[chunk.session]
        self.ready -= 1
        session.to_come -= 1
        if session.to_come == 0:
            self.seats.remove(session.seat)
            self.policy.close(chunk.session)

    # Decisions

    def _decide(self) -> None:
        """Hand over what is accepted and let every idle stage choose, until nothing moves. Only
        then does a newer chunk of a live source take the place of the one that waits.
        """
        while self._take() or self._choose() or self._replace():
            pass

    def _take(self) -> bool:
        moved = False
        for number, session in enumerate(self.sessions):
            if session.held and self.policy.accepts(number):
                chunk, latency_ns = session.held.popleft(), session.stream.terms.latency_ns
                deadline = None if latency_ns is None else chunk.captured_ns[0] + latency_ns
                self.policy.arrived(number, session.next_index, deadline, self.now_ns)
                session.inside[session.next_index] = chunk
                session.next_index += 1
                moved = True
        return moved

    def _choose(self) -> bool:
        moved = False
        for stage in sorted(self.idle):
            task = self.policy.next(stage, self.now_ns)
            moved |= self._collect()
            if task is not None:
                self._begin(stage, task)
                moved = True
        return moved

    def _replace(self) -> bool:
        for number, session in enumerate(self.sessions):
            if session.held and session.stream.terms.latency_ns is not None:
                if self.policy.withdraw(number, self.now_ns):
                    return self._collect()
                self._drop(session.held.popleft())  # The first chunk keeps its place.
                return True
        return False

    def _collect(self) -> bool:
        """Take note of what the policy dropped."""
        dropped = self.policy.dropped()
        for number, index in dropped:
            session = self.sessions[number]
            session.next_index -= 1
            assert index == session.next_index, "only the newest may be dropped"
            self._drop(session.inside.pop(index))
        return bool(dropped)

    def _drop(self, chunk: Passed) -> None:
        chunk.dropped_ns = self.now_ns
        self._gone(chunk)

    def _begin(self, stage: int, task: Task) -> None:
        self.idle.remove(stage)
        size = len(task.jobs)
        median_ns = self.machine.table[stage, task.kind].pass_ns(size)[0]
        took_ns = max(1, round(median_ns * self.machine.ratio(self.rng.random())))
        key = stage, task.kind
        self.busy_ns[key] = self.busy_ns.get(key, 0) + took_ns
        self.passes[(*key, size)] = self.passes.get((*key, size), 0) + 1
        self._at(self.now_ns + took_ns, functools.partial(self._finished, stage, task))


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` of all do not exceed (nearest rank); nan of none."""
    if not values:
        return math.nan
    return sorted(values)[max(1, math.ceil(share * len(values))) - 1]


def compute_ms(run: Run, skip: int = 0) -> list[float]:
    """Latency of every chunk from its last frame's capture; the first `skip` of a session not."""
    return [
        (c.done_ns - c.ready_ns) * 1e-6
        for session in run.chunks
        for c in session[skip:]
        if c.done_ns is not None
    ]


def saturated_fps(run: Run, frames_per_chunk: int) -> float:
    """Frames per second while all is full: between the first and the last fifth of the chunks."""
    done = [c.done_ns for c in run.done() if c.done_ns is not None]
    first, last = len(done) // 5, len(done) - 1 - len(done) // 5
    return (last - first) * frames_per_chunk / ((done[last] - done[first]) * 1e-9)
