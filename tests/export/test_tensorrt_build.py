"""Engines built by TensorRT for RTX on a machine without a GPU: what is built, and what is refused.

Whether they run, and what they compute, is not seen here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import micro_engine
import numpy as np
import onnx
import pytest
import torch
from micro_engine import MICRO, SIZE, micro_options, remembered_exports
from onnx import TensorProto, helper
from safetensors.torch import load_file

from export import tensorrt
from export.build import Built, build_engines
from export.engines import LOG, MODEL, REPORT, Entry, check_once
from export.onnx import Graph
from export.options import Options
from export.precision import at_precision
from export.tensorrt import Builder, Expected, check_graph, lower
from export.units import UnitSpec, parts_of, wan_chain
from rt import manifest as records
from rt.backends import tensorrt as backend
from rt.backends.tensorrt import read_card
from rt.errors import ConfigError, EngineMismatch, Error
from rt.manifest import Manifest, Plan

WIDE = replace(MICRO, name="micro-64", dit=replace(MICRO.dit, width=128, heads=2, head_dim=64))
"""A head that fused attention has kernels for."""
RINGS = (("k_ring", "k_ring_next"), ("v_ring", "v_ring_next"))


@pytest.fixture(scope="module", autouse=True)
def _remember() -> Iterator[None]:
    with remembered_exports():
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of weights."""
    folder = tmp_path_factory.mktemp("weights")
    from export.checkpoints import write_random

    write_random(WIDE, folder, 0)
    return folder


def options_in(out: Path, source: Path, **changes: Any) -> Options:
    given = {"config": WIDE, "backend": "tensorrt-rtx", "precision": "bf16", "checkpoint": source}
    return micro_options(out, **(given | {"compute_capability": ("8.9",)} | changes))


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build_engines(options_in(tmp_path_factory.mktemp("rtx"), source))


def plans(manifest: Manifest) -> dict[str, Plan]:
    units = (*manifest.prompt, *manifest.chain)
    return {f"{u.name} {phase}": plan for u in units for phase, plan in u.plans.items()}


def test_every_unit_has_a_plan_and_all_blocks_one_engine(built: Built) -> None:
    manifest = records.read(built.directory)
    records.check_files(manifest, built.directory)
    chain = wan_chain(WIDE, parts_of(WIDE, SIZE, SIZE), SIZE, SIZE, 6)
    expected = {f"{unit.name} {phase}" for unit in chain.units for phase in unit.phases}
    cards = {name: read_card(built.directory / p.file) for name, p in plans(manifest).items()}
    assert set(cards) == expected
    assert {card.engine for name, card in cards.items() if name.startswith("block")} == {
        "block.engine"
    }
    assert {card.engine for card in cards.values()} < {file.file for file in manifest.weights}
    assert (manifest.backend, manifest.gpu_architecture) == ("tensorrt-rtx", "sm_89")
    assert manifest.library == backend.library_version("tensorrt-rtx")
    types = {b.name: b.dtype for b in plans(manifest)["block_0 step"].inputs}
    assert (types["x"], types["rope"], types["write_index"]) == ("bfloat16", "float32", "int64")


def test_the_weights_that_lie_apart_are_those_of_the_checkpoint(built: Built, source: Path) -> None:
    manifest = records.read(built.directory)
    stored = load_file(built.directory / manifest.weights[0].file)
    original = load_file(next(source.glob("*.safetensors")))
    raw = (built.directory / manifest.weights[0].file).read_bytes()
    for index in range(WIDE.dit.blocks):
        card = read_card(built.directory / f"block_{index}.trt")
        assert len(card.weights) == 22
        for name, (_, offset, length, dtype, shape) in card.weights.items():
            label = name.removeprefix("unit.")
            tensor = stored[f"block_{index}.{label}"]
            assert raw[offset : offset + length] == tensor.view(torch.uint8).numpy().tobytes()
            assert (str(tensor.dtype), tuple(tensor.shape)) == (f"torch.{dtype}", shape)
            wanted = original[f"blocks.{index}.{label}"].to(tensor.dtype)
            assert torch.equal(tensor, wanted)


def test_the_report_has_a_line_for_each_engine(built: Built) -> None:
    lines = json.loads((built.directory / REPORT).read_text())
    sizes = {f.file: f.bytes for f in built.manifest.weights if f.file.endswith(".engine")}
    assert {line["engine"]: line["bytes"] for line in lines} == sizes
    for line in lines:
        assert line["seconds"] > 0
        assert line["peak_bytes"] > line["bytes"] >= line["weights"]
        assert line["layers"] > 0
    assert {line["units"] for line in lines if line["engine"] == "block.engine"} == {2}
    assert "nused" not in (built.directory / LOG).read_text()


def test_a_second_build_finds_it_up_to_date(built: Built, source: Path) -> None:
    options = options_in(built.directory.parents[1], source)
    assert build_engines(options).up_to_date


def test_a_plan_that_holds_its_weights_twice_is_refused(built: Built) -> None:
    entries = [Entry(**line) for line in json.loads((built.directory / REPORT).read_text())]
    held = [replace(entry, bytes=MODEL // 20 // len(entries) - 1) for entry in entries]
    assert 1 < check_once(held, MODEL) <= 1.05
    held[0] = replace(held[0], bytes=held[0].bytes + MODEL // 100)
    with pytest.raises(Error, match=r"a plan of 1\.06. times its weights, expected at most 1\.05"):
        check_once(held, MODEL)
    assert check_once(held, MODEL // 2) > 1.05  # a small model is smaller than its code


def test_other_gpus_are_another_engine(
    built: Built, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tensorrt.Builder, "build", stop)
    options = options_in(tmp_path, source, compute_capability=("8.9", "12.0"))
    with pytest.raises(KeyboardInterrupt):
        build_engines(options)
    key = (options.out / f".{options.name}.partial" / "key").read_text()
    assert key != built.manifest.key


class Killed(BaseException):
    """Stands for the process ending right there: nothing handles it."""


@pytest.mark.parametrize("call", [26])  # test_killed_builds.py has the moments drawn by chance
def test_what_is_finished_is_not_built_again(
    built: Built, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    options = options_in(tmp_path, source)
    real: Callable[..., None] = os.rename
    seen = 0

    def fail(*arguments: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == call:
            raise Killed
        real(*arguments)

    with monkeypatch.context() as broken:
        broken.setattr(os, "rename", fail)
        with pytest.raises(Killed):
            build_engines(options)
    staging = options.out / f".{options.name}.partial"
    finished = {p.name: p.stat().st_mtime_ns for p in staging.glob("*.engine")}
    again = build_engines(options)
    assert again.reused == len(finished)
    assert again.built + again.reused == built.built
    for name, when in finished.items():
        assert (again.directory / name).stat().st_mtime_ns == when
    records.check_files(again.manifest, again.directory)
    assert plans(again.manifest).keys() == plans(built.manifest).keys()


def block() -> tuple[Graph, Expected]:
    chain = wan_chain(WIDE, parts_of(WIDE, SIZE, SIZE), SIZE, SIZE, 6)
    unit: UnitSpec = next(u for u in chain.chain if u.name == "block_0")
    spec = unit.phases["step"]
    facts = (spec.module, spec.arguments(), spec.input_names, spec.output_names)
    graph = micro_engine.graphs.export_graph(*facts, batched=True)
    return lower(at_precision(graph, "bf16")), Expected(RINGS, 2)


def drop_the_mask(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if len(n.input) == 4 and n.op_type == "TRT_Attention")
    del node.input[3]


def leave_the_mask_alone(model: onnx.ModelProto) -> None:
    drop_the_mask(model)
    model.graph.node.remove(next(n for n in model.graph.node if "mask" in n.input))


def swap_the_rings(model: onnx.ModelProto) -> None:
    writes = [n for n in model.graph.node if n.op_type == "TRT_KVCacheUpdate"]
    writes[0].input[0], writes[1].input[0] = writes[1].input[0], writes[0].input[0]


def copy_a_ring(model: onnx.ModelProto) -> None:
    """The ring's own value is computed on, so it is not the input that is updated."""
    write = next(n for n in model.graph.node if n.op_type == "TRT_KVCacheUpdate")
    model.graph.node.insert(0, helper.make_node("Identity", [write.input[0]], ["copied"]))
    write.input[0] = "copied"


def keep_a_weight_inside(model: onnx.ModelProto) -> None:
    tensor = onnx.numpy_helper.from_array(np.zeros((2, 1 << 18), np.float32), "inside")
    model.graph.initializer.append(tensor)


def let_it_decompose(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if n.op_type == "TRT_Attention")
    node.attribute[0].i = 1


def write_it_out(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if n.op_type == "TRT_Attention")
    index = list(model.graph.node).index(node)
    q, k, v, mask = node.input
    written = [
        helper.make_node("Transpose", [k], ["w.k"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", [q, "w.k"], ["w.s"]),
        helper.make_node("Add", ["w.s", mask], ["w.m"]),
        helper.make_node("Softmax", ["w.m"], ["w.w"], axis=-1),
        helper.make_node("MatMul", ["w.w", v], [node.output[0]]),
    ]
    model.graph.node.remove(node)
    for offset, new in enumerate(written):
        model.graph.node.insert(index + offset, new)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (drop_the_mask, "unused input 'mask'"),
        (swap_the_rings, "rings .*declared"),
        (copy_a_ring, "rings .*declared"),
        (keep_a_weight_inside, "bytes of constants beside .* of weights; make them inputs"),
        (let_it_decompose, "1 attentions are one kernel, expected 2"),
        (write_it_out, "1 attentions are one kernel, expected 2"),
    ],
)
def test_a_graph_that_was_broken_is_refused(
    damage: Callable[[onnx.ModelProto], None], said: str
) -> None:
    graph, expected = block()
    check_graph(graph.model, expected)
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    damage(model)
    with pytest.raises(Error, match=said):
        check_graph(model, expected)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (swap_the_rings, "rings .*declared"),
        (write_it_out, "1 attentions, expected 2"),
        (leave_the_mask_alone, "passes over an input.*mask"),
    ],
)
def test_the_library_itself_shows_it_where_the_graph_is_not_checked(
    damage: Callable[[onnx.ModelProto], None],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph, expected = block()
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    damage(model)
    monkeypatch.setattr(tensorrt, "check_graph", lambda *_: None)
    builder = Builder("tensorrt-rtx", ("8.9",), tmp_path / "timing", tmp_path / LOG)
    with pytest.raises(Error, match=said):
        builder.build(Graph(model, graph.weights), 2, expected)


def test_attention_without_a_kernel_of_its_own_fails_the_build(tmp_path: Path) -> None:
    """float32 has none."""
    q = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 2, 16, 64]) for n in "qkv"]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 16, 64])
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], scale=1.0)
    model = helper.make_model(helper.make_graph([node], "unit", q, [out]))
    builder = Builder("tensorrt-rtx", ("8.9",), tmp_path / "timing", tmp_path / LOG)
    with pytest.raises(Error, match="not supported by a dedicated kernel"):
        builder.build(lower(Graph(model, ())), 0, Expected((), 1))
    assert "ERROR" in (tmp_path / LOG).read_text()


def test_a_query_that_is_scaled_inside_is_refused() -> None:
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], scale=0.5)
    model = helper.make_model(helper.make_graph([node], "unit", [], []))
    with pytest.raises(Error, match=r"scaled by 0\.5"):
        lower(Graph(model, ()))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"compute_capability": ()}, "compute-capability: got"),
        ({"compute_capability": ("9.0",)}, "compute-capability: got '9.0'"),
        (
            {"compute_capability": ("8.9", "7.5")},
            r"'7.5' with precision bf16.* leave it out, or use",
        ),
        ({"compute_capability": ("huge",)}, "compute-capability: got 'huge'"),
        ({"backend": "onnxruntime", "precision": "fp32"}, "compute-capability: got"),
        ({"precision": "fp4"}, "precision: got 'fp4'"),
    ],
)
def test_options_that_fit_no_engine(
    source: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        build_engines(options_in(tmp_path, source, **change))


def test_a_library_that_is_not_there_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"tensorrt: not installed; install it: pip install"):
        backend.library("tensorrt")
    old = replace(backend.FLAVOURS["tensorrt-rtx"], first=(99, 0), before=100)
    monkeypatch.setitem(backend.FLAVOURS, "tensorrt-rtx", old)
    with pytest.raises(ConfigError, match=r"got 1\.\d.*, expected >=99\.0,<100; install it"):
        backend.library("tensorrt-rtx")


def test_weights_are_not_taken_from_compiled_engines(built: Built, tmp_path: Path) -> None:
    options = options_in(tmp_path, built.directory)
    with pytest.raises(ConfigError, match="its weights rounded to bf16"):
        build_engines(options)


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b"\x00", b'{"engine": "a"}'])
def test_what_is_no_plan(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "x.trt").write_bytes(text)
    with pytest.raises(EngineMismatch, match="is no plan of this exporter"):
        read_card(tmp_path / "x.trt")


def test_nan_in_a_weight_is_named(source: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import save_file

    from rt.errors import CheckpointError

    folder = shutil.copytree(source, tmp_path / "broken")
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    tensors["blocks.1.ffn.0.weight"][3, 4] = np.nan
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"NaN or infinite in bfloat16: block_1\.ffn\.0"):
        build_engines(options_in(tmp_path, folder))


def test_a_flipped_byte_in_an_engine_is_named(built: Built, tmp_path: Path) -> None:
    import shutil

    directory = shutil.copytree(built.directory, tmp_path / "engine")
    path = directory / "block.engine"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(EngineMismatch, match=r"block\.engine has sha256.*build-engines"):
        records.check_files(records.read(directory), directory)
