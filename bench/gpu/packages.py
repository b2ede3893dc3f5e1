"""Compiled graphs of large models, kept for the units that are timed alone and for engines: each is
compiled once, several beside each other. A compile keeps one core busy, a machine with a GPU has
many.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import pickle
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from bench.gpu import machine
from bench.gpu.cases import Case, chain_of, checkpoint
from bench.gpu.record import Reading, failed, refused
from export import inductor, plans
from export.inductor import Package
from export.narrow import narrow
from export.staging import write_whole
from export.units import PhaseSpec, UnitSpec
from rt.errors import ConfigError
from rt.manifest import DIT_KINDS


class Packages:
    """The packages of a case. What was compiled by these sources for this GPU lies below `root`,
    once for all cases that share it: a DiT for each VAE, and at fp8 all but the blocks.
    """

    def __init__(self, case: Case, root: Path) -> None:
        self._case = case
        self._folder = root / "packages" / _key()

    def path(self, unit: UnitSpec, phase: str, suffix: str) -> Path:
        """Where something of one graph lies, without its folder being made."""
        case = self._case
        plain = case.precision == "fp8" and not narrow(unit.phases[phase].module, "fp8")
        shared = replace(
            case,
            vae=case.vae if unit.kind in ("encode", "decode") else "",
            precision="bf16" if plain else case.precision,
        )
        name = shared.name.replace(" ", "-")
        return self._folder / name / f"{unit.graph}.{phase}{suffix}"

    def package(self, unit: UnitSpec, phase: str) -> tuple[Package, PhaseSpec]:
        """What `export.inductor.compile_package` makes of a unit, and the unit as it is typed."""
        spec = inductor.in_precision(unit.phases[phase], self._case.precision)
        path = self.path(unit, phase, ".pickle")
        if path.is_file():
            found: Package = pickle.loads(path.read_bytes())
            return found, spec
        package = inductor.compile_package(
            spec, precision=self._case.precision, may_ignore=plans.may_ignore(phase, spec)
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, [pickle.dumps(package)])
        return package, spec

    def for_builds(self) -> AbstractContextManager[object]:
        """While this lasts, an engine is built of these packages."""

        def graph(_state: object, unit: UnitSpec, phase: str, _spec: PhaseSpec) -> Package:
            return self.package(unit, phase)[0]

        return patch.object(plans, "_graph", graph)


def compile_all(cases: Sequence[Case], root: Path) -> Iterator[Reading]:
    """Every graph of the cases that is not there yet, and the checkpoints; how long each took."""
    workers = max(1, min(14, len(os.sched_getaffinity(0)) - 2))
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "2")
    # A forked process cannot use a GPU that its parent has touched.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        jobs, taken = {}, set[Path]()
        for case in cases:
            if case.vae:
                jobs[pool.submit(_checkpoint, case, root)] = f"{case.name}: checkpoint written"
            for unit, phase in graphs(case):
                path = Packages(case, root).path(_unit(case, unit), phase, ".pickle")
                if path in taken or path.is_file():
                    continue
                taken.add(path)
                name = f"{case.name}: {unit} {phase} compiled"
                jobs[pool.submit(_compiled, case, root, unit, phase)] = name
        try:
            for job in as_completed(jobs):
                error = job.exception()
                note = f"{workers} beside each other, without max-autotune"
                if error is None:
                    yield Reading(jobs[job], job.result(), "s", reason=note)
                else:  # a precision that this GPU does not have is an answer
                    known = isinstance(error, ConfigError)
                    yield (refused if known else failed)(jobs[job], error)
        finally:  # where time is up, what has not begun does not begin
            pool.shutdown(wait=False, cancel_futures=True)


def graphs(case: Case) -> list[tuple[str, str]]:
    """Unit and phase of each graph of a case, once, the longest work first; without its VAE only
    what a step has.
    """
    chain = _chain(case)
    units = chain.units if case.vae else [u for u in chain.chain if u.kind in DIT_KINDS]
    found: dict[tuple[str, str], tuple[str, str, int]] = {}
    for unit in units:
        for phase, spec in unit.phases.items():
            found.setdefault((unit.graph, phase), (unit.name, phase, spec.flop))
    return [(name, phase) for name, phase, _ in sorted(found.values(), key=lambda f: -f[2])]


def _unit(case: Case, name: str) -> UnitSpec:
    return next(unit for unit in _chain(case).units if unit.name == name)


_chain = functools.cache(chain_of)
_key = functools.cache(lambda: machine.key_of(machine.facts()))


def _compiled(case: Case, root: Path, name: str, phase: str) -> float:
    start = time.perf_counter()
    Packages(case, root).package(_unit(case, name), phase)
    return time.perf_counter() - start


def _checkpoint(case: Case, root: Path) -> float:
    start = time.perf_counter()
    checkpoint(case, root)
    return time.perf_counter() - start
