"""A pipeline: loaded engines on devices, with seats for sessions, and one worker thread per stage.

One condition guards scheduler, seats and sessions; stages run outside of it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from . import costfile, placement
from . import devices as device_names
from . import manifest as manifests
from .config import Prompt, SessionConfig, check_int, check_positive
from .cost import timetable
from .devices import Device
from .errors import AdmissionRefused, ConfigError, EngineMismatch
from .host import Changed
from .manifest import Manifest
from .prompt import PromptEncoder
from .scheduler import Log, Scheduler, Terms
from .session import Session
from .stage import Stage
from .wiring import connect, routes_of
from .work import Work
from .workers import Lease, Workers

MOST = 1_000_000
"""Bound of seats, rows and seconds: more is a slip of the pen."""


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
    busy_seconds: float
    hung: bool


@dataclass(frozen=True, slots=True)
class Status:
    """What a pipeline is and does. `utilisation`: what sessions with an SLO demand of the busiest
    stage, above 1 it cannot be met; `level` of degradation, 0 is none.
    """

    engines: str
    backend: str
    library: str
    placement: tuple[StageStatus, ...]
    seats: int
    sessions: int
    utilisation: float
    level: int


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
        hang_s: float,
        log: Log | None,
    ) -> None:
        self.manifest = manifest
        self.directory = directory
        self.changed = Changed()
        self._rows_per_seat = steps
        self._seats = seats
        costs = [costfile.of(manifest, directory, device) for device in devices]
        ranges = placement.place(costs, steps, seats).ranges
        self.stages = tuple(
            _load_stage(
                i, d, manifest, directory, [manifest.chain[u] for u in r], seats, steps, max_batch
            )
            for i, (d, r) in enumerate(zip(devices, ranges, strict=True))
        )
        with devices[0].pinned():
            self._prompts = PromptEncoder(manifest, directory, devices[0])
        routes = routes_of(self.stages)
        connect(self.stages, routes, manifest, seats, steps)
        # Modelled costs are good for proportions only: times are then learnt from the first passes.
        told = all(c.origin != "modelled" for c in costs)
        table = timetable(list(zip(costs, ranges, strict=True))) if told else None
        self._scheduler = Scheduler(routes, steps, max_batch, table, log)
        self._opened = 0
        self._workers = Workers(self.stages, self._scheduler, self.changed, seats, hang_s)

    @classmethod
    def load(
        cls,
        engines: str | Path,
        devices: str | Sequence[str] = "auto",
        *,
        seats: int = 1,
        steps: int | None = None,
        max_batch: int | None = None,
        hang_s: float = 60.0,
        log: Log | None = None,
    ) -> Self:
        """Load `engines/<name>/` onto devices: "auto", "cpu:0,cpu:1", or a list of names.

        `seats` sessions can be open at once, each with up to `steps` denoising steps (default: the
        model's own). A pass that takes longer than `hang_s` counts as hanging. `log` is told every
        event and decision of the scheduler. Raises EngineMissing, EngineMismatch, ConfigError.
        """
        _check_load(engines, seats, max_batch, hang_s)
        directory = Path(engines)
        manifest = manifests.read(directory)
        manifests.check_files(manifest, directory)
        _check_steps(manifest, steps)
        largest = manifest.max_batch if max_batch is None else min(max_batch, manifest.max_batch)
        places = device_names.resolve(devices)
        try:
            return cls(
                manifest,
                directory,
                places,
                seats,
                steps or manifest.noise.default_steps,
                largest,
                hang_s,
                log,
            )
        except EngineMismatch as error:
            if "python -m " in str(error):  # It names its own command.
                raise
            raise EngineMismatch(f"{error}; {manifests.mending(directory)}") from error

    def example_prompt(self) -> Prompt:
        """Any prompt that these engines can encode. Raises ConfigError where there is none."""
        return self._prompts.example()

    def session(self, prompt: Any, **options: Any) -> Session:
        """Lease a seat for one video. Options are the fields of `SessionConfig`.

        Raises ConfigError for options that mean nothing, AdmissionRefused when every seat is taken
        or the SLO would not hold, with the numbers, and StageFailed while a stage hangs.
        """
        config = SessionConfig(prompt=prompt, **options)
        steps = config.steps or min(self._rows_per_seat, self.manifest.noise.default_steps)
        if steps > self._rows_per_seat:
            raise ConfigError(
                f"steps: got {steps}, but the pipeline was loaded for {self._rows_per_seat}; "
                f"load it with steps={steps}"
            )
        check_int("min_steps", config.min_steps, 1, steps)
        with self.changed:
            number, seat = self._admit(_terms(config, steps))
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
                self._scheduler.close(number)
                self._workers.free_seats.append(seat)
            raise
        with self.changed:
            self._workers.leases[number] = Lease(session, seat)
        return session

    def status(self) -> Status:
        """A plain record of what is loaded, how long each unit has run and how it stands now."""
        m = self.manifest
        with self.changed:
            return Status(
                str(self.directory),
                m.backend,
                m.library,
                tuple(
                    _stage_status(s, busy, s.index in self._workers.hung)
                    for s, busy in zip(self.stages, self._workers.busy_ns, strict=True)
                ),
                self._seats,
                len(self._workers.leases),
                self._scheduler.utilisation(time.perf_counter_ns()),
                self._scheduler.level,
            )

    def close(self) -> None:
        """End every session and stop the workers. Idempotent."""
        with self.changed:
            sessions = [lease.session for lease in self._workers.leases.values()]
        for session in sessions:
            session.close()
        with self.changed:
            # A session that another thread is closing still needs the workers.
            self.changed.wait_for(
                lambda: not self._workers.leases or self._workers.closing or self._workers.hung
            )
        self._workers.close()

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
        return session in self._workers.leases and self._scheduler.accepts(session)

    def submit(self, work: Work, deadline_ns: int | None) -> None:
        self._workers.submit(work, deadline_ns)

    def withdraw(self, session: int) -> None:
        self._scheduler.withdraw(session, time.perf_counter_ns())
        self._workers.tell_drops()

    def steps(self, session: int) -> tuple[int, int]:
        return self._scheduler.steps(session), self._scheduler.level

    def release(self, session: int) -> None:
        if session in self._workers.leases:
            self._workers.end(session)

    # Inside

    def _admit(self, terms: Terms) -> tuple[int, int]:
        """Number and seat of a new session, if it fits."""
        if self._workers.closing:
            raise ConfigError("the pipeline is closed; load another")
        for failure in self._workers.hung.values():
            raise failure
        if not self._workers.free_seats:
            raise AdmissionRefused(
                f"all {self._seats} seats are taken; close a session or load with more seats"
            )
        answer = self._scheduler.admit(terms, time.perf_counter_ns())
        if not answer.fits:
            raise AdmissionRefused(
                f"{answer.why}; close a session, or ask for fewer steps, fewer fps or more time"
            )
        number, seat = self._opened, self._workers.free_seats.pop()
        self._opened += 1
        self._scheduler.open(number, seat, terms)
        return number, seat

    def _warmup_frames(self) -> int:
        """Frames that leave before the window is full: steady state begins behind them."""
        return 1 + self.manifest.geometry.frames_per_chunk * (self.manifest.window.frames - 1)


def _load_stage(index: int, device: Device, *rest: Any) -> Stage:
    """Threads that an engine starts while it loads stay on the device's cores."""
    with device.pinned():
        return Stage(index, device, *rest)


def _terms(config: SessionConfig, steps: int) -> Terms:
    if config.slo is None:
        return Terms(steps, steps, config.priority)
    latency_ns = round(config.slo.latency_ms * 1e6)
    return Terms(steps, config.min_steps, config.priority, config.slo.fps, latency_ns)


def _check_load(engines: Any, seats: Any, max_batch: Any, hang_s: Any) -> None:
    """What can be refused before a file is read."""
    if not isinstance(engines, str | Path):
        raise ConfigError(f"engines: got {engines!r}, expected a directory as text or Path")
    check_int("seats", seats, 1, MOST)
    if max_batch is not None:
        check_int("max_batch", max_batch, 1, MOST)
    check_positive("hang_s", hang_s, MOST, "s")


def _check_steps(manifest: Manifest, steps: Any) -> None:
    most = len(manifest.noise.timesteps)
    whole = isinstance(steps, int) and not isinstance(steps, bool)
    if steps is not None and not (whole and 1 <= steps <= most):
        raise ConfigError(
            f"steps: got {steps}, expected 1 to {most} (timesteps {manifest.noise.timesteps})"
        )


def _stage_status(stage: Stage, busy_ns: int, hung: bool) -> StageStatus:
    names = tuple(u.name for u in stage.units)
    seconds = {name: float(ns) * 1e-9 for name, ns in zip(names, stage.busy_ns, strict=True)}
    return StageStatus(
        stage.index,
        stage.device.name,
        names,
        seconds,
        stage.prompt_ns * 1e-9,
        stage.ops_ns * 1e-9,
        busy_ns * 1e-9,
        hung,
    )
