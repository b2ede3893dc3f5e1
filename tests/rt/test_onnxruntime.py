"""Engines by ONNX Runtime: what it refuses is told in one line that says what to do."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from export import verify
from rt import Pipeline
from rt import manifest as records
from rt.errors import EngineMismatch


@pytest.fixture
def older(tiny_engine: Path, tmp_path: Path) -> Path:
    """An engine that matches its manifest, whose first block was made for an operator that was
    ours once.
    """
    directory = Path(shutil.copytree(tiny_engine, tmp_path / "older"))
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in ("x", "y"))
    node = helper.make_node("OnceOurs", ["x"], ["y"], domain="sdrt")
    graph = helper.make_graph([node], "block", [x], [y])
    imports = [helper.make_opsetid("", 24), helper.make_opsetid("sdrt", 1)]
    content = helper.make_model(graph, opset_imports=imports).SerializeToString()
    manifest = records.read(directory)
    (unit,) = (unit for unit in manifest.chain if unit.name == "block_0")
    plan = unit.plans["step"]
    (directory / plan.file).write_bytes(content)
    plan = dataclasses.replace(plan, sha256=hashlib.sha256(content).hexdigest())
    changed = dataclasses.replace(unit, plans={"step": plan})
    chain = tuple(changed if u is unit else u for u in manifest.chain)
    records.write(dataclasses.replace(manifest, chain=chain), directory)
    return directory


def test_an_engine_of_another_exporter_is_one_line(older: Path) -> None:
    with pytest.raises(EngineMismatch, match=r"block_0\.onnx: ONNX Runtime .*OnceOurs") as caught:
        Pipeline.load(older)
    said = str(caught.value)
    assert "\n" not in said
    assert said.count("mend it with: python -m export build-engines") == 1
    assert f"--name older --out {older.parent}" in said


def test_the_exporter_says_the_same(older: Path) -> None:
    with pytest.raises(EngineMismatch, match="mend it with: python -m export build-engines"):
        verify.session(older / "block_0.onnx")


def test_a_plan_that_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "block.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(EngineMismatch, match=r"refuses it .*; build the engine again") as caught:
        verify.session(tmp_path / "block.onnx")
    assert "\n" not in str(caught.value)
