"""Builds: the same bytes every time, nothing valid built again, nothing half built ever seen."""

from __future__ import annotations

import ast
import dataclasses
import filecmp
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import micro_engine
import numpy as np
import pytest
from micro_engine import MICRO, build_micro, micro_options, remembered_exports
from onnxruntime import GraphOptimizationLevel, InferenceSession
from safetensors import safe_open

from export import build, weights
from export import onnx as graphs
from export.build import Built, build_engines
from export.options import Options
from export.staging import PARTIAL
from export.units import parts_of, wan_chain
from export.verify import random_inputs, run, run_module, session, twin
from rt import manifest as records
from rt.backends.onnxruntime import session_options
from rt.errors import CheckpointError, ConfigError, Error


class Killed(BaseException):
    """Stands for the process ending right there: nothing handles it."""


@pytest.fixture(autouse=True)
def _remember() -> Iterator[None]:
    with remembered_exports():
        yield


@pytest.fixture
def options(tiny_engine: Path, tmp_path: Path) -> Options:
    """Options of a build of the micro model elsewhere, from the same weights."""
    return micro_options(tmp_path, checkpoint=checkpoint_of(tiny_engine))


def checkpoint_of(engine: Path) -> Path:
    return next((engine.parents[1] / "checkpoints").glob("micro-random-0-*"))


def same(one: Path, other: Path) -> bool:
    """Whether two folders hold equal files and nothing else."""
    names = sorted(path.name for path in one.iterdir())
    if names != sorted(path.name for path in other.iterdir()):
        return False
    return not any(filecmp.cmpfiles(one, other, names, shallow=False)[1:])


def plans_in(built: Built) -> int:
    units = (*built.manifest.prompt, *built.manifest.chain)
    return sum(len(unit.plans) for unit in units)


def test_two_builds_have_equal_bytes(tiny_engine: Path, options: Options) -> None:
    assert same(build_engines(options).directory, tiny_engine)


def test_an_export_has_equal_bytes_twice() -> None:
    chain = wan_chain(MICRO, parts_of(MICRO, 64, 64), 64, 64, 6)
    spec = next(unit for unit in chain.chain if unit.kind == "dit_out").phases["step"]
    facts = (spec.module, spec.arguments(), spec.input_names, spec.output_names)
    with patch.dict(micro_engine.exports, clear=True):
        one = graphs.export_graph(*facts, batched=True)
    two = graphs.export_graph(*facts, batched=True)
    assert one is not two
    assert one.model.SerializeToString() == two.model.SerializeToString()


def test_a_second_build_finds_it_up_to_date(options: Options) -> None:
    first = build_engines(options)
    assert (first.built, first.reused, first.up_to_date) == (plans_in(first), 0, False)
    times = {path: path.stat().st_mtime_ns for path in first.directory.iterdir()}
    started = time.perf_counter()
    second = build_engines(options)
    assert time.perf_counter() - started < 2
    assert (second.built, second.up_to_date) == (0, True)
    assert times == {path: path.stat().st_mtime_ns for path in first.directory.iterdir()}
    assert [path.name for path in options.out.iterdir()] == ["micro"]


@pytest.mark.parametrize("change", [{"sinks": 2}, {"max_batch": 2}, {"name": "other"}])
def test_another_option_is_another_engine(options: Options, change: dict[str, Any]) -> None:
    first = build_engines(options)
    second = build_engines(dataclasses.replace(options, **change))
    assert second.built == plans_in(second)
    assert second.manifest.key != first.manifest.key


def test_other_weights_are_another_engine_with_the_same_graphs(options: Options) -> None:
    first = build_engines(options)
    second = build_engines(dataclasses.replace(options, checkpoint=None, seed=5))
    assert second.manifest.weights_sha256 != first.manifest.weights_sha256
    graphs_of = [
        [plan.graph_sha256 for unit in built.manifest.chain for plan in unit.plans.values()]
        for built in (first, second)
    ]
    assert graphs_of[0] == graphs_of[1]
    assert not list((options.out.parent / "checkpoints").glob(".*"))


def test_a_damaged_engine_is_built_again(options: Options) -> None:
    directory = build_engines(options).directory
    for damage in (
        lambda: (directory / "block_1.onnx").write_bytes(b"x"),
        lambda: (directory / weights.FILE_NAME).unlink(),
        lambda: (directory / records.FILE_NAME).write_text("{}"),
    ):
        damage()
        assert not build_engines(options).up_to_date
        records.check_files(records.read(directory), directory)


def interrupt(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int, *, after: bool
) -> None:
    """Let the `call`-th call of owner.name end the process, before or after its work."""
    real: Callable[..., Any] = getattr(owner, name)
    count = 0

    def fail(*arguments: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        if count == call and not after:
            raise Killed
        result = real(*arguments, **named)
        if count == call:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, fail)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("call", [1, 2, 3, 12, 26, 27, 28])
def test_a_build_cut_at_any_file_completes_to_equal_bytes(
    tiny_engine: Path,
    options: Options,
    monkeypatch: pytest.MonkeyPatch,
    call: int,
    after: bool,
) -> None:
    # Everything arrives by a rename: the key, the weights, 24 plans, the tokenizer, the folder.
    with monkeypatch.context() as broken:
        interrupt(broken, os, "rename", call, after=after)
        with pytest.raises(Killed):
            build_engines(options)
    there = options.out / options.name
    assert there.exists() == (call == 28 and after)
    built = build_engines(options)
    assert same(built.directory, tiny_engine)
    assert [path.name for path in options.out.iterdir()] == ["micro"]
    finished = min(24, max(0, call - 3 + after))
    assert (built.built, built.reused) == (24 - finished, finished)


def test_what_was_half_written_is_not_used(
    tiny_engine: Path, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        interrupt(broken, os, "fsync", 9, after=False)
        with pytest.raises(Killed):
            build_engines(options)
    assert list((options.out / ".micro.partial").glob(f"*{PARTIAL}"))
    assert same(build_engines(options).directory, tiny_engine)


@pytest.mark.parametrize("call", [1, 2])
def test_an_old_engine_stays_until_the_new_one_is_there(
    tiny_engine: Path, options: Options, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    # The folder's renames: the old one away, then the new one in.
    old = build_engines(dataclasses.replace(options, sinks=2)).directory
    kept = shutil.copytree(old, options.out.parent / "kept")
    with monkeypatch.context() as broken:
        interrupt(broken, os, "rename", 27 + call, after=False)
        with pytest.raises(Killed):
            build_engines(options)
    if call == 1:
        assert same(old, kept)
    built = build_engines(options)
    assert built.built == 0
    assert same(built.directory, tiny_engine)
    assert [path.name for path in options.out.iterdir()] == ["micro"]


def test_a_failing_smoke_run_leaves_no_engine(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise Error("unit block_0 step: output x_next is not finite")

    monkeypatch.setattr(build, "smoke", fail)
    with pytest.raises(Error, match="not finite"):
        build_engines(options)
    assert not (options.out / options.name).exists()


def test_kill_minus_nine(tiny_engine: Path, options: Options) -> None:
    script = (
        "import sys; from pathlib import Path; from micro_engine import build_micro; "
        "build_micro(Path(sys.argv[1]), checkpoint=Path(sys.argv[2]))"
    )
    paths = [str(Path(__file__).parents[1]), *(p for p in sys.path if p)]
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(options.out.parent), str(options.checkpoint)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    staging = options.out / ".micro.partial"
    while process.poll() is None and len(list(staging.glob("*.onnx"))) < 4:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    built = build_engines(options)
    assert built.reused >= 4
    assert same(built.directory, tiny_engine)


def test_two_builds_at_once_are_refused(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    def again(*_: object) -> None:
        with pytest.raises(Error, match="another build"):
            build_engines(options)

    monkeypatch.setattr(build, "smoke", again)
    build_engines(options)


@pytest.mark.parametrize(
    "change",
    [
        {"height": 60},
        {"width": 0},
        {"width": -16},
        {"max_batch": 0},
        {"window": 3, "sinks": 3},
        {"window": 0, "sinks": 0},
        {"sinks": -1},
        {"backend": "tensor"},
        {"precision": "fp7"},
        {"name": ""},
        {"name": "../x"},
        {"name": ".hidden"},
    ],
)
def test_options_that_fit_no_engine(options: Options, change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"got .* expected"):
        build_engines(dataclasses.replace(options, **change))
    assert not options.out.exists()


def test_no_checkpoint_and_a_bad_one(options: Options, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"checkpoint: got .* expected"):
        build_engines(dataclasses.replace(options, checkpoint=tmp_path / "nothing"))
    bad = shutil.copytree(options.checkpoint or Path(), tmp_path / "bad")
    (file,) = bad.glob("diffusion*.safetensors")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="diffusion"):
        build_engines(dataclasses.replace(options, checkpoint=bad))


def test_weights_are_stored_once_as_safetensors_and_all_are_read(tiny_engine: Path) -> None:
    path = tiny_engine / weights.FILE_NAME
    with safe_open(path, framework="np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    # Random weights are written as exact halves: a plan casts them back.
    assert {tensor.dtype.name for tensor in tensors.values()} == {"float16"}
    size = sum(tensor.nbytes for tensor in tensors.values())
    header = int.from_bytes(path.read_bytes()[:8], "little")
    assert path.stat().st_size == 8 + header + size
    read: set[int] = set()
    manifest = records.read(tiny_engine)
    for unit in (*manifest.prompt, *manifest.chain):
        for plan in unit.plans.values():
            for stored in graphs.weights_of((tiny_engine / plan.file).read_bytes()).values():
                assert stored.offset % 2 == 0
                read.add(stored.offset)
    assert len(read) == len(tensors)


def test_a_weight_that_is_no_half_is_stored_whole_in_all_blocks(
    tmp_path: Path, options: Options
) -> None:
    from safetensors.numpy import load_file, save_file

    checkpoint = shutil.copytree(options.checkpoint or Path(), tmp_path / "third")
    (file,) = checkpoint.glob("diffusion*.safetensors")
    tensors = load_file(file)
    tensors["blocks.1.ffn.0.weight"][0, 0] = 1 / 3
    save_file(tensors, file)
    built = build_engines(dataclasses.replace(options, checkpoint=checkpoint))
    blocks = [unit for unit in built.manifest.chain if unit.kind == "block"]
    for unit in blocks:
        data = (built.directory / unit.plans["step"].file).read_bytes()
        types = {name: stored.dtype for name, stored in graphs.weights_of(data).items()}
        assert types.pop("ffn.0.weight") == "float32"
        assert set(types.values()) == {"float16"}
    assert len({unit.plans["step"].graph_sha256 for unit in blocks}) == 1
    plan = blocks[1].plans["step"]
    feeds = random_inputs(built.manifest, plan, 1, "third")
    units = {unit.name: unit for unit in twin(built.manifest, built.directory, MICRO, True).units}
    module = units["block_1"].phases["step"]
    assert module.module.state_dict()["ffn.0.weight"][0, 0] == np.float32(1 / 3)
    expected = run_module(module, feeds)["x_next"]
    got = run(session(built.directory / plan.file), feeds)["x_next"]
    assert np.abs(got - expected).max() <= plan.tolerance


def test_onnxruntime_folds_the_casts_of_half_weights(tiny_engine: Path, tmp_path: Path) -> None:
    options = session_options()
    options.graph_optimization_level = GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    InferenceSession(tiny_engine / "block_0.onnx", options, providers=["CPUExecutionProvider"])
    optimized = (tmp_path / "optimized.onnx").read_bytes()
    assert b"Cast" in (tiny_engine / "block_0.onnx").read_bytes()
    assert b"Cast" not in optimized


def test_the_manifest_says_what_was_built(tiny_engine: Path) -> None:
    manifest = records.read(tiny_engine)
    assert [unit.name for unit in manifest.prompt] == [
        "text",
        "prompt_in",
        "prompt_kv_0",
        "prompt_kv_1",
    ]
    kinds = [unit.kind for unit in manifest.chain]
    assert kinds == sorted(kinds, key=["encode", "dit_in", "block", "dit_out", "decode"].index)
    assert manifest.geometry.tokens_per_frame == 16
    assert manifest.attention.rope_time_pairs == MICRO.dit.rope_pairs[0]
    assert manifest.noise.smoothing == 0.9
    assert json.loads((tiny_engine / records.FILE_NAME).read_text())["schema"] == records.SCHEMA


def test_another_window_changes_the_rings(tmp_path: Path) -> None:
    directory = build_micro(tmp_path, window=4, sinks=1)
    manifest = records.read(directory)
    block = next(unit for unit in manifest.chain if unit.kind == "block").plans["step"]
    assert {state.shape for state in block.state} == {("B", 2, 4 * 16, 16)}
    assert (manifest.window.frames, manifest.window.sinks) == (4, 1)


def test_what_makes_a_plan_is_part_of_its_key() -> None:
    folder = Path(build.__file__).parent
    reached: set[str] = set()
    waiting = ["backends", "units", "weights"]
    while waiting:
        name = waiting.pop()
        if name not in reached and (path := folder / f"{name}.py").is_file():
            reached.add(name)
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and node.module == "export":
                    waiting += [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("export."):
                    waiting.append(str(node.module).removeprefix("export."))
    assert {"lowering", "rows", "onnx", "engines", "inductor", "precision"} <= reached
    assert reached & build.NO_PLAN == {"options"}  # whose values are in the key
