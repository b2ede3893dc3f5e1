"""A block at bf16 -> the same block with its linear layers in e4m3: pure, knows no backend.

Scales are powers of two, which move no bit of a mantissa: the input of a layer by a static one, its
weights by one for each output. They are inputs of the graph like weights, so that blocks stay one
graph, and quantisation itself has scale 1.
"""

from __future__ import annotations

import math

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor

from export.onnx import PREFIX, Graph

LARGEST = 448.0
"""The largest number of e4m3."""
E4M3 = "float8_e4m3fn"
_ONE, _ZERO = "e4m3.one", "e4m3.zero"
_INPUT, _OUTPUT = ".input_scale", ".output_scale"


def quantised(graph: Graph) -> Graph:
    """`graph` (bf16) with every product by a transposed weight matrix done in e4m3."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    values = {v.name: v for v in model.graph.input if v.name.startswith(PREFIX)}
    turned = {n.output[0]: n for n in model.graph.node if n.op_type == "Transpose"}
    products = {
        n.output[0]: turned[n.input[1]]
        for n in model.graph.node
        if n.op_type == "MatMul" and turned.get(n.input[1], n).input[0] in values
    }
    nodes: list[onnx.NodeProto] = []
    narrowed: dict[str, tuple[str, str]] = {}
    for node in model.graph.node:
        if node in products.values():
            weight = values[node.input[0]]
            weight.type.tensor_type.elem_type = TensorProto.FLOAT8E4M3FN
            wide = f"{weight.name}.bfloat16"
            nodes.append(helper.make_node("DequantizeLinear", [weight.name, _ONE], [wide]))
            node.input[0] = wide
        if (transpose := products.get(node.output[0])) is None:
            nodes.append(node)
            continue
        name = transpose.input[0].removesuffix(".bfloat16")
        before = node.input[0]
        if before not in narrowed:
            narrowed[before] = f"{before}.e4m3", f"{name}{_INPUT}"
            nodes += _narrow(before, *narrowed[before])
            model.graph.input.append(_vector(f"{name}{_INPUT}", 1))
        outputs = values[name].type.tensor_type.shape.dim[0].dim_value
        model.graph.input.append(_vector(f"{name}{_OUTPUT}", outputs))
        product, result = f"{node.output[0]}.e4m3", node.output[0]
        nodes.append(helper.make_node("MatMul", [narrowed[before][0], node.input[1]], [product]))
        nodes.append(helper.make_node("Mul", [product, f"{name}{_OUTPUT}"], [result]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.append(helper.make_tensor(_ONE, TensorProto.BFLOAT16, [], [1.0]))
    model.graph.initializer.append(helper.make_tensor(_ZERO, TensorProto.FLOAT8E4M3FN, [], [0.0]))
    names = [v.name.removeprefix(PREFIX) for v in model.graph.input if v.name.startswith(PREFIX)]
    return Graph(model, tuple(names))


def layer_of(name: str) -> str:
    """The linear layer whose weight, or scale of a weight, has this name."""
    return name.removesuffix(_INPUT).removesuffix(_OUTPUT).removesuffix(".weight")


def is_scale(name: str) -> bool:
    """Whether a weight of a quantised graph is none of the module, but made here."""
    return name.endswith((_INPUT, _OUTPUT))


def narrow_weight(weight: Tensor) -> Tensor:
    """float [out, in] -> e4m3 [out, in], each row at its own scale."""
    return (weight.float() * _rows(weight)[:, None]).to(torch.float8_e4m3fn)


def scale_of(name: str, weight: Tensor, amax: float) -> Tensor:
    """What the scale `name` of a layer holds, float32; `weight` is the layer's, [out, in], and
    `amax` the largest magnitude of its input.
    """
    given = _power(amax)
    if name.endswith(_INPUT):
        return torch.tensor([given])
    return 1 / (_rows(weight) * given)


def _rows(weight: Tensor) -> Tensor:
    return torch.tensor([_power(m) for m in weight.float().abs().amax(1).tolist()])


def _power(amax: float) -> float:
    """The largest power of two that takes `amax` to no more than 448, at most 2^60: products and
    inverses of two of them stay normal numbers in float32.
    """
    return 2.0 ** min(60, math.floor(math.log2(LARGEST / amax))) if amax > 0 else 1.0


def _narrow(before: str, after: str, scale: str) -> list[onnx.NodeProto]:
    scaled, low = f"{before}.scaled", f"{before}.quantised"
    return [
        helper.make_node("Mul", [before, scale], [scaled]),
        helper.make_node("QuantizeLinear", [scaled, _ONE, _ZERO], [low]),
        helper.make_node("DequantizeLinear", [low, _ONE], [after]),
    ]


def _vector(name: str, size: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.BFLOAT16, [size])
