"""Engines for TensorRT of every unit of a chain: one per graph, weights in one file beside them.

All blocks of the DiT are one engine that takes its weights as inputs; so a build holds one graph in
memory, never a model, and a device holds each weight once. Units of the VAE, which have graphs of
their own, keep their weights inside.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto
from torch import Tensor

from export import onnx as graphs
from export import tensorrt
from export.onnx import PREFIX, Graph, Stored
from export.options import Made, Progress, Work
from export.plans import may_ignore
from export.precision import at_precision, dtype_of, weight_types
from export.sources import release
from export.staging import write_whole
from export.tensorrt import Builder, Engine, Expected, peak_memory
from export.units import PhaseSpec, UnitSpec
from export.weights import FILE_NAME, content, layout
from rt import manifest as records
from rt.backends.tensorrt import Card, library_version, read_card
from rt.errors import CheckpointError
from rt.manifest import Binding, Plan, StateBinding

SUFFIX, ENGINE = ".trt", ".engine"
REPORT, LOG, TIMING = "report.json", "build.log", "timing.cache"
SHARED = ("block", "prompt_kv", "text")
"""Kinds whose weights stay apart: many units of one graph, and the text encoder, which is large."""
DIT = ("dit_in", "block", "dit_out")


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
            plan = state.plan(unit, phase, spec, stored.get(unit.name, {}))
            plans.setdefault(unit.name, {})[phase] = plan
    progress("done", total, total)
    files = (FILE_NAME, *sorted(state.entries))
    return Made(plans, files, state.built, len(state.entries) - state.built)


def weights_of(path: Path) -> dict[str, Stored]:
    """The weights that lie beside a plan, by the name that the module gives them."""
    card = read_card(path)
    return {name.removeprefix(PREFIX): Stored(*place) for name, place in card.weights.items()}


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
        card = Card(
            engine=entry.engine,
            graph=entry.graph_sha256,
            library=library_version(self.work.options.backend),
            compute_capability=self.work.options.compute_capability,
            weights={
                PREFIX + n: (s.file, s.offset, s.length, s.dtype, s.shape)
                for n, s in stored.items()
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
        if file in self.entries:
            return self.entries[file]
        self.built += 1
        with peak_memory() as peak:
            made, digest, inside = self._build(unit, phase, spec)
        sharing = sum(other.graph == unit.graph for other in self.work.opened.chain.units)
        data = memoryview(made.data)
        entry = Entry(
            file, sharing, round(made.seconds, 2), data.nbytes, inside, peak[0], made.layers, digest
        )
        write_whole(self.work.staging / file, [data])
        self.entries[file] = entry
        lines = [asdict(entry) for entry in self.entries.values()]
        write_whole(self.work.staging / REPORT, [json.dumps(lines, indent=1).encode() + b"\n"])
        return entry

    def _build(self, unit: UnitSpec, phase: str, spec: PhaseSpec) -> tuple[Engine, str, int]:
        """The engine, the hash of its graph, and the bytes of weights inside."""
        graph = self._graph(unit, phase, spec)
        digest = hashlib.sha256(graph.model.SerializeToString(deterministic=True)).hexdigest()
        inside = 0
        if unit.kind not in SHARED:
            values = {n: _proto(self.weight(unit, phase, n, d), d)
                      for n, d in weight_types(graph).items()}  # fmt: skip
            inside = sum(len(v.raw_data) for v in values.values())
            graph = tensorrt.attach(graph, values)
        rows = self.work.options.max_batch if spec.batched else 0
        made = self._builder().build(graph, rows, self._expected(unit, phase, spec))
        return made, digest, inside

    def _builder(self) -> Builder:
        return Builder(
            self.work.options.backend,
            self.work.options.compute_capability,
            self.work.staging / TIMING,
            self.work.staging / LOG,
        )

    def _expected(self, unit: UnitSpec, phase: str, spec: PhaseSpec) -> Expected:
        aliases = tuple((s.input, s.output) for s in spec.state if s.mode == "alias")
        fused = None
        if unit.kind in DIT:
            whole = unit.kind == "block" and self.work.options.precision != "fp32"
            # to the ring and to the prompt; float32 has no kernel for either
            fused = 2 if whole else None if unit.kind == "block" else 0
        return Expected(aliases, fused, may_ignore(phase, spec))

    def _graph(self, unit: UnitSpec, phase: str, spec: PhaseSpec) -> Graph:
        """The graph of a unit for TensorRT, its weights still inputs."""
        place = unit.graph, phase
        if place not in self.exported:
            graph = graphs.export_graph(
                spec.module,
                spec.arguments(),
                spec.input_names,
                spec.output_names,
                batched=spec.batched,
                may_ignore=may_ignore(phase, spec),
            )
            if unit.kind != "block" or self.work.options.precision == "fp32":
                graph = graphs.write_out_attention(graph)
            self.exported[place] = tensorrt.lower(at_precision(graph, self.work.options.precision))
        return self.exported[place]

    def weight_types(self, unit: UnitSpec, phase: str) -> dict[str, str]:
        """Type of each weight that a unit's graph reads."""
        return weight_types(self._graph(unit, phase, unit.phases[phase]))

    def weight(self, unit: UnitSpec, phase: str, name: str, dtype: str) -> Tensor:
        """One weight as `dtype`. Raises CheckpointError where that is not finite."""
        stored = self.work.opened.read(unit, phase, name).detach()
        tensor = torch.empty(stored.shape, dtype=getattr(torch, dtype)).copy_(stored)
        release(stored)
        if not tensor.isfinite().all():
            raise CheckpointError(f"weights NaN or infinite in {dtype}: {unit.name}.{name}")
        return tensor

    def write_weights(self, progress: Progress) -> dict[str, dict[str, Stored]]:
        """Write the weights that stay apart, tensor by tensor; where each lies, by unit."""
        apart = [unit for unit in self.work.opened.chain.units if unit.kind in SHARED]
        types = {u.graph: weight_types(self._graph(u, "step", u.phases["step"]))
                 for u in {u.graph: u for u in apart}.values()}  # fmt: skip
        places: dict[str, tuple[UnitSpec, str]] = {}
        shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
        for unit in apart:
            tensors = unit.phases["step"].module.state_dict()
            for name, dtype in types[unit.graph].items():
                places[f"{unit.name}.{name}"] = unit, name
                shapes[f"{unit.name}.{name}"] = dtype, tuple(tensors[name].shape)
        header, spans = layout(shapes)

        def parts() -> Iterator[bytes | memoryview]:
            yield header
            for done, label in enumerate(spans):
                unit, name = places[label]
                progress(f"weights {unit.name}", done, len(spans))
                yield content(self.weight(unit, "step", name, shapes[label][0]))

        if not (self.work.staging / FILE_NAME).is_file():
            write_whole(self.work.staging / FILE_NAME, parts())
        return {u.name: {n: spans[f"{u.name}.{n}"] for n in types[u.graph]} for u in apart}


def typed(binding: Binding, precision: str) -> Binding:
    """A binding with the type that it has at `precision`."""
    return replace(binding, dtype=dtype_of(binding.tensor, binding.dtype, precision))


def typed_state(state: StateBinding, precision: str) -> StateBinding:
    """The same of a state."""
    return replace(state, dtype=dtype_of(state.input, state.dtype, precision))


def _proto(tensor: Tensor, dtype: str) -> onnx.TensorProto:
    kinds: dict[str, Any] = {
        "float32": TensorProto.FLOAT,
        "float16": TensorProto.FLOAT16,
        "bfloat16": TensorProto.BFLOAT16,
    }
    raw = bytes(content(tensor))
    return onnx.TensorProto(dims=tuple(tensor.shape), data_type=kinds[dtype], raw_data=raw)
