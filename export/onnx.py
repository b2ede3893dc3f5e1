"""Unit -> ONNX: a graph whose weights are named and stored outside, our operators lowered.

A graph is exported with its weights as inputs, so nothing that simplifies it can look at their
values: every block of the DiT has the same graph. `attach_weights` then points it into the weights
file. Refuses an input that the graph does not use.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx
import torch
from onnx import TensorProto, helper
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rt.errors import Error

if TYPE_CHECKING:
    import onnx_ir

OPSET = 23
"""Of the exported graph, which the TensorRT builders read: in 24 RMSNormalization is not fused."""
OPSET_ONNXRUNTIME = 24
"""Of the lowered graph: TensorScatter is in opset 24."""
IR_VERSION = 11
PREFIX = "unit."
DOMAIN = "sdrt"
"""Our own operators, emitted by `export.models.ring`: RingWrite and RingAttention."""

_ONNX_TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


@dataclass(frozen=True, slots=True)
class Graph:
    """An exported graph whose last inputs are the weights that it uses.

    `weights` names them as the module does; in the graph their names begin with "unit.".
    """

    model: onnx.ModelProto
    weights: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a weight lies: bytes [offset, offset + length) of `file`, "float32" or "float16"."""

    file: str
    offset: int
    length: int
    dtype: str
    shape: tuple[int, ...]


def export_graph(
    module: nn.Module,
    arguments: Sequence[torch.Tensor],
    inputs: Sequence[str],
    outputs: Sequence[str],
    *,
    batched: bool,
    may_ignore: Collection[str] = (),
) -> Graph:
    """`module(*arguments)` as a checked, simplified ONNX graph of opset 23.

    `inputs` and `outputs` name the bindings in the order of the arguments and results. With
    `batched` the leading dimension of every argument is the symbol B, and the arguments have at
    least two rows; all else is static. Raises Error for an input that the graph does not use,
    unless it is in `may_ignore`.
    """
    positional = _Positional(module)
    rows = torch.export.Dim("B", min=1, max=64)
    dynamic = (tuple({0: rows} for _ in arguments),) if batched else None
    # The CPU's fused attention returns other strides than the exporter assumes of it.
    with _quiet(), sdpa_kernel(SDPBackend.MATH):
        program = torch.onnx.export(
            positional,
            tuple(arguments),
            dynamo=True,
            opset_version=OPSET,
            optimize=False,
            verbose=False,
            dynamic_shapes=dynamic,
        )
        assert program is not None
        _weights_to_inputs(program.model, set(positional.state_dict()))
        _simplify(program.model)
        _name(program.model, inputs, outputs)
        model = program.model_proto
    _drop_unused(model, may_ignore)
    _strip(model)
    finish(model, OPSET)
    names = [value.name for value in model.graph.input]
    return Graph(model, tuple(n.removeprefix(PREFIX) for n in names if n.startswith(PREFIX)))


def attach_weights(graph: Graph, stored: Mapping[str, Stored]) -> bytes:
    """The plan: `graph` with each weight as external data. Equal arguments give equal bytes.

    A weight stored as float16 enters through a Cast to float32, which the runtime folds at load.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    kept = [value for value in model.graph.input if not value.name.startswith(PREFIX)]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    casts: list[onnx.NodeProto] = []
    for name in graph.weights:
        where = stored[name]
        tensor = model.graph.initializer.add(
            name=PREFIX + name,
            dims=where.shape,
            data_type=_ONNX_TYPES[where.dtype],
            data_location=TensorProto.EXTERNAL,
        )
        entries = (("location", where.file), ("offset", where.offset), ("length", where.length))
        for key, value in entries:
            tensor.external_data.add(key=key, value=str(value))
        if where.dtype == "float16":
            tensor.name = f"{PREFIX}{name}.float16"
            output = PREFIX + name
            casts.append(helper.make_node("Cast", [tensor.name], [output], to=TensorProto.FLOAT))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(casts + nodes)
    return _bytes(model)


def graph_sha256(plan: bytes) -> str:
    """Hash of a plan without the places of its weights: equal for all units that are one graph."""
    model = onnx.ModelProto.FromString(plan)
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            del tensor.external_data[:]
    return hashlib.sha256(_bytes(model)).hexdigest()


def weights_of(plan: bytes) -> dict[str, Stored]:
    """The weights of a plan by the name that the module gives them."""
    types = {number: name for name, number in _ONNX_TYPES.items()}
    found = {}
    for tensor in onnx.ModelProto.FromString(plan).graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            entry = {item.key: item.value for item in tensor.external_data}
            name = tensor.name.removeprefix(PREFIX).removesuffix(".float16")
            offset, length = int(entry["offset"]), int(entry["length"])
            dtype = types[tensor.data_type]
            found[name] = Stored(entry["location"], offset, length, dtype, tuple(tensor.dims))
    return found


def _bytes(model: onnx.ModelProto) -> bytes:
    data: bytes = model.SerializeToString(deterministic=True)
    return data


class _Positional(nn.Module):
    """Any module behind one signature, so that units with any number of states export alike."""

    def __init__(self, unit: nn.Module) -> None:
        super().__init__()
        self.unit = unit

    def forward(self, *arguments: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        result: torch.Tensor | tuple[torch.Tensor, ...] = self.unit(*arguments)
        return result


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter says about itself; its errors still raise."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _weights_to_inputs(model: onnx_ir.Model, names: set[str]) -> None:
    """Turn the initializers called `names` into graph inputs, sorted by name."""
    graph = model.graph
    for name in sorted(name for name in graph.initializers if name in names):
        value = graph.initializers.pop(name)
        value.const_value = None
        graph.inputs.append(value)


def _simplify(model: onnx_ir.Model) -> None:
    """Fold constants, remove what is unused, and share equal subexpressions."""
    from onnx_ir.passes import common
    from onnxscript import optimizer

    optimizer.optimize_ir(model, num_iterations=3, onnx_shape_inference=True)
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)


def _name(model: onnx_ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Name the bindings, all of them. A result that is an input or another result becomes its own
    value.
    """
    from onnx_ir.passes import common

    common.OutputFixPass()(model)
    bound = [value for value in model.graph.inputs if not str(value.name).startswith(PREFIX)]
    named = zip(bound, inputs, strict=True)
    for value, name in (*named, *zip(model.graph.outputs, outputs, strict=True)):
        value.name = name


def _drop_unused(model: onnx.ModelProto, may_ignore: Collection[str]) -> None:
    """Remove weights that the graph does not use (another phase does); refuse unused inputs."""
    used = {name for node in model.graph.node for name in node.input}
    used.update(value.name for value in model.graph.output)
    for value in list(model.graph.input):
        if value.name in used or value.name in may_ignore:
            continue
        if not value.name.startswith(PREFIX):
            raise Error(
                f"unused input {value.name!r} in an exported graph; remove it from the unit"
            )
        model.graph.input.remove(value)


def _strip(model: onnx.ModelProto) -> None:
    """Drop names of files, stack traces and the exporter's notes."""
    for node in model.graph.node:
        node.name = ""
        node.doc_string = ""
        del node.metadata_props[:]
    for tensor in model.graph.initializer:
        tensor.doc_string = ""
        del tensor.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output):
        value.doc_string = ""
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    model.graph.doc_string = model.doc_string = ""


def finish(model: onnx.ModelProto, opset: int) -> None:
    """Shared end of export and lowering: versions, no intermediate shapes, full check by onnx."""
    del model.graph.value_info[:]
    del model.functions[:]
    domains = {node.domain for node in model.graph.node} - {""}
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", opset))
    model.opset_import.extend(helper.make_opsetid(domain, 1) for domain in sorted(domains))
    model.graph.name = "unit"
    model.producer_name, model.producer_version = "streamdiffusion-rt", ""
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model, full_check=not domains)
