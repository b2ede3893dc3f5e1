"""A pipeline: loaded engines on devices, with seats for sessions, and one worker thread per stage.

It carries the scheduler's decisions out and refuses to make any. One condition guards scheduler,
seats and sessions; stages run outside of it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from . import costfile, placement
from . import devices as device_names
from . import manifest as manifests
from .config import SessionConfig
from .devices import Device
from .errors import AdmissionRefused, ConfigError, EngineMismatch, StageFailed
from .frame import Kind, Phase
from .manifest import Binding, Manifest, crossing
from .prompt import PromptEncoder
from .scheduler import Routes, Scheduler, Task, Terms
from .session import Session
from .stage import DIT_KINDS, Stage, Wires, Work

_UNITS_OF: dict[Kind, tuple[str, ...]] = {
    "encode": ("encode",),
    "denoise": DIT_KINDS,
    "decode": ("decode",),
}


@dataclass(frozen=True, slots=True)
class StageStatus:
    """One line of the placement: a device and the units that run on it, with the time spent since
    load.
    """

    stage: int
    device: str
    units: tuple[str, ...]
    unit_seconds: Mapping[str, float]
    prompt_seconds: float
    ops_seconds: float


@dataclass(frozen=True, slots=True)
class Status:
    """What a pipeline is and does."""

    engines: str
    backend: str
    library: str
    placement: tuple[StageStatus, ...]
    seats: int
    sessions: int


class Pipeline:
    """Engines loaded once, sessions opened at will. Use as a context manager, or call `close`."""

    def __init__(
        self,
        manifest: Manifest,
        directory: Path,
        devices: Sequence[Device],
        seats: int,
        steps: int,
        max_batch: int,
    ) -> None:
        self.manifest = manifest
        self.directory = directory
        self.changed = threading.Condition()
        self._rows_per_seat = steps
        self._seats = seats
        costs = [costfile.of(manifest, directory, device) for device in devices]
        ranges = placement.place(costs, steps, seats).ranges
        self.stages = tuple(
            Stage(
                i, d, manifest, directory, [manifest.chain[u] for u in r], seats, steps, max_batch
            )
            for i, (d, r) in enumerate(zip(devices, ranges, strict=True))
        )
        self._prompts = PromptEncoder(manifest, directory, devices[0].threads)
        routes = Routes(self._route("encode"), self._route("denoise"), self._route("decode"))
        self._scheduler = Scheduler(routes, steps, max_batch)
        self._connect(routes)
        self._free_seats = list(reversed(range(seats)))
        self._sessions: dict[int, tuple[Session, int]] = {}
        self._opened = 0
        self._works: dict[tuple[int, int], Work] = {}
        self._closing = False
        self._workers = [
            threading.Thread(
                target=self._serve, args=(stage,), name=f"stage-{stage.index}", daemon=True
            )
            for stage in self.stages
        ]
        for worker in self._workers:
            worker.start()

    @classmethod
    def load(
        cls,
        engines: str | Path,
        devices: str | Sequence[str] = "auto",
        *,
        seats: int = 1,
        steps: int | None = None,
        max_batch: int | None = None,
    ) -> Self:
        """Load `engines/<name>/` onto devices: "auto", "cpu:0,cpu:1", or a list of names.

        `seats` sessions can be open at once, each with up to `steps` denoising steps (default: the
        model's own). Raises EngineMissing, EngineMismatch, ConfigError.
        """
        directory = Path(engines)
        manifest = manifests.read(directory)
        manifests.check_files(manifest, directory)
        _check_steps(manifest, steps)
        if seats < 1:
            raise ConfigError(f"seats: got {seats}, expected at least 1")
        largest = manifest.max_batch if max_batch is None else min(max_batch, manifest.max_batch)
        places = device_names.resolve(devices)
        try:
            return cls(
                manifest, directory, places, seats, steps or manifest.noise.default_steps, largest
            )
        except EngineMismatch as error:
            raise EngineMismatch(f"{error}; mend it with: {manifest.rebuild_command()}") from error

    def session(self, prompt: Any, **options: Any) -> Session:
        """Lease a seat for one video. Options are the fields of `SessionConfig`.

        Raises ConfigError for options that mean nothing, AdmissionRefused when every seat is taken.
        """
        config = SessionConfig(prompt=prompt, **options)
        steps = (
            config.steps
            if config.steps is not None
            else min(self._rows_per_seat, self.manifest.noise.default_steps)
        )
        if steps > self._rows_per_seat:
            raise ConfigError(
                f"steps: got {steps}, but the pipeline was loaded for {self._rows_per_seat}; "
                f"load it with steps={steps}"
            )
        with self.changed:
            if self._closing:
                raise ConfigError("the pipeline is closed; load another")
            if not self._free_seats:
                raise AdmissionRefused(
                    f"all {self._seats} seats are taken; close a session or load with more seats"
                )
            seat = self._free_seats.pop()
            number = self._opened
            self._opened += 1
        try:
            for stage in self.stages:
                stage.memory.clear(seat)
            session = Session(
                self,
                number,
                config,
                steps,
                self.manifest.geometry,
                self._warmup_frames(),
                self._prompts,
            )
        except BaseException:
            with self.changed:
                self._free_seats.append(seat)
            raise
        with self.changed:
            self._sessions[number] = (session, seat)
            self._scheduler.open(number, seat, Terms(steps))
        return session

    def status(self) -> Status:
        """A plain record of what is loaded and how long each unit has run."""
        m = self.manifest
        with self.changed:
            sessions = len(self._sessions)
        return Status(
            str(self.directory),
            m.backend,
            m.library,
            tuple(_stage_status(s) for s in self.stages),
            self._seats,
            sessions,
        )

    def close(self) -> None:
        """End every session and stop the workers. Idempotent."""
        with self.changed:
            sessions = [session for session, _ in self._sessions.values()]
        for session in sessions:
            session.close()
        with self.changed:
            # A session that another thread is closing still needs the workers.
            self.changed.wait_for(lambda: not self._sessions or self._closing)
            self._closing = True
            self.changed.notify_all()
        for worker in self._workers:
            worker.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # What sessions need; called with `changed` held

    def accepts(self, session: int) -> bool:
        return session in self._sessions and self._scheduler.accepts(session)

    def submit(self, work: Work, deadline_ns: int | None) -> None:
        self._works[work.chunk.session, work.chunk.index] = work
        now_ns = time.perf_counter_ns()
        self._scheduler.arrived(work.chunk.session, work.chunk.index, deadline_ns, now_ns)
        self.changed.notify_all()

    def release(self, session: int) -> None:
        if session not in self._sessions:
            return
        self._end(session)

    # Inside

    def _warmup_frames(self) -> int:
        """Frames that leave before the window is full: steady state begins behind them."""
        return 1 + self.manifest.geometry.frames_per_chunk * (self.manifest.window.frames - 1)

    def _route(self, kind: Kind) -> tuple[int, ...]:
        return tuple(
            s.index for s in self.stages if any(u.kind in _UNITS_OF[kind] for u in s.units)
        )

    def _connect(self, routes: Routes) -> None:
        """Give every stage the arrays and neighbours that its passes need."""
        g = self.manifest.geometry
        latent = (g.latent_channels, g.latent_height, g.latent_width)
        rows, places = self._rows_per_seat * self._seats, routes.places
        noisy = self.stages[routes.denoise[0]].device.zeros((rows, places, *latent), np.float32)
        clean = self.stages[routes.decode[0]].device.zeros(
            (self._seats, places, *latent), np.float32
        )
        by_kind = {kind: routes.of(kind) for kind in _UNITS_OF}
        for stage in self.stages:
            following = {
                kind: self.stages[route[route.index(stage.index) + 1]]
                for kind, route in by_kind.items()
                if stage.index in route[:-1]
            }
            handed = {
                (kind, phase): self._crossing(kind, phase, stage)
                for kind, route in by_kind.items()
                for phase in _phases(kind)
                if stage.index in route[1:]
            }
            stage.connect(Wires(noisy, clean), handed, following)

    def _crossing(self, kind: Kind, phase: Phase, stage: Stage) -> tuple[Binding, ...]:
        units = [u for u in self.manifest.chain if u.kind in _UNITS_OF[kind]]
        start = units.index(next(u for u in stage.units if u.kind in _UNITS_OF[kind]))
        bindings = crossing(units[:start], units[start:], phase)
        if kind == "denoise":  # The sampler at the end of the route needs the noisy latent again.
            bindings += tuple(b for b in units[0].plans[phase].inputs if b.tensor == "noisy")
        return bindings

    def _serve(self, stage: Stage) -> None:
        """A worker: run what the scheduler chooses for its stage, until the pipeline closes."""
        try:
            while (chosen := self._choose(stage)) is not None:
                self._run(stage, *chosen)
        except Exception as error:  # noqa: BLE001 - a broken invariant: nobody may wait for ever
            with self.changed:
                self._closing = True
                for session, _ in self._sessions.values():
                    session.fail(_failure(stage, -1, error))
                self.changed.notify_all()

    def _choose(self, stage: Stage) -> tuple[Task, list[Work]] | None:
        """The next pass of a stage, once there is one; None when the pipeline closes."""
        with self.changed:
            while (task := self._scheduler.next(stage.index, time.perf_counter_ns())) is None:
                if self._closing:
                    return None
                self.changed.wait()
            return task, [self._works[job.session, job.chunk] for job in task.jobs]

    def _run(self, stage: Stage, task: Task, works: list[Work]) -> None:
        try:
            pictures = stage.run(task, works)
        except Exception as error:  # noqa: BLE001 - the top of a worker
            self._fail(stage, task, error)
            return
        with self.changed:
            for job in self._scheduler.finished(stage.index, task, time.perf_counter_ns()):
                work = self._works.pop((job.session, job.chunk))
                assert pictures is not None
                self._sessions[job.session][0].deliver(job, work, pictures)
            self.changed.notify_all()

    def _fail(self, stage: Stage, task: Task, error: Exception) -> None:
        """The sessions of a failed pass end with StageFailed; the others and the pipeline go on."""
        stage.forget(task)
        with self.changed:
            self._scheduler.failed(stage.index, task)
            for job in task.jobs:
                if job.session in self._sessions:
                    self._sessions[job.session][0].fail(_failure(stage, job.chunk, error))
            self.changed.notify_all()

    def _end(self, number: int) -> None:
        """Forget a session and free its seat once none of its passes is on a device."""
        self._scheduler.close(number)
        self.changed.wait_for(lambda: self._closing or not self._scheduler.running(number))
        _, seat = self._sessions.pop(number)
        self._works = {key: work for key, work in self._works.items() if key[0] != number}
        self._free_seats.append(seat)
        self.changed.notify_all()


def _failure(stage: Stage, chunk: int, error: Exception) -> StageFailed:
    """What a caller sees of a failed pass: one line, with the cause behind it."""
    reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    failure = StageFailed(stage.device.name, stage.index, chunk, reason)
    failure.__cause__ = error
    return failure


def _phases(kind: Kind) -> tuple[Phase, ...]:
    return ("step",) if kind == "denoise" else ("first", "step")


def _check_steps(manifest: Manifest, steps: int | None) -> None:
    most = len(manifest.noise.timesteps)
    if steps is not None and not 1 <= steps <= most:
        raise ConfigError(
            f"steps: got {steps}, expected 1 to {most} (timesteps {manifest.noise.timesteps})"
        )


def _stage_status(stage: Stage) -> StageStatus:
    names = tuple(u.name for u in stage.units)
    seconds = {name: float(ns) * 1e-9 for name, ns in zip(names, stage.busy_ns, strict=True)}
    return StageStatus(
        stage.index, stage.device.name, names, seconds, stage.prompt_ns * 1e-9, stage.ops_ns * 1e-9
    )
