"""The chain of units and the lowered graphs: shapes, shares of work, rings in place, law 8."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from micro_engine import MICRO, MICRO_WAN, SIZE
from numpy.typing import NDArray
from onnxruntime import InferenceSession
from torch import nn

from export import weights
from export.lowering import lower_for_onnxruntime
from export.models.presets import PRESETS
from export.onnx import DOMAIN, attach_weights, export_graph, weights_of
from export.units import Chain, parts_of, wan_chain
from export.verify import random_inputs, run, run_module, session, twin
from rt import manifest as records
from rt.backends.onnxruntime import session_options
from rt.errors import Error
from rt.manifest import Manifest, Plan, Unit

Arrays = dict[str, NDArray[Any]]


def chain_of(name: str, height: int, width: int) -> Chain:
    """Units of a preset, without a single weight."""
    config = {**PRESETS, "micro": MICRO, "micro-wan": MICRO_WAN}[name]
    with torch.device("meta"):
        parts = parts_of(config, height, width)
        return wan_chain(config, parts, height, width, config.sampling.window)


def work(chain: Chain, kind: str) -> list[int]:
    return [unit.phases["step"].flop for unit in chain.chain if unit.kind == kind]


@pytest.fixture(scope="module")
def manifest(tiny_engine: Path) -> Manifest:
    return records.read(tiny_engine)


def unit_of(manifest: Manifest, kind: str) -> Unit:
    return next(unit for unit in (*manifest.prompt, *manifest.chain) if unit.kind == kind)


@pytest.mark.parametrize(
    ("name", "height", "width"),
    [("wan-1.3b", 480, 832), ("wan-1.3b", 512, 512), ("tiny", 256, 256)],
)
def test_no_unit_of_the_vae_does_over_12_percent_of_two_steps(
    name: str, height: int, width: int
) -> None:
    chain = chain_of(name, height, width)
    encode, decode = work(chain, "encode"), work(chain, "decode")
    step = sum(sum(work(chain, kind)) for kind in ("dit_in", "block", "dit_out"))
    total = sum(encode) + sum(decode) + 2 * step
    assert max(encode + decode) <= 0.12 * total


def test_work_is_that_of_the_published_model() -> None:
    chain = chain_of("wan-1.3b", 480, 832)
    step = sum(sum(work(chain, kind)) for kind in ("dit_in", "block", "dit_out"))
    assert sum(work(chain, "encode")) == pytest.approx(8.05e12, rel=0.005)
    assert sum(work(chain, "decode")) == pytest.approx(13.55e12, rel=0.005)
    assert step == pytest.approx(6.74e12, rel=0.005)


@pytest.mark.parametrize("name", ["micro", "micro-wan"])
def test_every_input_comes_from_an_earlier_output_or_from_the_runtime(name: str) -> None:
    chain = chain_of(name, SIZE, SIZE)
    given = {"token_ids", "token_mask", "pixels", "noisy", "timestep", "rope_time", "write_index"}
    given |= {"mask", "clean", "prompt_k", "prompt_v"}
    known: dict[str, tuple[object, ...]] = {}
    for phase in ("first", "step"):
        for unit in chain.units:
            spec = unit.phases.get(phase, unit.phases["step"])
            for binding in spec.inputs:
                if binding.tensor not in given:
                    assert known[binding.tensor] == binding.shape, (unit.name, binding)
            known |= {binding.tensor: binding.shape for binding in spec.outputs}
    assert known["latent"] == (1, 16, 1, SIZE // 8, SIZE // 8)
    assert known["velocity"] == ("B", 16, SIZE // 8, SIZE // 8)
    assert known["restyled"] == (1, 3, 4, SIZE, SIZE)


@pytest.mark.parametrize("name", ["micro", "micro-wan"])
def test_both_phases_of_a_unit_have_the_same_state(name: str) -> None:
    for unit in chain_of(name, SIZE, SIZE).chain:
        states = {spec.state for spec in unit.phases.values()}
        assert len(states) == 1
        assert set(unit.phases) == (
            {"first", "step"} if unit.kind in ("encode", "decode") else {"step"}
        )


def test_all_units_of_a_kind_are_one_graph_in_a_small_file(
    tiny_engine: Path, manifest: Manifest
) -> None:
    for kind in ("block", "prompt_kv"):
        units = [u for u in (*manifest.prompt, *manifest.chain) if u.kind == kind]
        plans = [unit.plans["step"] for unit in units]
        assert len(plans) == manifest.attention.blocks
        assert len({plan.graph_sha256 for plan in plans}) == 1
        assert len({plan.sha256 for plan in plans}) == len(plans)
        assert max((tiny_engine / plan.file).stat().st_size for plan in plans) < 16_000


def test_plans_hold_no_weights_no_paths_and_no_operator_that_nobody_runs(
    tiny_engine: Path, manifest: Manifest
) -> None:
    for unit in (*manifest.prompt, *manifest.chain):
        for plan in unit.plans.values():
            data = (tiny_engine / plan.file).read_bytes()
            assert not any(mark in data for mark in (b".py", b"/export", b"/tmp"))
            model = onnx.ModelProto.FromString(data)
            assert not model.metadata_props
            ours = Counter(node.op_type for node in model.graph.node if node.domain == DOMAIN)
            assert set(ours) <= {"Rows"}
            versions = {entry.domain: entry.version for entry in model.opset_import}
            assert versions == ({"": 24, DOMAIN: 1} if ours else {"": 24})
            if unit.kind == "block":
                assert ours == {"Rows": 2}


def test_phases_share_their_weights(tiny_engine: Path, manifest: Manifest) -> None:
    for unit in manifest.chain:
        if unit.kind == "encode":
            first, step = (
                weights_of((tiny_engine / unit.plans[phase].file).read_bytes())
                for phase in ("first", "step")
            )
            assert first == {name: step[name] for name in first}


def bind_in_place(engine: InferenceSession, feeds: Arrays, plan: Plan) -> tuple[Any, Arrays]:
    """IO binding in which each ring is one buffer, as input and as output."""
    binding, results = engine.io_binding(), {}
    aliases = {state.output: state.input for state in plan.state}
    for name, array in feeds.items():
        binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
    for output in plan.outputs:
        results[output.name] = np.zeros_like(feeds["x"])
    for name, array in (*results.items(), *((o, feeds[i]) for o, i in aliases.items())):
        binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
    return binding, results


def test_rings_are_updated_in_place_and_equal_pytorch_for_20_steps(
    tiny_engine: Path, manifest: Manifest, capfd: pytest.CaptureFixture[str]
) -> None:
    plan = unit_of(manifest, "block").plans["step"]
    spec = {u.name: u for u in twin(manifest, tiny_engine, MICRO, True).units}["block_0"].phases
    module = spec["step"].module
    engine = InferenceSession(
        tiny_engine / plan.file, session_options(), providers=["CPUExecutionProvider"]
    )
    rows, window = 2, manifest.window.frames
    tokens = manifest.geometry.tokens_per_frame
    feeds = random_inputs(manifest, plan, rows, "ring")
    feeds["k_ring"][:] = feeds["v_ring"][:] = 0
    k_ring, v_ring = (torch.from_numpy(feeds[name].copy()) for name in ("k_ring", "v_ring"))
    binding, results = bind_in_place(engine, feeds, plan)
    generator = np.random.default_rng(1)
    for frame in range(20):
        # The rows are at different frames, one of them with a window that is still filling.
        frames = np.array([frame, frame + 7])
        feeds["x"][:] = generator.standard_normal(feeds["x"].shape, np.float32)
        feeds["write_index"][:] = frames % window * tokens
        visible = np.arange(window * tokens) < (frames[:, None] + 1) * tokens
        feeds["mask"][:] = np.where(visible, 0, -np.inf)[:, None, None]
        engine.run_with_iobinding(binding)
        names = [b.name for b in plan.inputs]
        arguments = [torch.from_numpy(feeds[name]) for name in names]
        with torch.no_grad():
            x, k_ring, v_ring = module(*arguments, k_ring, v_ring)
        for got, expected in (
            (results["x_next"], x),
            (feeds["k_ring"], k_ring),
            (feeds["v_ring"], v_ring),
        ):
            assert np.abs(got - expected.numpy()).max() <= plan.tolerance
    # Its warning would say that it copies the ring.
    assert "TensorScatter" not in capfd.readouterr().err


def test_garbage_in_hidden_slots_changes_nothing(tiny_engine: Path, manifest: Manifest) -> None:
    plan = unit_of(manifest, "block").plans["step"]
    engine = session(tiny_engine / plan.file)
    feeds = random_inputs(manifest, plan, 3, "law 8")
    expected = run(engine, feeds)["x_next"]
    hidden = np.isneginf(feeds["mask"][:, 0, 0])
    assert hidden.any(axis=1).all()
    for garbage in (0.0, 1e4, -1e4):
        for name in ("k_ring", "v_ring"):
            feeds[name] = np.where(hidden[:, None, :, None], np.float32(garbage), feeds[name])
        assert np.array_equal(run(engine, feeds)["x_next"], expected)


@pytest.mark.parametrize("kind", ["dit_in", "block", "dit_out"])
def test_a_row_is_bit_identical_in_any_batch_and_with_any_threads(
    tiny_engine: Path, manifest: Manifest, kind: str
) -> None:
    plan = unit_of(manifest, kind).plans["step"]
    feeds = random_inputs(manifest, plan, 4, "rows")
    expected = run(session(tiny_engine / plan.file, 2), feeds)
    for threads in (1, 2):
        engine = session(tiny_engine / plan.file, threads)
        for first in range(4):
            for stop in range(first + 1, 5):
                got = run(engine, {name: array[first:stop] for name, array in feeds.items()})
                for name, array in got.items():
                    assert np.array_equal(array, expected[name][first:stop]), (name, first, stop)


class Deaf(nn.Module):
    """Has an input that it does not read."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        del y
        return x + 1


class Sum(nn.Module):
    """Reads both."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y


def test_an_unused_input_is_refused() -> None:
    arguments = (torch.zeros(2), torch.zeros(2))
    with pytest.raises(Error, match="unused input 'y'"):
        export_graph(Deaf(), arguments, ["x", "y"], ["z"], batched=False)


def test_a_list_of_names_that_is_too_short_is_refused() -> None:
    """A binding without a name would otherwise keep the exporter's own."""
    arguments = (torch.zeros(2), torch.zeros(2))
    for inputs, outputs in ((["x"], ["z"]), (["x", "y", "w"], ["z"]), (["x", "y"], [])):
        with pytest.raises(ValueError, match=r"zip\(\)"):
            export_graph(Sum(), arguments, inputs, outputs, batched=False)
    assert (
        len(export_graph(Sum(), arguments, ["x", "y"], ["z"], batched=False).model.graph.input) == 2
    )


@pytest.mark.parametrize("kind", ["encode", "decode"])
def test_a_wan_vae_unit_that_changes_the_frame_rate_equals_pytorch(
    tmp_path: Path, kind: str
) -> None:
    """Its first phase ignores one cache, or hands it on, and lacks some weights."""
    torch.manual_seed(0)
    parts = parts_of(MICRO_WAN, SIZE, SIZE, fold_time=True)
    chain = wan_chain(MICRO_WAN, parts, SIZE, SIZE, MICRO_WAN.sampling.window)
    unit = next(
        unit
        for unit in chain.chain
        if unit.kind == kind and any("time_conv" in s.input for s in unit.phases["first"].state)
    )
    stored = weights.write(Chain((), (unit,)), tmp_path)
    for phase, spec in unit.phases.items():
        graph = export_graph(
            spec.module,
            spec.arguments(),
            spec.input_names,
            spec.output_names,
            batched=False,
            may_ignore=[s.input for s in spec.state] if phase == "first" else [],
        )
        path = tmp_path / f"{phase}.onnx"
        path.write_bytes(attach_weights(lower_for_onnxruntime(graph), stored[unit.name, phase]))
        generator = np.random.default_rng(0)
        arguments = zip(spec.input_names, spec.arguments(), strict=True)
        feeds = {n: generator.standard_normal(a.shape, np.float32) for n, a in arguments}
        got, expected = run(session(path), feeds), run_module(spec, feeds)
        assert list(got) == list(expected)
        for name, array in got.items():
            assert np.abs(array - expected[name]).max() <= 1e-4, (phase, name)
