"""Verification sees what is wrong, and passes what is right."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from micro_engine import MICRO, SIZE, build_micro

from export import checkpoints, verify
from export.layout import find
from export.units import wan_chain
from rt import manifest as records
from rt.errors import Error


def test_every_plan_equals_the_unit_loaded_from_the_checkpoint(tiny_engine: Path) -> None:
    """Law 3, against the weights themselves: no weight has landed in another unit's place."""
    manifest = records.read(tiny_engine)
    checkpoint = next((tiny_engine.parents[1] / "checkpoints").glob("micro-random-0-*"))
    parts = checkpoints.load_parts(MICRO, find(checkpoint), SIZE, SIZE)
    chain = wan_chain(MICRO, parts, SIZE, SIZE, manifest.window.frames)
    found = verify.verify(manifest, tiny_engine, chain.units)
    assert {d.unit for d in found} == {u.name for u in (*manifest.prompt, *manifest.chain)}
    assert {d.rows for d in found if d.unit == "block_0"} == {1, 2}
    assert all(d.passed and d.tolerance == 1e-4 for d in found), found


def test_factors_are_rounded_only_where_that_was_asked_for(
    tiny_engine: Path, tmp_path: Path
) -> None:
    checkpoint = next((tiny_engine.parents[1] / "checkpoints").glob("micro-random-0-*"))
    rounded = build_micro(tmp_path, checkpoint=checkpoint, precision="int16")
    said = {}
    for directory in (tiny_engine, rounded):
        manifest = records.read(directory)
        plans = [plan for unit in manifest.chain for plan in unit.plans.values()]
        models = [onnx.load(directory / plan.file, load_external_data=False) for plan in plans]
        nodes = [node for model in models for node in model.graph.node if node.op_type == "Rows"]
        said[manifest.precision] = {
            onnx.helper.get_attribute_value(a)
            for node in nodes for a in node.attribute if a.name == "factors"
        }  # fmt: skip
    assert said == {"fp32": {b"float32"}, "int16": {b"int16"}}
    chain = verify.twin(records.read(rounded), rounded, MICRO, True)
    found = verify.verify(records.read(rounded), rounded, chain.units)
    assert all(d.passed and d.tolerance == 1e-3 for d in found), found


def test_the_twin_has_the_weights_of_the_checkpoint(tiny_engine: Path) -> None:
    manifest = records.read(tiny_engine)
    chain = verify.twin(manifest, tiny_engine, MICRO, True)
    checkpoint = next((tiny_engine.parents[1] / "checkpoints").glob("micro-random-0-*"))
    state, _ = checkpoints.load_dit(checkpoint, MICRO.dit)
    for index in range(MICRO.dit.blocks):
        unit = next(u for u in chain.chain if u.name == f"block_{index}")
        for name, tensor in unit.phases["step"].module.state_dict().items():
            assert np.array_equal(tensor, state[f"blocks.{index}.{name}"])


def test_a_swapped_plan_is_seen(tiny_engine: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(tiny_engine, tmp_path / "swapped")
    manifest = records.read(directory)
    chain = verify.twin(manifest, tiny_engine, MICRO, True)
    shutil.copy(directory / "block_1.onnx", directory / "block_0.onnx")
    wrong = [d for d in verify.verify(manifest, directory, chain.units) if not d.passed]
    assert {d.unit for d in wrong} == {"block_0"}


@pytest.mark.parametrize(("value", "said"), [(np.nan, "not finite"), (0.0, "constant")])
def test_smoke_refuses_what_is_not_finite_or_constant(
    tiny_engine: Path, tmp_path: Path, value: float, said: str
) -> None:
    directory = shutil.copytree(tiny_engine, tmp_path / "broken")
    manifest = records.read(directory)
    weights = directory / manifest.weights[0].file
    whole = weights.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    count = (len(whole) - header) // 2
    weights.write_bytes(whole[:header] + np.full(count, value, np.float16).tobytes())
    with pytest.raises(Error, match=said):
        verify.smoke(manifest, directory)
    verify.smoke(manifest, tiny_engine)


def test_inputs_are_plausible_and_repeatable(tiny_engine: Path) -> None:
    manifest = records.read(tiny_engine)
    plan = next(u for u in manifest.chain if u.kind == "block").plans["step"]
    one, two = (verify.random_inputs(manifest, plan, 4, "x") for _ in range(2))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert not np.array_equal(one["k_ring"], one["v_ring"])
    assert np.allclose((one["rope"] ** 2).sum(axis=1), 1, atol=1e-6)
    tokens = manifest.geometry.tokens_per_frame
    for row in range(4):
        start = int(one["write_index"][row])
        assert start % tokens == 0
        assert (one["mask"][row, 0, 0, start : start + tokens] == 0).all()
        assert np.isneginf(one["mask"][row]).any()
