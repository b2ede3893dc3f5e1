"""An engine of ONNX plans, some of which packages of AOTInductor stand for."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

from micro_engine import MICRO

from export import backends, inductor, verify
from export.onnx import weights_of
from export.plans import may_ignore
from rt import manifest
from rt.backends.base import Engine
from rt.backends.inductor import InductorBackend
from rt.backends.onnxruntime import OnnxRuntimeBackend
from rt.manifest import Manifest, Plan, Unit

QUICK = {"aot_inductor.compile_wrapper_opt_level": "O0"}
"""Halves what a compile takes; the loops are optimised all the same."""


@dataclass(frozen=True)
class Packages:
    """An engine of ONNX plans, and beside it a folder with packages for some of them."""

    made: Manifest
    engine: Path
    folder: Path
    plans: Mapping[str, Plan]
    """By the file of the ONNX plan that each stands for."""

    def old(self, unit: str, phase: str) -> Plan:
        units = (*self.made.prompt, *self.made.chain)
        return next(u for u in units if u.name == unit).plans[phase]

    def new(self, unit: str, phase: str) -> Plan:
        return self.plans[self.old(unit, phase).file]

    def manifest(self) -> Manifest:
        """Of an engine with the packages for plans."""

        def with_packages(unit: Unit) -> Unit:
            plans = {phase: self.plans.get(p.file, p) for phase, p in unit.plans.items()}
            return replace(unit, plans=plans)

        return replace(
            self.made,
            prompt=tuple(map(with_packages, self.made.prompt)),
            chain=tuple(map(with_packages, self.made.chain)),
        )


def compiled(
    engine: Path,
    folder: Path,
    units: Collection[tuple[str, str]],
    precision: str,
    others: Packages | None = None,
) -> Packages:
    """Packages as a build makes them, of (unit, phase) and of all that are the same graph, with the
    weights of `engine`; of all else those of `others`.
    """
    made = manifest.read(engine)
    shutil.copy(engine / "weights.safetensors", folder)
    chain = verify.twin(made, engine, MICRO, True)
    specs = {unit.name: unit for unit in chain.units}
    plans: dict[str, Plan] = {}
    if others is not None:
        plans |= others.plans
        shutil.copytree(others.folder, folder, dirs_exist_ok=True)
    packages, recipe = Packages(made, engine, folder, plans), backends._PACKAGES
    with patch.object(inductor, "_OPTIONS", inductor._OPTIONS | QUICK):
        for name, phase in units:
            spec = recipe.typed(specs[name].phases[phase], precision)
            package = recipe.export(spec, precision, may_ignore(phase, spec))
            for unit in (u for u in chain.units if u.graph == specs[name].graph):
                old = packages.old(unit.name, phase)
                path = folder / f"{unit.name}.{phase}{recipe.suffix}"
                stored = weights_of((engine / old.file).read_bytes())
                path.write_bytes(recipe.plan(package, stored))
                plans[old.file] = replace(
                    old, file=path.name, graph_sha256=recipe.graph_sha256(path),
                    inputs=spec.inputs, outputs=spec.outputs, state=spec.state,
                )  # fmt: skip
    return packages


class Mixed:
    """ONNX Runtime for the plans that no package was compiled of."""

    name = "mixed"

    def __init__(self, threads: int, packages: Packages) -> None:
        self._others = OnnxRuntimeBackend(threads)
        self._inductor = InductorBackend(threads)
        self._packages = packages

    def load(self, directory: Path, plan: Plan) -> Engine:
        package = self._packages.plans.get(plan.file, plan)
        if package.file.endswith(inductor.SUFFIX):
            return self._inductor.load(self._packages.folder, package)
        return self._others.load(directory, plan)
