"""Engines whose time is known: the real ones, followed by a sleep until each launch has taken what
its costs say. Two shared cores hide what several devices would do; sleeps do not compete.

    with stretched(costs):
        pipeline = rt.Pipeline.load(...)
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from rt import backends, costfile
from rt.backends.base import Backend, Engine, Launch
from rt.cost import PASS_OF, Costs, Timing
from rt.devices import Device
from rt.frame import Array
from rt.manifest import DIT_KINDS, Manifest, Plan

Seconds = Callable[[Plan, int], float]
"""(plan, rows in the batch) -> how long a launch of it takes."""


@dataclass(frozen=True, slots=True)
class StretchedEngine:
    """An engine, and the time that its launches take."""

    engine: Engine
    plan: Plan
    seconds: Seconds

    def bind(self, arrays: Mapping[str, Array]) -> Launch:
        inner = self.engine.bind(arrays)
        batched = [b.name for b in self.plan.inputs if b.shape and b.shape[0] == "B"]
        seconds = self.seconds(self.plan, len(arrays[batched[0]]) if batched else 1)

        def launch() -> None:
            stop = time.perf_counter() + seconds
            inner()
            if (rest := stop - time.perf_counter()) > 0:
                time.sleep(rest)

        return launch


@dataclass(frozen=True, slots=True)
class StretchedBackend:
    """Loads engines that take their time."""

    backend: Backend
    seconds: Seconds
    name: str = "stretched"

    def load(self, directory: Path, plan: Plan) -> StretchedEngine:
        return StretchedEngine(self.backend.load(directory, plan), plan, self.seconds)


def laps(unit: str, steps: int) -> int:
    """How often a chunk passes through a unit of this kind."""
    return steps if unit in DIT_KINDS else 1


def known(manifest: Manifest, unit_ms: list[float]) -> Costs:
    """Costs of a chain whose units take exactly `unit_ms` per job, with batches without gain."""
    costs = costfile.modelled(manifest, Device("cpu", 0, 1))
    units = tuple(
        dataclasses.replace(
            u,
            timings=tuple(
                Timing(b, b * ms, b * ms)
                for b in range(1, 1 + (costs.max_batch if PASS_OF[u.kind] == "denoise" else 1))
            ),
        )
        for u, ms in zip(costs.units, unit_ms, strict=True)
    )
    nothing = dataclasses.replace(costs.handover, latency_ms=0.0, gb_per_s=1e6)
    return dataclasses.replace(
        costs, units=units, origin="measured", source="stretched", handover=nothing
    )


@contextlib.contextmanager
def stretched(manifest: Manifest, costs: Costs) -> Iterator[None]:
    """While this lasts, every pipeline that loads takes what `costs` say, and knows it."""
    lines = {
        plan.file: cost.line
        for unit, cost in zip(manifest.chain, costs.units, strict=True)
        for plan in unit.plans.values()
    }

    def seconds(plan: Plan, batch: int) -> float:
        return lines[plan.file].at(batch) * 1e-3 if plan.file in lines else 0.0

    create = backends.create
    with (
        patch.object(
            backends,
            "create",
            lambda name, threads, gpu=None: StretchedBackend(create(name, threads, gpu), seconds),
        ),
        patch.object(costfile, "of", lambda *_: costs),
    ):
        yield
