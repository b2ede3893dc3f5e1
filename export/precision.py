"""An exported float32 graph -> the same graph at a lower precision, written into its types.

Autocast, as a pure pass: matrix products, convolutions, attention and rings take the low type;
normalisations, rotations and softmax compute in float32; all else keeps the widest type that comes
in. Knows nothing of a backend.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.onnx import PREFIX, Graph

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "fp8": "bfloat16"}
"""Precision of an engine -> type of the values along its chain. At fp8 the products by weights in
blocks are e4m3 inside (export/quantize.py), and nothing else.
"""
WIDE_VALUES = frozenset(
    {
        "pixels", "latent", "noisy", "velocity", "clean", "restyled", "embeddings", "token_mask",
        "timestep", "rope_time", "rope", "mask", "modulation", "head_modulation",
    }
)  # fmt: skip
"""Bindings that stay float32: what the operators of the runtime read and write, angles, and what
scales and shifts (a scale near 1 has 8 bits left in bfloat16). All of them are small.
"""
_LOW = frozenset({"MatMul", "Gemm", "Conv", "Attention", "RingWrite", "RingAttention"})
_WIDE = frozenset(
    {
        "LayerNormalization", "RMSNormalization", "RotaryEmbedding", "Softmax",
        "ReduceL2", "Sin", "Cos", "Tanh", "Exp", "Pow", "Sqrt",
    }
)  # fmt: skip
_NOT_FLOAT = frozenset({"Shape", "Size", "Equal", "Less", "Greater", "Not", "And", "Or"})
_ELEMENTS = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "float8_e4m3fn": TensorProto.FLOAT8E4M3FN,
}
_WIDE_WEIGHTS = ("modulation", "gamma")


def dtype_of(name: str, dtype: str, precision: str) -> str:
    """Type of the binding `name`, which is `dtype` in the exported graph, at `precision`."""
    return DTYPES[precision] if dtype == "float32" and name not in WIDE_VALUES else dtype


def at_precision(graph: Graph, precision: str) -> Graph:
    """`graph` (float32, opset 23) with the types of `precision` ("fp32", "fp16" or "bf16")."""
    if precision == "fp32":
        return graph
    return _Pass(graph, _ELEMENTS[DTYPES[precision]]).run()


def weight_facts(graph: Graph) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each weight of a graph, by the name that the module gives it."""
    names = {number: name for name, number in _ELEMENTS.items()}
    return {
        value.name.removeprefix(PREFIX): (
            names[value.type.tensor_type.elem_type],
            tuple(d.dim_value for d in value.type.tensor_type.shape.dim),
        )
        for value in graph.model.graph.input
        if value.name.startswith(PREFIX)
    }


@dataclass(slots=True)
class _Pass:
    graph: Graph
    low: int
    types: dict[str, int] = field(default_factory=dict)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    casts: dict[tuple[str, int], str] = field(default_factory=dict)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def run(self) -> Graph:
        model = onnx.ModelProto()
        model.CopyFrom(self.graph.model)
        wide_weights = _wide_weights(model)
        for value in model.graph.input:
            kind = value.type.tensor_type
            stays = value.name in WIDE_VALUES or value.name in wide_weights
            if kind.elem_type == TensorProto.FLOAT and not stays:
                kind.elem_type = self.low
            self.types[value.name] = kind.elem_type
        self.constants = {t.name: t for t in model.graph.initializer}
        for node in model.graph.node:
            self._node(node)
        for value in model.graph.output:
            kind = value.type.tensor_type
            if kind.elem_type == TensorProto.FLOAT:
                wide = value.name in WIDE_VALUES
                self._give(value.name, TensorProto.FLOAT if wide else self.low)
                kind.elem_type = TensorProto.FLOAT if wide else self.low
        used = {name for node in self.nodes for name in node.input}
        del model.graph.node[:], model.graph.initializer[:]
        model.graph.node.extend(self.nodes)
        model.graph.initializer.extend(t for n, t in self.constants.items() if n in used)
        return Graph(model, self.graph.weights)

    def _node(self, node: onnx.NodeProto) -> None:
        """Cast the inputs of a node to the type that it computes in."""
        floats = [name for name in node.input if self._float(name)]
        kind = self._kind(node, floats)
        if kind is not None:
            for index, name in enumerate(node.input):
                if self._float(name):
                    node.input[index] = self._as(name, kind)
        self.nodes.append(node)
        for name in node.output:
            self.types[name] = _result(node, kind, self._type(node.input[0]))

    def _kind(self, node: onnx.NodeProto, floats: Collection[str]) -> int | None:
        """Type that a node computes in; None if it reads no floats."""
        if not floats:
            return None
        if node.op_type in _LOW:
            return self.low
        values = {self.types[name] for name in floats if name not in self.constants}
        if node.op_type in _WIDE or not values:
            return TensorProto.FLOAT
        if node.op_type == "Concat":  # of a cache and what follows it, most of all
            return min(values, key=lambda kind: kind != self.low)
        return TensorProto.FLOAT if TensorProto.FLOAT in values else self.low

    def _float(self, name: str) -> bool:
        return self._type(name) in (TensorProto.FLOAT, self.low)

    def _type(self, name: str) -> int:
        if name in self.constants:
            return self.constants[name].data_type
        return self.types.get(name, TensorProto.UNDEFINED)

    def _as(self, name: str, kind: int) -> str:
        """The value `name` as `kind`, through one Cast or one other constant."""
        if self._type(name) == kind:
            return name
        if (name, kind) not in self.casts:
            cast = self.casts[name, kind] = f"{name}.{TensorProto.DataType.Name(kind).lower()}"
            if name in self.constants:
                array = numpy_helper.to_array(self.constants[name])
                self.constants[cast] = _constant(array, cast, kind)
            else:
                self.nodes.append(helper.make_node("Cast", [name], [cast], to=kind))
        return self.casts[name, kind]

    def _give(self, name: str, kind: int) -> None:
        """Make the result `name` of type `kind`."""
        if self.types[name] == kind:
            return
        inner = f"{name}.computed"
        for node in self.nodes:
            for names in (node.input, node.output):
                for index, value in enumerate(names):
                    if value == name:
                        names[index] = inner
        self.nodes.append(helper.make_node("Cast", [inner], [name], to=kind))


def _constant(array: np.ndarray, name: str, kind: int) -> onnx.TensorProto:
    """Rounded to nearest even, which numbers beyond float16 do not survive."""
    tensor = helper.make_tensor(name, kind, array.shape, array.astype(np.float32).ravel())
    assert np.isfinite(numpy_helper.to_array(tensor).astype(np.float32)).all(), name
    return tensor


def _result(node: onnx.NodeProto, kind: int | None, first: int) -> int:
    if node.op_type in _NOT_FLOAT:
        return int(TensorProto.INT64 if node.op_type in ("Shape", "Size") else TensorProto.BOOL)
    if node.op_type == "Cast":
        return int(next(a.i for a in node.attribute if a.name == "to"))
    return first if kind is None else kind


def _wide_weights(model: onnx.ModelProto) -> set[str]:
    """Weights of what computes in float32, which are vectors."""
    read = {name for node in model.graph.node if node.op_type in _WIDE for name in node.input}
    names = [v.name for v in model.graph.input if v.name.startswith(PREFIX)]
    return {name for name in names if name in read or name.endswith(_WIDE_WEIGHTS)}


def rounded(graph: Graph, precision: str) -> Graph:
    """`graph`, which is at `precision`, in float32 arithmetic whose every low value is rounded:
    for machines that have no arithmetic of the low type.
    """
    low = _ELEMENTS[DTYPES[precision]]
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    values = (*inferred.graph.value_info, *model.graph.input, *model.graph.output)
    narrow = {v.name for v in values if v.type.tensor_type.elem_type == low}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == low:
                attribute.i = TensorProto.FLOAT
        nodes.append(node)
        for index, name in enumerate(node.output):
            if name in narrow:
                node.output[index] = exact = f"{name}.exact"
                nodes.append(helper.make_node("Cast", [exact], [f"{name}.low"], to=low))
                nodes.append(
                    helper.make_node("Cast", [f"{name}.low"], [name], to=TensorProto.FLOAT)
                )
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == low:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for tensor in model.graph.initializer:
        if tensor.data_type == low:
            array = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    del model.graph.value_info[:]
    return Graph(model, graph.weights)
