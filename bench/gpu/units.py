"""Units of large models on a GPU without a checkpoint: packages by `inductor`, random weights made
on the device, every launch captured.

Time of each unit at batch 1 to 4, of a whole step with all its blocks, of encoding and decoding,
and of all that a chunk needs, in one CUDA graph.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.gpu.cases import Case, chain_of
from bench.gpu.packages import Packages
from bench.gpu.record import Reading, refused
from bench.gpu.timing import NARROW_PRODUCT, PRODUCT, Launch, median_ms
from export import inductor
from export.narrow import narrow
from export.onnx import Stored
from export.staging import write_whole
from export.units import Chain, PhaseSpec, UnitSpec, concrete
from rt.backends.inductor import (
    InductorBackend,
    InductorEngine,
    capture,
    entering,
    read_card,
)
from rt.errors import ConfigError
from rt.manifest import DIT_KINDS

Peaks = Mapping[str, float]
"""Measured ceilings by name, in TFLOP/s; without those that were not to be had."""
BATCHES = (1, 2, 3, 4)
STEPS = (1, 2, 4)


class Compiled:
    """Engines of a case, each with random weights of its own."""

    def __init__(self, packages: Packages) -> None:
        self._packages = packages
        self._backend = InductorBackend(1)
        self._specs: dict[tuple[str, str], tuple[Path, PhaseSpec]] = {}

    def engine(self, unit: UnitSpec, phase: str = "step") -> tuple[InductorEngine, PhaseSpec]:
        """An engine with weights of its own, and the unit as it was compiled."""
        if (unit.graph, phase) not in self._specs:
            package, spec = self._packages.package(unit, phase)
            nowhere = {
                name: Stored("", 0, 0, "float32", tuple(tensor.shape))
                for name, tensor in spec.module.state_dict().items()
            }
            path = self._packages.path(unit, phase, inductor.SUFFIX)
            write_whole(path, [inductor.plan(package, nowhere)])
            self._specs[unit.graph, phase] = path, spec
        path, spec = self._specs[unit.graph, phase]
        weights, card = spec.module.state_dict(), read_card(path)

        def weight(name: str, device: str) -> tuple[Tensor, ...]:
            shape = weights[name].shape
            scale = max(1, shape[-1] if len(shape) > 1 else 1) ** -0.5
            return entering(torch.randn(shape, device=device) * scale, card.kind(name))

        return self._backend.engine(path, weight), spec


def arrays_of(spec: PhaseSpec, rows: int, shared: dict[str, Tensor]) -> dict[str, Any]:
    """Random arrays for every binding; values along the chain are shared by name, state is not."""
    found: dict[str, Tensor] = {}
    for b in (*spec.inputs, *spec.outputs):
        if b.name not in shared:
            shared[b.name] = _random(b.name, concrete(b.shape, rows), b.dtype)
        found[b.name] = shared[b.name]
    for s in spec.state:
        found[s.input] = _random(s.input, concrete(s.shape, rows), s.dtype)
        found[s.output] = found[s.input] if s.mode == "alias" else torch.empty_like(found[s.input])
    return found


def _random(name: str, shape: tuple[int, ...], dtype: str, device: str = "cuda") -> Tensor:
    kind = getattr(torch, dtype)
    if name == "mask" or not kind.is_floating_point:
        return torch.zeros(shape, dtype=kind, device=device)
    return torch.randn(shape, device=device).to(kind)


def readings(case: Case, peaks: Peaks, root: Path) -> Iterator[Reading]:
    """Everything of one case; refused as a whole at a precision that the GPU does not have."""
    try:
        inductor.check_precision(case.precision)
    except ConfigError as error:
        yield refused(f"{case.size}: step, batch 1", error)
        return
    chain = chain_of(case)
    compiled = Compiled(Packages(case, root))
    step = yield from _step(case, chain, compiled, peaks)
    if case.vae:
        yield from _whole(case, chain, compiled, step, peaks)
    yield Reading(f"{case.name}: memory", torch.cuda.max_memory_allocated() / 1e9, "GB")
    yield from _each(case, chain, compiled, peaks)


def _each(case: Case, chain: Chain, compiled: Compiled, peaks: Peaks) -> Iterator[Reading]:
    """Every graph once, at every batch size that it takes."""
    seen: set[str] = set()
    for unit in chain.chain:
        if unit.graph in seen or (unit.kind in ("encode", "decode") and not case.vae):
            continue
        seen.add(unit.graph)
        engine, spec = compiled.engine(unit)
        for rows in BATCHES if spec.batched else (1,):
            launch = engine.bind(arrays_of(spec, rows, {}))
            took = median_ms(launch)
            best = _limit([spec], rows, case.precision, peaks)
            name = f"{case.name}: unit {unit.graph}, batch {rows}"
            yield Reading(name, took, "ms", 20, best)


def _step(
    case: Case, chain: Chain, compiled: Compiled, peaks: Peaks
) -> Generator[Reading, None, Mapping[int, Launch]]:
    """A whole step, every block with its own weights and rings, as one graph per batch size."""
    found: dict[int, Launch] = {}
    units = [u for u in chain.chain if u.kind in DIT_KINDS]
    loaded = [compiled.engine(u) for u in units]
    specs = [spec for _, spec in loaded]
    # One graph of the largest model leaves no room for rings of four rows.
    for rows in BATCHES if case.model != "wan-14b" else (1,):
        shared: dict[str, Tensor] = {}
        launches = [engine.plain(arrays_of(spec, rows, shared)) for engine, spec in loaded]
        found[rows] = capture(launches)
        took = median_ms(found[rows])
        name = f"{case.size}: step, batch {rows}"
        yield Reading(name, took, "ms", 20, _limit(specs, rows, case.precision, peaks))
    return found


def _whole(
    case: Case, chain: Chain, compiled: Compiled, step: Mapping[int, Launch], peaks: Peaks
) -> Iterator[Reading]:
    """Encoding and decoding of a chunk, then all that a chunk needs when its rows run together."""
    halves: dict[str, Launch] = {}
    for kind in ("encode", "decode"):
        shared: dict[str, Tensor] = {}
        loaded = [compiled.engine(u) for u in chain.chain if u.kind == kind]
        launches = [engine.plain(arrays_of(spec, 1, shared)) for engine, spec in loaded]
        halves[kind] = capture(launches)
        best = _limit([spec for _, spec in loaded], 1, case.precision, peaks)
        yield Reading(f"{case.name}: {kind}", median_ms(halves[kind]), "ms", 20, best)
    for steps in STEPS:
        chunk: Sequence[Launch] = (halves["encode"], step[steps], halves["decode"])

        def run(chunk: Sequence[Launch] = chunk) -> None:
            for launch in chunk:
                launch()

        took = median_ms(run)
        name = f"{case.name}: FPS of the units alone, {steps} steps"
        yield Reading(name, 4e3 / took, "frames/s", 20)


def _limit(specs: Sequence[PhaseSpec], rows: int, precision: str, peaks: Peaks) -> float | None:
    """Milliseconds that the work of units takes at the measured peaks."""
    low = rows * sum(_narrow_flop(spec, precision) for spec in specs)
    full = rows * sum(spec.flop for spec in specs) - low
    took = 0.0
    for flop, peak in ((low, peaks.get(NARROW_PRODUCT)), (full, peaks.get(PRODUCT))):
        if flop and peak is None:
            return None
        took += flop / peak / 1e9 if peak else 0.0
    return took


def _narrow_flop(spec: PhaseSpec, precision: str) -> int:
    """Of products of e4m3, for one row: each weight meets every token."""
    names = narrow(spec.module, precision)
    if not names:
        return 0
    weights = spec.module.state_dict()
    tokens = next(int(b.shape[1]) for b in spec.inputs if b.name == "x")
    return 2 * tokens * sum(weights[name].numel() for name in names)
