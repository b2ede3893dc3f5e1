"""The table of backends: how a unit's graph becomes a plan file, and what a plan says of itself.

A backend exports a graph once for all units that share it, then makes a plan of each unit from it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export import inductor
from export import onnx as graphs
from export.onnx import Stored
from export.units import PhaseSpec


@dataclass(frozen=True, slots=True)
class Backend:
    """How a graph becomes a plan file, and the library that decides whether the file is valid.

    `export(spec, may_ignore)` gives what `plan` takes; `weights_of` and `graph_sha256` read a plan.
    """

    suffix: str
    library: str
    gpu_architecture: str | None
    fold_time: bool
    export: Callable[[PhaseSpec, Collection[str]], Any]
    plan: Callable[[Any, Mapping[str, Stored]], bytes]
    weights_of: Callable[[Path], dict[str, Stored]]
    graph_sha256: Callable[[Path], str]


def _export_onnx(spec: PhaseSpec, may_ignore: Collection[str]) -> graphs.Graph:
    return graphs.export_graph(
        spec.module,
        spec.arguments(),
        spec.input_names,
        spec.output_names,
        batched=spec.batched,
        may_ignore=may_ignore,
    )


def _plan_onnx(graph: graphs.Graph, stored: Mapping[str, Stored]) -> bytes:
    return graphs.attach_weights(graphs.lower_for_onnxruntime(graph), stored)


def _compile(spec: PhaseSpec, may_ignore: Collection[str]) -> inductor.Package:
    return inductor.compile_package(spec, may_ignore=may_ignore)


BACKENDS = {
    "onnxruntime": Backend(
        ".onnx",
        f"opset {graphs.OPSET_ONNXRUNTIME}",
        None,
        True,  # on a CPU a 2-D convolution runs half again as fast as the 3-D one (REFERENCE 7)
        _export_onnx,
        _plan_onnx,
        lambda path: graphs.weights_of(path.read_bytes()),
        lambda path: graphs.graph_sha256(path.read_bytes()),
    ),
    "inductor": Backend(
        inductor.SUFFIX,
        inductor.library(),
        inductor.gpu_architecture(),
        False,
        _compile,
        inductor.plan,
        inductor.weights_of,
        inductor.graph_sha256,
    ),
}
