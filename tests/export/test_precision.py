"""Graphs at a lower precision: well typed, close to float32, wide where that matters."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from micro_engine import MICRO, MICRO_WAN, SIZE, remembered_exports
from standard_operators import standard_operators

from export import onnx as graphs
from export.lowering import write_out_attention
from export.onnx import PREFIX, Graph
from export.plans import may_ignore
from export.precision import WIDE_VALUES, at_precision, dtype_of, rounded, weight_facts
from export.units import PhaseSpec, UnitSpec, concrete, parts_of, wan_chain
from export.verify import difference

UNITS = ("block_0", "dit_in", "dit_out", "prompt_kv_0", "text", "encode_0", "decode_1")
EPS = {"fp16": 2.0**-11, "bf16": 2.0**-8}
"""Relative error of one rounding."""


@pytest.fixture(scope="module", autouse=True)
def _remember() -> Iterator[None]:
    with remembered_exports():
        yield


@pytest.fixture(scope="module")
def units() -> dict[str, UnitSpec]:
    torch.manual_seed(0)
    chain = wan_chain(MICRO, parts_of(MICRO, SIZE, SIZE), SIZE, SIZE, 6)
    wan = wan_chain(MICRO_WAN, parts_of(MICRO_WAN, SIZE, SIZE), SIZE, SIZE, 6)
    found = {unit.name: unit for unit in chain.units}
    return found | {f"wan_{u.name}": u for u in wan.chain if u.kind in ("encode", "decode")}


def graph_of(unit: UnitSpec, phase: str = "step") -> tuple[PhaseSpec, Graph]:
    spec = unit.phases[phase]
    facts = (spec.module, spec.arguments(), spec.input_names, spec.output_names)
    ignored = may_ignore(phase, spec)
    graph = graphs.export_graph(*facts, batched=spec.batched, may_ignore=ignored)
    return spec, write_out_attention(graph)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", [*UNITS, "wan_decode_0"])
def test_it_is_well_typed_and_its_values_have_the_types_of_the_manifest(
    units: dict[str, UnitSpec], name: str, precision: str
) -> None:
    spec, graph = graph_of(units[name])
    model = standard_operators(at_precision(graph, precision)).model
    onnx.checker.check_model(model, full_check=True)
    types = {
        v.name: onnx.helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type).name
        for v in (*model.graph.input, *model.graph.output)
    }
    for binding in (*spec.inputs, *spec.outputs):
        assert types[binding.name] == dtype_of(binding.tensor, binding.dtype, precision)
    for state in spec.state:
        assert types[state.input] == types[state.output]
        assert types[state.input] != "float32"


def test_products_are_low_and_normalisations_wide(units: dict[str, UnitSpec]) -> None:
    _, graph = graph_of(units["block_0"])
    model = standard_operators(at_precision(graph, "bf16")).model
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    values = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    types = {v.name: v.type.tensor_type.elem_type for v in values}
    for node in model.graph.node:
        low = node.op_type in ("MatMul", "TensorScatter")
        wide = node.op_type in ("LayerNormalization", "RMSNormalization", "RotaryEmbedding")
        wide |= node.op_type == "Softmax"
        if low or wide:
            kind = onnx.TensorProto.BFLOAT16 if low else onnx.TensorProto.FLOAT
            assert types[node.output[0]] == kind, node.op_type
    weights = weight_facts(at_precision(graph, "bf16"))
    assert {n for n, (t, _) in weights.items() if t == "float32"} == {
        "modulation", "norm3.weight", "norm3.bias",
        "self_attn.norm_q.weight", "self_attn.norm_k.weight", "cross_attn.norm_q.weight",
    }  # fmt: skip


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", [*UNITS, "wan_encode_0", "wan_decode_0"])
def test_onnx_runtime_computes_it_close_to_float32(
    units: dict[str, UnitSpec], name: str, precision: str
) -> None:
    """Every low value rounded as a GPU would; a unit rounds some ten times one after another."""
    spec, graph = graph_of(units[name])
    feeds = feeds_of(spec, graph, name)
    exact = run(standard_operators(graph).model, feeds)
    low = standard_operators(at_precision(graph, precision))
    rough = run(rounded(low, precision).model, narrowed(low, feeds, precision))
    worst = max(difference(rough[n], exact[n]) for n in exact)
    assert 0 < worst <= 24 * EPS[precision]


def test_half_arithmetic_of_onnx_runtime_agrees(units: dict[str, UnitSpec]) -> None:
    spec, graph = graph_of(units["block_0"])
    feeds = feeds_of(spec, graph, "block_0")
    low = standard_operators(at_precision(graph, "fp16"))
    rough = run(rounded(low, "fp16").model, narrowed(low, feeds, "fp16"))
    half = {
        v.name: feeds[v.name].astype(
            onnx.helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type)
        )
        for v in low.model.graph.input
    }
    own = run(low.model, half)
    for name, array in own.items():
        assert difference(array.astype(np.float32), rough[name]) <= 8 * EPS["fp16"]


def test_what_operators_read_and_write_stays_wide() -> None:
    assert {"noisy", "velocity", "pixels", "restyled", "timestep", "mask"} <= WIDE_VALUES
    assert dtype_of("x", "float32", "bf16") == "bfloat16"
    assert dtype_of("write_index", "int64", "bf16") == "int64"
    assert dtype_of("x", "float32", "fp32") == "float32"


Feeds = dict[str, np.ndarray]


def feeds_of(spec: PhaseSpec, graph: Graph, seed: str) -> Feeds:
    """Normal values, the weights of the module, and what has a meaning of its own."""
    random = np.random.default_rng(len(seed))
    weights = {PREFIX + n: t.numpy() for n, t in spec.module.state_dict().items()}
    feeds: Feeds = {}
    for value in (*spec.inputs, *spec.state):
        name = value.name if hasattr(value, "name") else value.input
        shape = concrete(value.shape, 2)
        feeds[name] = random.standard_normal(shape, dtype=np.float32)
        if name in ("write_index", "token_ids"):
            feeds[name] = np.zeros(shape, np.int64)
        elif name in ("mask", "token_mask"):
            feeds[name] = np.full(shape, name == "token_mask", np.float32)
        elif name == "timestep":
            feeds[name] = np.linspace(200, 700, 2, dtype=np.float32)
    read = {value.name for value in graph.model.graph.input}
    return {name: array for name, array in (feeds | weights).items() if name in read}


def narrowed(graph: Graph, feeds: Feeds, precision: str) -> Feeds:
    """float32 arrays whose values are of the low type where the graph wants that."""
    low = torch.float16 if precision == "fp16" else torch.bfloat16
    wide = {
        v.name
        for v in graph.model.graph.input
        if v.type.tensor_type.elem_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.INT64)
    }
    return {
        name: array if name in wide else torch.from_numpy(array).to(low).float().numpy()
        for name, array in feeds.items()
    }


def run(model: onnx.ModelProto, feeds: Feeds) -> Feeds:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))
