"""The ONNX Runtime twin of a unit's graph against the PyTorch unit, at any size, without an engine:
seeded random weights, one unit in memory at a time, nothing kept.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from export import onnx as graphs
from export import weights
from export.build import TOLERANCE, check, open_chain
from export.lowering import lower_for_onnxruntime
from export.options import Options, Progress
from export.plans import graph_of, may_ignore
from export.replay import Arrays
from export.sources import Opened
from export.units import Chain, PhaseSpec, UnitSpec, geometry_of
from export.verify import Difference, difference, disturbed, plausible, run, run_module, session
from rt.errors import ConfigError
from rt.manifest import Binding, StateBinding

ROWS = 2


def verify_graphs(
    options: Options, units: Collection[str], progress: Progress
) -> Iterator[Difference]:
    """Differences of `units` (none named: one of each graph but the text encoder's, which may take
    22 GB), each phase on random inputs; of a block also with garbage in hidden slots. Raises
    ConfigError for a unit that the chain does not have.
    """
    check(options)
    opened = open_chain(options)
    chosen = _chosen(opened.chain, units)
    total = sum(len(unit.phases) for unit in chosen)
    done = 0
    with TemporaryDirectory(dir=options.out) as name:
        for unit in chosen:
            progress(unit.name, done, total)
            yield from _compare(options, opened, unit, Path(name) / unit.name)
            done += len(unit.phases)


def _worst(spec: PhaseSpec, execute: Callable[[Arrays], Arrays], feeds: Arrays) -> float:
    """Largest difference over the outputs; nothing is held after it."""
    expected = run_module(spec, feeds)
    got = execute(feeds)
    return float(np.max([difference(got.pop(name), expected.pop(name)) for name in list(got)]))


def _chosen(chain: Chain, names: Collection[str]) -> list[UnitSpec]:
    units = {unit.name: unit for unit in chain.units}
    if unknown := sorted(set(names) - set(units)):
        raise ConfigError(f"units: got {unknown[0]!r}, expected of {', '.join(units)}")
    if names:
        return [unit for name, unit in units.items() if name in names]
    first = {unit.graph: unit for unit in reversed(chain.units) if unit.kind != "text"}
    return list(first.values())[::-1]


def _compare(
    options: Options, opened: Opened, unit: UnitSpec, folder: Path
) -> Iterator[Difference]:
    folder.mkdir()
    for phase, spec in unit.phases.items():
        state = spec.module.state_dict()
        own = {name: opened.read(unit, phase, name).float() for name in state}
        spec.module.load_state_dict(own, strict=True, assign=True)
    whole = replace(unit, graph=unit.name)
    stored = weights.write(Chain((), (whole,)), folder)
    geometry = geometry_of(options.config, options.height, options.width)
    for phase, spec in unit.phases.items():
        graph = graph_of(spec, may_ignore(phase, spec))
        path = folder / f"{phase}.onnx"
        plan = graphs.attach_weights(lower_for_onnxruntime(graph), stored[unit.name, phase])
        path.write_bytes(plan)
        rows = ROWS if spec.batched else 1
        values: tuple[Binding | StateBinding, ...] = (*spec.inputs, *spec.state)
        tokens = geometry.tokens_per_frame
        feeds = plausible(values, rows, unit.name, options.frames, tokens)
        execute = partial(run, session(path, arena=False))
        yield Difference(unit.name, phase, rows, _worst(spec, execute, feeds), TOLERANCE["fp32"])
        if unit.kind == "block":
            change = disturbed(execute, feeds)
            yield Difference(unit.name, phase, rows, change, 0.0, "garbage in hidden slots")
    for spec in unit.phases.values():  # give the memory back: the modules live as long as the chain
        spec.module.to("meta")
    for file in folder.iterdir():
        file.unlink()
