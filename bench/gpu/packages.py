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
from pathlib import Path
from unittest.mock import patch

from bench.gpu import machine
from bench.gpu.cases import Case, chain_of, checkpoint
from bench.gpu.record import Reading, failed
from export import inductor, plans
from export.inductor import Package
from export.staging import write_whole
from export.units import PhaseSpec, UnitSpec
from rt.manifest import DIT_KINDS


class Packages:
    """The packages of a case. What was compiled by these sources for this GPU lies in `folder`."""

    def __init__(self, case: Case, precision: str, root: Path) -> None:
        name = f"{case.name.replace(' ', '-')}-{precision}-{_key()}"
        self.folder = root / "packages" / name
        self.precision = precision

    def package(self, graph: str, phase: str, spec: PhaseSpec) -> Package:
        """What `export.inductor.compile_package` makes of `spec`, typed as it wants it."""
        path = self.folder / f"{graph}.{phase}.pickle"
        if path.is_file():
            found: Package = pickle.loads(path.read_bytes())
            return found
        ignored = plans.may_ignore(phase, spec)
        package = inductor.compile_package(spec, precision=self.precision, may_ignore=ignored)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, [pickle.dumps(package)])
        return package

    def for_builds(self) -> AbstractContextManager[object]:
        """While this lasts, an engine is built of these packages."""

        def graph(_state: object, unit: UnitSpec, phase: str, spec: PhaseSpec) -> Package:
            return self.package(unit.graph, phase, spec)

        return patch.object(plans, "_graph", graph)


def compile_all(cases: Sequence[Case], precision: str, root: Path) -> Iterator[Reading]:
    """Every graph of the cases that is not there yet, and the checkpoints; how long each took."""
    workers = max(1, min(14, len(os.sched_getaffinity(0)) - 2))
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "2")
    # A forked process cannot use a GPU that its parent has touched.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        jobs = {}
        for case in cases:
            if case.vae:
                jobs[pool.submit(_checkpoint, case, root)] = f"{case.name}: checkpoint written"
            for unit, phase in graphs(case):
                name = f"{case.name}: {unit} {phase} compiled"
                jobs[pool.submit(_compiled, case, precision, root, unit, phase)] = name
        try:
            for job in as_completed(jobs):
                error = job.exception()
                note = f"{workers} beside each other, without max-autotune"
                yield (
                    failed(jobs[job], error)
                    if error is not None
                    else Reading(jobs[job], job.result(), "s", reason=note)
                )
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


_chain = functools.cache(chain_of)
_key = functools.cache(lambda: machine.key_of(machine.facts()))


def _compiled(case: Case, precision: str, root: Path, name: str, phase: str) -> float:
    start = time.perf_counter()
    unit = next(unit for unit in _chain(case).units if unit.name == name)
    spec = inductor.in_precision(unit.phases[phase], precision)
    Packages(case, precision, root).package(unit.graph, phase, spec)
    return time.perf_counter() - start


def _checkpoint(case: Case, root: Path) -> float:
    start = time.perf_counter()
    checkpoint(case, root)
    return time.perf_counter() - start
