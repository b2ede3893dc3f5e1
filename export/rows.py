"""Chains of nodes that take every row (a token) by itself become one node `Rows`.

What the steps of such a node mean, and how they are written, is in csrc/kernels/rows.h.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import onnx
from onnx import helper

from export.onnx import DOMAIN

ROWS = "Rows"
_OPERANDS = {"Linear": 5, "Modulate": 3, "Heads": 3, "Attention": 4, "LayerNormalization": 3}
_RESIDUAL = 3
"""Place of the operand of Linear that is rows, as the first one of every node is."""


def gather_rows(
    nodes: Sequence[onnx.NodeProto], given: Collection[str], results: Collection[str], factors: str
) -> list[onnx.NodeProto]:
    """`nodes` of a graph, in order, with the chains of those that `export.lowering` makes for the
    processor gathered. `given` names what no node makes, `results` the results of the graph;
    `factors` says what factors of products may be rounded to: "float32" or "int16".
    """
    out: list[onnx.NodeProto] = []
    chains = [_Chain()]
    for node in nodes:
        if not is_step(node):
            chains[-1].pass_by(node)
            out.append(node)
        elif not chains[-1].take(node):
            chains.append(_Chain())
            chains[-1].take(node)
    outside = {name for node in out for name in node.input} | set(results)
    for chain in chains:
        if chain.inputs:
            read = outside.union(*(other.inputs for other in chains if other is not chain))
            out.append(chain.node(read, factors))
    return list(_in_order(out, given))


def is_step(node: onnx.NodeProto) -> bool:
    """Whether a node is a step of such chains."""
    if node.op_type == "LayerNormalization":
        return len(node.input) == _OPERANDS[node.op_type]
    return node.domain == DOMAIN and node.op_type in _OPERANDS


class _Chain:
    """Steps over the same rows, as they are gathered."""

    def __init__(self) -> None:
        self._steps: list[onnx.NodeProto] = []
        self._rows: set[str] = set()  # given or made here
        self._made: set[str] = set()
        self._beyond: set[str] = set()  # made by others from what was made here
        self.inputs: dict[str, None] = {}

    def take(self, node: onnx.NodeProto) -> bool:
        """Add `node`, if it goes on with these rows and needs nothing that comes after them."""
        names = [name for name in node.input if name]
        rows = [n for i, n in enumerate(node.input) if n and _is_row(node, i)]
        if self._steps and rows[0] not in self._rows:
            return False
        if self._beyond.intersection(names):
            return False
        if any(name in self._made for name in names if name not in rows):
            return False
        self._steps.append(node)
        self.inputs.update(dict.fromkeys(n for n in names if n not in self._made))
        self._rows.update(rows, node.output)
        self._made.update(node.output)
        return True

    def pass_by(self, node: onnx.NodeProto) -> None:
        """Note what a node that is no step makes of these rows."""
        if any(name in self._made or name in self._beyond for name in node.input):
            self._beyond.update(node.output)

    def node(self, read: Collection[str], factors: str) -> onnx.NodeProto:
        """The node `Rows`. `read` names what others read."""
        made = [str(name) for step in self._steps for name in step.output]
        number = {name: place for place, name in enumerate((*self.inputs, *made))}
        outputs = [name for name in made if name in read]
        return helper.make_node(
            ROWS,
            list(self.inputs),
            outputs,
            domain=DOMAIN,
            given=len(self.inputs),
            steps="\n".join(_line(step, number) for step in self._steps),
            results=" ".join(str(number[name]) for name in outputs),
            factors=factors,
        )


def _is_row(node: onnx.NodeProto, place: int) -> bool:
    return place == 0 or (node.op_type == "Linear" and place == _RESIDUAL)


def _line(node: onnx.NodeProto, number: Mapping[str, int]) -> str:
    names = [*node.input, *[""] * (_OPERANDS[node.op_type] - len(node.input))]
    operands = " ".join(str(number[name]) if name else "-" for name in names)
    said = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    kind, *parameters = _WRITTEN[node.op_type](said)
    return " ".join([kind, operands, *parameters])


_WRITTEN: dict[str, Callable[[Mapping[str, object]], list[str]]] = {
    "Linear": lambda said: ["linear", f"gelu={said['gelu']}"],
    "Modulate": lambda said: ["modulate", f"eps={said['eps']}"],
    "LayerNormalization": lambda said: ["norm", f"eps={said['epsilon']}"],
    "Heads": lambda said: [
        "heads", f"heads={said['heads']}", f"eps={said['eps']}", f"factor={said['factor']}"
    ],
    "Attention": lambda _: ["attention"],
}  # fmt: skip


def _in_order(nodes: Sequence[onnx.NodeProto], given: Collection[str]) -> Iterator[onnx.NodeProto]:
    """Every node behind those that make what it reads, else in the order that they have."""
    there = {"", *given}
    waiting = list(nodes)
    while waiting:
        node = next(n for n in waiting if there.issuperset(n.input))
        waiting.remove(node)
        there.update(node.output)
        yield node
