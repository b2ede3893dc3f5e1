"""A plan file for every unit of a chain, made by a recipe, with all weights in one file beside
them: for the backends whose plans point into that file.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export import weights
from export.onnx import Graph, Stored, export_graph
from export.options import Made, Progress, Work
from export.staging import write_whole
from export.units import PhaseSpec, UnitSpec
from rt import manifest as records
from rt.errors import Error
from rt.manifest import Plan


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a graph becomes a plan file, and how a plan is read.

    `typed(spec, precision)` has the types that bindings have at that precision.
    `export(spec, precision, may_ignore)` gives what `plan` takes, once for all units that share a
    graph.
    """

    suffix: str
    typed: Callable[[PhaseSpec, str], PhaseSpec]
    export: Callable[[PhaseSpec, str, Collection[str]], Any]
    plan: Callable[[Any, Mapping[str, Stored]], bytes]
    weights_of: Callable[[Path], dict[str, Stored]]
    graph_sha256: Callable[[Path], str]


@dataclass(slots=True)
class _Making:
    recipe: Recipe
    work: Work
    stored: dict[tuple[str, str], dict[str, Stored]]
    exported: dict[tuple[str, str], Any] = field(default_factory=dict)
    built: int = 0
    reused: int = 0


def make(recipe: Recipe, work: Work, progress: Progress) -> Made:
    """A plan file for each unit and phase that has none yet, and the records of all."""
    chain = work.opened.chain
    state = _Making(recipe, work, weights.write(chain, work.staging))
    total = sum(len(unit.phases) for unit in chain.units)
    units: dict[str, dict[str, Plan]] = {}
    done = 0
    for unit in chain.units:
        for phase, given in unit.phases.items():
            progress(f"{unit.name} {phase}", done, total)
            spec = recipe.typed(given, work.options.precision)
            plan = _write_plan(state, unit, phase, spec)
            units.setdefault(unit.name, {})[phase] = plan
            done += 1
    progress("check", done, total)
    _check_weights_used(state, units)
    return Made(units, (weights.FILE_NAME,), state.built, state.reused)


def may_ignore(phase: str, spec: PhaseSpec) -> frozenset[str]:
    """Phase `first` starts from caches of zeros, and need not look at them."""
    return frozenset(s.input for s in spec.state) if phase == "first" else frozenset()


def graph_of(spec: PhaseSpec, ignored: Collection[str]) -> Graph:
    """The ONNX graph of one phase of a unit, which may leave the inputs `ignored` unused."""
    return export_graph(
        spec.module,
        spec.arguments(),
        spec.input_names,
        spec.output_names,
        batched=spec.batched,
        may_ignore=ignored,
    )


def _write_plan(state: _Making, unit: UnitSpec, phase: str, spec: PhaseSpec) -> Plan:
    recipe = state.recipe
    name = unit.name if len(unit.phases) == 1 else f"{unit.name}.{phase}"
    path = state.work.staging / (name + recipe.suffix)
    if path.is_file():
        state.reused += 1
    else:
        state.built += 1
        plan = recipe.plan(_graph(state, unit, phase, spec), state.stored[unit.name, phase])
        write_whole(path, [plan])
    return Plan(
        file=path.name,
        sha256=records.sha256_of(path),
        graph_sha256=recipe.graph_sha256(path),
        inputs=spec.inputs,
        outputs=spec.outputs,
        state=spec.state,
        flop=spec.flop,
        bytes=spec.bytes,
        tolerance=state.work.tolerance,
    )


def _graph(state: _Making, unit: UnitSpec, phase: str, spec: PhaseSpec) -> Any:
    """The graph of a unit, exported once for all units that share it."""
    place = unit.graph, phase
    if place not in state.exported:
        state.exported[place] = state.recipe.export(
            spec, state.work.options.precision, may_ignore(phase, spec)
        )
    return state.exported[place]


def _check_weights_used(state: _Making, units: Mapping[str, Mapping[str, Plan]]) -> None:
    """A weight that no phase of a unit reads is a fault of the unit."""
    for unit in state.work.opened.chain.units:
        used: set[str] = set()
        expected: set[str] = set()
        for phase, plan in units[unit.name].items():
            used |= set(state.recipe.weights_of(state.work.staging / plan.file))
            expected |= set(state.stored[unit.name, phase])
        if used != expected:
            raise Error(f"unit {unit.name}: no graph reads the weights {sorted(expected - used)}")
