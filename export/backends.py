"""The table of backends: how each makes the plans of a chain, and what a plan depends on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from export import engines, inductor, plans
from export import onnx as graphs
from export.lowering import lower_for_onnxruntime
from export.onnx import Stored
from export.options import Made, Options, Progress, Work
from export.units import PhaseSpec
from rt.backends.tensorrt import FLAVOURS, library_version


@dataclass(frozen=True, slots=True)
class Backend:
    """How plans are made, and the library and GPU that decide whether they are valid.

    `precisions`: what values may be, the default first. `hollow`: whether its units need their
    weights only one by one. `weights_of` says where the weights of a plan lie, `runs_here` whether
    this machine can run what it builds.
    """

    precisions: tuple[str, ...]
    fold_time: bool
    hollow: bool
    library: Callable[[], str]
    gpu_architecture: Callable[[Options], str | None]
    make: Callable[[Work, Progress], Made]
    weights_of: Callable[[Path], dict[str, Stored]]
    runs_here: Callable[[], bool] = lambda: True


def _as_it_is(spec: PhaseSpec, _precision: str) -> PhaseSpec:
    return spec


def _export_onnx(spec: PhaseSpec, precision: str, may_ignore: Collection[str]) -> graphs.Graph:
    return lower_for_onnxruntime(plans.graph_of(spec, may_ignore), precision)


def _compile(spec: PhaseSpec, precision: str, may_ignore: Collection[str]) -> inductor.Package:
    return inductor.compile_package(spec, precision=precision, may_ignore=may_ignore)


_ONNX = plans.Recipe(
    ".onnx",
    _as_it_is,
    _export_onnx,
    graphs.attach_weights,
    lambda path: graphs.weights_of(path.read_bytes()),
    lambda path: graphs.graph_sha256(path.read_bytes()),
)
_PACKAGES = plans.Recipe(
    inductor.SUFFIX,
    inductor.in_precision,
    _compile,
    inductor.plan,
    inductor.weights_of,
    inductor.graph_sha256,
)


def _tensorrt(flavour: str) -> Backend:
    return Backend(
        ("bf16", "fp16", "fp32", "fp8"),
        False,
        True,
        functools.partial(library_version, flavour),
        lambda options: ",".join(f"sm_{c.replace('.', '')}" for c in options.compute_capability),
        engines.make,
        engines.weights_of,
        lambda: False,
    )


BACKENDS = {
    "onnxruntime": Backend(
        ("fp32", "int16"),
        True,  # on a CPU a 2-D convolution runs half again as fast as the 3-D one (REFERENCE 7)
        False,
        lambda: f"opset {graphs.OPSET_ONNXRUNTIME}",
        lambda _: None,
        functools.partial(plans.make, _ONNX),
        _ONNX.weights_of,
    ),
    "inductor": Backend(
        ("fp32", "bf16", "fp8"),
        False,
        False,
        inductor.library,
        lambda _: inductor.gpu_architecture(),
        functools.partial(plans.make, _PACKAGES),
        _PACKAGES.weights_of,
    ),
    **{flavour: _tensorrt(flavour) for flavour in FLAVOURS},
}
