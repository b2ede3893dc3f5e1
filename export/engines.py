"""Engines for TensorRT of every unit of a chain: one per graph, weights in one file beside them.

Engines take their weights as inputs. So all blocks of the DiT are one engine, both phases of a VAE
unit read the same weights, a device holds each weight once, and a build holds one tensor in memory,
never a model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from export import tensorrt
from export.lowering import write_out_attention
from export.onnx import PREFIX, Graph, Stored
from export.options import Made, Progress, Work
from export.plans import graph_of, may_ignore
from export.precision import at_precision, dtype_of, weight_facts
from export.quantize import E4M3, is_scale, layer_of, narrow_weight, quantised, scale_of
from export.sources import release
from export.staging import write_whole
from export.tensorrt import Builder, Expected, peak_memory, weight_bytes
from export.units import PhaseSpec, UnitSpec
from export.weights import FILE_NAME, content, layout
from rt import manifest as records
from rt.backends.tensorrt import Card, library_version, read_card
from rt.errors import CheckpointError, Error
from rt.manifest import DIT_KINDS, Binding, Plan, StateBinding

SUFFIX, ENGINE = ".trt", ".engine"
REPORT, LOG, TIMING = "report.json", "build.log", "timing.cache"
ONCE = 1.05
"""Most bytes of a plan, engines and weights together, for each byte of weights (DESIGN 3)."""
MODEL = 1 << 30
"""From here on a model is larger than its code, and `ONCE` is asked of it."""
_PART = 1 << 24
"""Numbers of a weight that are looked at together."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the report of a build: an engine, and what building it took."""

    engine: str
    units: int
    seconds: float
    bytes: int
    weights: int
    peak_bytes: int
    layers: int
    graph_sha256: str


def make(work: Work, progress: Progress) -> Made:
    """Every engine that is not there yet, the weights, the plans and the report."""
    state = Making(work)
    stored = state.write_weights(progress)
    plans: dict[str, dict[str, Plan]] = {}
    units = work.opened.chain.units
    total = sum(len(unit.phases) for unit in units)
    for unit in units:
        for phase, spec in unit.phases.items():
            progress(f"{unit.name} {phase}", sum(len(made) for made in plans.values()), total)
            plan = state.plan(unit, phase, spec, stored[unit.name])
            plans.setdefault(unit.name, {})[phase] = plan
    progress("done", total, total)
    check_once(state.entries.values(), (work.staging / FILE_NAME).stat().st_size)
    files = (FILE_NAME, *sorted(state.entries))
    return Made(plans, files, state.built, len(state.entries) - state.built)


def weights_of(path: Path) -> dict[str, Stored]:
    """The weights that lie beside a plan, by the name that the module gives them."""
    card = read_card(path)
    return {name.removeprefix(PREFIX): Stored(*place) for name, place in card.weights.items()}


def check_once(entries: Iterable[Entry], weights: int) -> float:
    """Bytes of engines and `weights` together, for each byte of weights.

    Raises Error where a model is not there once.
    """
    share = 1 + sum(entry.bytes for entry in entries) / weights
    if weights >= MODEL and share > ONCE:
        raise Error(f"a plan of {share:.3f} times its weights, expected at most {ONCE}")
    return share


@dataclass(slots=True)
class Making:
    """The engines of one build, in a staging folder that may hold some of them already."""

    work: Work
    entries: dict[str, Entry] = field(default_factory=dict)
    exported: dict[tuple[str, str], Graph] = field(default_factory=dict)
    built: int = 0

    def __post_init__(self) -> None:
        report = self.work.staging / REPORT
        if report.is_file():
            self.entries = {e["engine"]: Entry(**e) for e in json.loads(report.read_text())}

    def plan(
        self, unit: UnitSpec, phase: str, spec: PhaseSpec, stored: Mapping[str, Stored]
    ) -> Plan:
        entry = self.engine(unit, phase, spec)
        graph = self._graph(unit, phase, spec)
        read = {value.name for value in graph.model.graph.input}
        card = Card(
            engine=entry.engine,
            graph=entry.graph_sha256,
            library=library_version(self.work.options.backend),
            compute_capability=self.work.options.compute_capability,
            ignores=tuple(name for name in spec.input_names if name not in read),
            weights={
                PREFIX + n: (s.file, s.offset, s.length, s.dtype, s.shape)
                for n in weight_facts(graph)
                for s in (stored[n],)
            },
        )
        name = unit.name if len(unit.phases) == 1 else f"{unit.name}.{phase}"
        path = self.work.staging / (name + SUFFIX)
        write_whole(path, [card.encoded()])
        precision = self.work.options.precision
        return Plan(
            file=path.name,
            sha256=records.sha256_of(path),
            graph_sha256=entry.graph_sha256,
            inputs=tuple(typed(b, precision) for b in spec.inputs),
            outputs=tuple(typed(b, precision) for b in spec.outputs),
            state=tuple(typed_state(s, precision) for s in spec.state),
            flop=spec.flop,
            bytes=spec.bytes,
            tolerance=self.work.tolerance,
        )

    def engine(self, unit: UnitSpec, phase: str, spec: PhaseSpec) -> Entry:
        """The engine of a unit, built unless that was done; units of one graph have the same."""
        file = (unit.graph if len(unit.phases) == 1 else f"{unit.graph}.{phase}") + ENGINE
        path = self.work.staging / file
        if path.is_file():
            return self.entries[file]
        self.built += 1
        with peak_memory() as peak:
            graph = self._graph(unit, phase, spec)
            rows = self.work.options.max_batch if spec.batched else 0
            made = self._builder().build(graph, rows, self._expected(unit, spec))
        sharing = sum(other.graph == unit.graph for other in self.work.opened.chain.units)
        data = memoryview(made.data)
        digest = hashlib.sha256(graph.model.SerializeToString(deterministic=True)).hexdigest()
        entry = Entry(
            file, sharing, round(made.seconds, 2), data.nbytes, weight_bytes(graph.model), peak[0],
            made.layers, digest,
        )  # fmt: skip
        self.entries[file] = entry
        lines = [asdict(entry) for entry in self.entries.values()]
        write_whole(self.work.staging / REPORT, [json.dumps(lines, indent=1).encode() + b"\n"])
        write_whole(path, [data])  # last: an engine that is there has its line
        return entry

    def _builder(self) -> Builder:
        return Builder(
            self.work.options.backend,
            self.work.options.compute_capability,
            self.work.staging / TIMING,
            self.work.staging / LOG,
        )

    def _expected(self, unit: UnitSpec, spec: PhaseSpec) -> Expected:
        aliases = tuple((s.input, s.output) for s in spec.state if s.mode == "alias")
        fused = None
        if unit.kind in DIT_KINDS:
            whole = unit.kind == "block" and self.work.options.precision != "fp32"
            # to the ring and to the prompt; float32 has no kernel for either
            fused = 2 if whole else None if unit.kind == "block" else 0
        return Expected(aliases, fused)

    def _graph(self, unit: UnitSpec, phase: str, spec: PhaseSpec) -> Graph:
        """The graph of a unit for TensorRT, its weights inputs; a state that it ignores is none."""
        place = unit.graph, phase
        if place not in self.exported:
            graph = graph_of(spec, may_ignore(phase, spec))
            graph = tensorrt.drop_ignored(graph, may_ignore(phase, spec))
            if unit.kind != "block" or self.work.options.precision == "fp32":
                graph = write_out_attention(graph)
            graph = at_precision(graph, self.work.options.precision)
            if unit.kind == "block" and self.work.options.precision == "fp8":
                graph = quantised(graph)
            self.exported[place] = tensorrt.lower(graph)
        return self.exported[place]

    def weight_facts(self, unit: UnitSpec, phase: str) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Type and shape of each weight that a unit's graph reads."""
        return weight_facts(self._graph(unit, phase, unit.phases[phase]))

    def weight(self, unit: UnitSpec, phase: str, name: str, dtype: str) -> Tensor:
        """One weight as `dtype`. Raises CheckpointError where that is not finite."""
        layer = layer_of(name)
        stored = self.work.opened.read(
            unit, phase, f"{layer}.weight" if is_scale(name) else name
        ).detach()
        if is_scale(name):
            stored = scale_of(name, stored, self.work.amax[f"{unit.name}.{layer}"])
        elif dtype == E4M3:
            stored = narrow_weight(stored)
        tensor = torch.empty(stored.shape, dtype=getattr(torch, dtype)).copy_(stored)
        release(stored)
        del stored  # with the parts below, a table of 4 GB takes 6 and not 12 on its way
        flat = tensor.view(-1)
        starts = range(0, len(flat), _PART)
        if not all(flat[s : s + _PART].float().isfinite().all() for s in starts):
            raise CheckpointError(f"weights NaN or infinite in {dtype}: {unit.name}.{name}")
        return tensor

    def write_weights(self, progress: Progress) -> dict[str, dict[str, Stored]]:
        """Write all weights, tensor by tensor; where each lies, by unit and name.

        Raises Error for one that no phase of its unit reads.
        """
        places: dict[str, tuple[UnitSpec, str, str]] = {}
        shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
        named: dict[str, dict[str, str]] = {}
        for unit in self.work.opened.chain.units:
            here = named[unit.name] = {}
            for phase in unit.phases:
                for name, fact in self.weight_facts(unit, phase).items():
                    label = here[name] = f"{unit.name}.{name}"
                    assert shapes.setdefault(label, fact) == fact, label
                    places[label] = unit, phase, name
            if lost := set().union(*(p.module.state_dict() for p in unit.phases.values())) - set(
                here
            ):
                raise Error(f"unit {unit.name}: no graph reads the weights {sorted(lost)}")
        header, spans = layout(shapes)

        def parts() -> Iterator[bytes | memoryview]:
            yield header
            for done, label in enumerate(spans):
                unit, phase, name = places[label]
                progress(f"weights {unit.name}", done, len(spans))
                yield content(self.weight(unit, phase, name, shapes[label][0]))

        if not (self.work.staging / FILE_NAME).is_file():
            write_whole(self.work.staging / FILE_NAME, parts())
        return {
            unit: {name: spans[label] for name, label in labels.items()}
            for unit, labels in named.items()
        }


def typed(binding: Binding, precision: str) -> Binding:
    """A binding with the type that it has at `precision`."""
    return replace(binding, dtype=dtype_of(binding.tensor, binding.dtype, precision))


def typed_state(state: StateBinding, precision: str) -> StateBinding:
    """The same of a state."""
    return replace(state, dtype=dtype_of(state.input, state.dtype, precision))
