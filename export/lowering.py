"""What becomes of our operators in a graph for ONNX Runtime, and of attention where TensorRT has no
kernel for it.

`lower_for_onnxruntime` gathers what a DiT block does into a few nodes, for the operator that the
extension registers (csrc/onnxruntime_ops.cpp). `write_out_attention` takes operators of the
standard.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import onnx
from onnx import TensorProto, helper, numpy_helper

from export.onnx import DOMAIN, OPSET_ONNXRUNTIME, PREFIX, Graph, finish
from export.rows import gather_rows
from rt.errors import Error


def lower_for_onnxruntime(graph: Graph, precision: str = "fp32") -> Graph:
    """`graph`, float32, with the operator that `rt.backends.onnxruntime` registers.

    RingWrite becomes TensorScatter, which copies nothing when its input and output are bound to
    one buffer. Linear layers, attention and what surrounds them become steps (`_Fusing`), and the
    steps of a chain one node (`export.rows`). At "int16" factors of its products may be rounded to
    16 bits, where the processor gains by it.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    fusing = _Fusing(model)
    for node in model.graph.node:
        if node.op_type == "MatMul":
            fusing.linear(node)
        elif _is_attention(node):
            fusing.attention(node)
        elif node.op_type == "LayerNormalization":
            fusing.modulation(node)
        elif node.op_type == "RMSNormalization":
            fusing.heads(node)
        elif node.op_type == "Reshape":
            fusing.cut(node)
        elif node.op_type == "RingWrite":
            fusing.replace([node], _scatter(node))
    given = [value.name for value in (*model.graph.input, *model.graph.initializer)]
    results = {value.name for value in model.graph.output}
    nodes = gather_rows(fusing.nodes(), given, results, _FACTORS[precision])
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    finish(model, OPSET_ONNXRUNTIME)
    return Graph(model, graph.weights)


def write_out_attention(graph: Graph) -> Graph:
    """`graph` with every attention as MatMul, Add, Softmax, MatMul: for shapes and types without a
    kernel of their own.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type not in ("RingAttention", "Attention"):
            nodes.append(node)
            continue
        if (scale := _scale(node)) != 1.0:
            name = f"{node.output[0]}.scale"
            model.graph.initializer.append(helper.make_tensor(name, TensorProto.FLOAT, (), [scale]))
            scaled = f"{node.output[0]}.scaled"
            nodes.append(helper.make_node("Mul", [node.input[0], name], [scaled]))
            node.input[0] = scaled
        nodes += _attention(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return Graph(model, graph.weights)


_FACTORS = {"fp32": "float32", "int16": "int16"}


class _Fusing:
    """Groups of nodes of one graph that become one node each, which takes the place of the last."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._all = list(model.graph.node)
        self._made = {name: node for node in self._all for name in node.output}
        self._constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self._weights = {v.name for v in model.graph.input if v.name.startswith(PREFIX)}
        uses = Counter(name for node in self._all for name in node.input)
        self._results = {value.name for value in model.graph.output}
        uses.update(self._results)
        self._after = {n: node for node in self._all for n in node.input if uses[n] == 1}
        self._dropped: set[str] = set()
        self._new: dict[str, onnx.NodeProto] = {}

    def replace(self, group: Sequence[onnx.NodeProto], node: onnx.NodeProto) -> None:
        self._dropped.update(old.output[0] for old in group)
        self._new[group[-1].output[0]] = node

    def nodes(self) -> list[onnx.NodeProto]:
        """All nodes with the groups replaced, without what nobody reads any more."""
        kept = [
            self._new.get(node.output[0], node)
            for node in self._all
            if node.output[0] in self._new or node.output[0] not in self._dropped
        ]
        read = {name for node in kept for name in node.input} | self._results
        # What fed only replaced nodes has no reader left: turned weights, 1 + scale, parts of rope.
        idle = {"Transpose", "Add", "Gather"}
        return [n for n in kept if n.op_type not in idle or n.output[0] in read]

    def linear(self, product: onnx.NodeProto) -> None:
        """A product with a transposed weight, and its bias; then a GELU (with tanh), or a factor
        and a sum with what was there before, where they follow.
        """
        turned = self._made.get(product.input[1])
        add = self._after.get(product.output[0])
        if turned is None or turned.op_type != "Transpose" or turned.input[0] not in self._weights:
            return
        if add is None or add.op_type != "Add" or add.input[1] not in self._weights:
            return
        group = [product, add]
        following = self._next(group, "Gelu")
        gelu = following is not None and _said(following, "approximate") == b"tanh"
        gate = residual = ""
        if gelu and following is not None:
            group.append(following)
        elif (last := self._residual(group)) is not None:
            gate, residual = last
        inputs = [product.input[0], turned.input[0], add.input[1], residual, gate]
        while not inputs[-1]:
            inputs.pop()
        made = helper.make_node("Linear", inputs, group[-1].output, domain=DOMAIN, gelu=int(gelu))
        self.replace(group, made)

    def _residual(self, group: list[onnx.NodeProto]) -> tuple[str, str] | None:
        """Gate ("": none) and residual of a layer that ends with `group`, which grows by them."""
        gate, longer = "", list(group)
        if (factor := self._next(longer, "Mul")) is not None:
            gate = _other(factor, longer[-1].output[0])
            longer.append(factor)
        total = self._next(longer, "Add")
        if total is None:
            return None
        residual = _other(total, longer[-1].output[0])
        source = self._made.get(gate)
        if residual in self._weights or (gate and (source is None or source.op_type != "Split")):
            return None
        group[:] = [*longer, total]
        return gate, residual

    def attention(self, node: onnx.NodeProto) -> None:
        """Attention and the join of its heads."""
        group = [node]
        for kind in ("Transpose", "Reshape"):
            following = self._next(group, kind)
            if following is None:
                raise Error(f"no {kind} joins the heads of attention {node.output[0]}")
            group.append(following)
        if _said(group[1], "perm") != [0, 2, 1, 3]:
            raise Error(f"attention {node.output[0]} is not followed by a join of heads")
        made = helper.make_node("Attention", node.input, group[-1].output, domain=DOMAIN)
        self.replace(group, made)

    def modulation(self, norm: onnx.NodeProto) -> None:
        """A layer normalisation without weights, times 1 + a scale, plus a shift, where both are
        parts of one value per row.
        """
        group = [norm]
        for kind in ("Mul", "Add"):
            following = self._next(group, kind)
            if following is None:
                return
            group.append(following)
        shift = _other(group[2], group[1].output[0])
        one_more = self._made.get(_other(group[1], norm.output[0]))
        plain = len(norm.input) == 2 and self._is(norm.input[1], 1.0)
        if not plain or one_more is None or one_more.op_type != "Add":
            return
        if not self._is(one_more.input[1], 1.0):
            return
        parts = [self._made.get(name) for name in (one_more.input[0], shift)]
        if any(part is None or part.op_type != "Split" for part in parts):
            return
        made = helper.make_node(
            "Modulate",
            [norm.input[0], one_more.input[0], shift],
            group[-1].output,
            domain=DOMAIN,
            eps=_said(norm, "epsilon"),
        )
        self.replace(group, made)

    def heads(self, norm: onnx.NodeProto) -> None:
        """RMS normalisation and the split of its heads; then a rotation, and a constant factor,
        where they follow.
        """
        group = [norm]
        for kind in ("Reshape", "Transpose"):
            following = self._next(group, kind)
            if following is None:
                return
            group.append(following)
        shape = self._constants.get(group[1].input[1])
        if shape is None or len(shape) != 4 or _said(group[2], "perm") != [0, 2, 1, 3]:
            return
        inputs, factor = [norm.input[0], norm.input[1]], 1.0
        if (turned := self._next(group, "RotaryEmbedding")) is not None:
            inputs.append(self._rope(turned))
            group.append(turned)
        times = self._next(group, "Mul")
        if times is not None and times.input[1] in self._constants:
            factor = float(self._constants[times.input[1]])
            group.append(times)
        made = helper.make_node(
            "Heads",
            inputs,
            group[-1].output,
            domain=DOMAIN,
            heads=int(shape[2]),
            eps=_said(norm, "epsilon"),
            factor=factor,
        )
        self.replace(group, made)

    def cut(self, reshape: onnx.NodeProto) -> None:
        """The split into heads of what a linear layer gives as it is."""
        layer = self._new.get(reshape.input[0])
        turn = self._next([reshape], "Transpose")
        if layer is None or layer.op_type != "Linear" or turn is None:
            return
        shape = self._constants.get(reshape.input[1])
        if shape is None or len(shape) != 4 or _said(turn, "perm") != [0, 2, 1, 3]:
            return
        made = helper.make_node(
            "Heads",
            [reshape.input[0]],
            turn.output,
            domain=DOMAIN,
            heads=int(shape[2]),
            eps=0.0,
            factor=1.0,
        )
        self.replace([reshape, turn], made)

    def _rope(self, turned: onnx.NodeProto) -> str:
        """The value [B, 2, S, K/2] whose halves are the cosines and sines of a rotation."""
        sources = set()
        for place, name in enumerate(turned.input[1:3]):
            half = self._made.get(name)
            if half is None or half.op_type != "Gather" or _said(half, "axis") != 1:
                raise Error(f"rotation {turned.output[0]} is not fed by the halves of one value")
            if not self._is(half.input[1], place):
                raise Error(f"rotation {turned.output[0]} takes its halves in another order")
            sources.add(str(half.input[0]))
        (source,) = sources
        return source

    def _is(self, name: str, value: float) -> bool:
        """Whether `name` is a constant of this value throughout."""
        return name in self._constants and bool((self._constants[name] == value).all())

    def _next(self, group: Sequence[onnx.NodeProto], kind: str) -> onnx.NodeProto | None:
        """The only node that reads the last of `group`, if it is of this kind."""
        node = self._after.get(group[-1].output[0])
        return node if node is not None and node.op_type == kind else None


def _is_attention(node: onnx.NodeProto) -> bool:
    """Whether our operator computes it: with q scaled already, and no mask but that of a ring."""
    if node.op_type == "Attention":
        return len(node.input) == 3 and _said(node, "scale") == 1.0
    return node.op_type == "RingAttention"


def _other(node: onnx.NodeProto, name: str) -> str:
    """The input of a node of two that is not `name`."""
    first, second = node.input
    return str(second if first == name else first)


def _said(node: onnx.NodeProto, attribute: str) -> object:
    """The value of an attribute, None where the node leaves it to the default."""
    found = [a for a in node.attribute if a.name == attribute]
    return helper.get_attribute_value(found[0]) if found else None


def _scatter(node: onnx.NodeProto) -> onnx.NodeProto:
    return helper.make_node("TensorScatter", node.input, node.output, axis=2)


def _scale(node: onnx.NodeProto) -> float:
    """What an attention multiplies q by. Raises Error for one that leaves it to a default."""
    if node.op_type == "RingAttention":
        return 1.0
    said = _said(node, "scale")
    if not isinstance(said, float):
        raise Error(f"attention {node.output[0]} has no scale of its own")
    return said


def _attention(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """softmax(q k^T + mask) v for q [B, N, S, K], k and v [B, N, M, K]; the mask may be absent."""
    query, key, value, *mask = node.input
    (output,) = node.output
    parts = ("keys", "score", "masked", "weight")
    keys, score, masked, weight = (f"{output}.{part}" for part in parts)
    nodes = [
        helper.make_node("Transpose", [key], [keys], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", [query, keys], [score]),
    ]
    if mask:
        nodes.append(helper.make_node("Add", [score, mask[0]], [masked]))
    return [
        *nodes,
        helper.make_node("Softmax", [masked if mask else score], [weight], axis=-1),
        helper.make_node("MatMul", [weight, value], [output]),
    ]
