"""Linear layers of a block in e4m3: the graph by ONNX Runtime against float32, scales by hand, and
an engine of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from micro_engine import MICRO, SIZE, micro_options, remembered_exports
from standard_operators import standard_operators
from test_precision import difference, feeds_of, graph_of, narrowed, run

from export import calibration
from export import commands as cli
from export.build import TOLERANCE, build_engines, check, open_chain, weights_digest
from export.models.presets import PRESETS
from export.precision import at_precision, rounded, weight_facts
from export.quantize import E4M3, LARGEST, is_scale, layer_of, narrow_weight, quantised, scale_of
from export.trial import build_and_delete
from export.units import UnitSpec, parts_of, wan_chain
from rt.errors import ConfigError

WIDE = replace(MICRO, name="micro-64", dit=replace(MICRO.dit, width=128, heads=2, head_dim=64))
LAYERS = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o",
          "cross_attn.q", "cross_attn.o", "ffn.0", "ffn.2")  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _remember() -> Iterator[None]:
    with remembered_exports():
        yield


@pytest.fixture(scope="module")
def block() -> UnitSpec:
    """The first block of `tiny`, at its own size."""
    torch.manual_seed(0)
    tiny = PRESETS["tiny"]
    return next(
        u for u in wan_chain(tiny, parts_of(tiny, SIZE, SIZE), SIZE, SIZE, 6).chain
        if u.name == "block_0"
    )  # fmt: skip


def sizes_of(block: UnitSpec, feeds: dict[str, Any]) -> calibration.Amax:
    found: calibration.Amax = {}
    spec = block.phases["step"]
    arguments = [torch.from_numpy(feeds[name]) for name in spec.input_names]
    with torch.no_grad(), calibration._watched(spec.module, "", found):
        spec.module(*arguments)
    return found


def twin(block: UnitSpec, feeds: dict[str, Any], amax: calibration.Amax) -> dict[str, Any]:
    """What ONNX Runtime makes of the quantised graph; its e4m3 weights are constants there."""
    _, graph = graph_of(block)
    low = standard_operators(quantised(at_precision(graph, "fp8")))
    onnx.checker.check_model(low.model, full_check=True)
    feeds = dict(feeds)
    constants = []
    for name, (kind, shape) in weight_facts(low).items():
        weight = torch.from_numpy(feeds[f"unit.{layer_of(name)}.weight"]) if (
            kind == E4M3 or is_scale(name)) else None  # fmt: skip
        if weight is not None and is_scale(name):
            feeds[f"unit.{name}"] = scale_of(name, weight, amax[layer_of(name)]).numpy()
            assert feeds[f"unit.{name}"].shape == shape
        elif weight is not None:
            raw = narrow_weight(weight).view(torch.uint8).numpy().tobytes()
            e4m3 = onnx.TensorProto.FLOAT8E4M3FN
            constants.append(onnx.helper.make_tensor(f"unit.{name}", e4m3, shape, raw, raw=True))
    for constant in constants:
        del feeds[constant.name]
    model = rounded(low, "fp8").model
    model.graph.initializer.extend(constants)
    left = [v for v in model.graph.input if v.name in feeds]
    del model.graph.input[:]
    model.graph.input.extend(left)
    return run(model, narrowed(low, feeds, "fp8"))


def test_onnx_runtime_computes_it_within_the_tolerance_of_fp8(block: UnitSpec) -> None:
    """And worse than bf16 does, or nothing was quantised."""
    spec, graph = graph_of(block)
    feeds = feeds_of(spec, graph, "block_0")
    amax = sizes_of(block, feeds)
    assert set(amax) == set(LAYERS)
    exact = run(standard_operators(graph).model, feeds)
    rough = twin(block, feeds, amax)
    low = standard_operators(at_precision(graph, "bf16"))
    bf16 = run(rounded(low, "bf16").model, narrowed(low, feeds, "bf16"))
    best = max(difference(bf16[n], exact[n]) for n in exact)
    worst = max(difference(rough[n], exact[n]) for n in exact)
    assert 2 * best < worst <= TOLERANCE["fp8"], (best, worst)
    tight = twin(block, feeds, {name: size / 64 for name, size in amax.items()})
    assert max(difference(tight[n], exact[n]) for n in exact) > 4 * worst, "nothing saturates"


@given(
    st.lists(st.lists(st.floats(-1e4, 1e4, width=32), min_size=3, max_size=3), min_size=1),
    st.floats(1e-3, 1e5),
)
@example([[0.0, 0.0, 2.0**-121]], 1.0)
@example([[2.0**-149] * 3], 1e5)
def test_scales_fill_the_range_and_cancel(rows: list[list[float]], amax: float) -> None:
    weight = torch.tensor(rows)
    narrow = narrow_weight(weight).float()
    assert narrow.isfinite().all()
    assert narrow.abs().max() <= LARGEST
    entering = scale_of("a.weight.input_scale", weight, amax)
    leaving = scale_of("a.weight.output_scale", weight, amax)
    assert LARGEST / 2 <= amax * entering <= LARGEST
    assert torch.equal(entering.bfloat16().float(), entering)
    error = (narrow * (leaving * entering)[:, None] - weight).abs()
    # half a unit of four bits of a mantissa, or of the smallest numbers of a row at its scale
    limit = torch.maximum(weight.abs() / 16, weight.abs().amax(1, keepdim=True) * 2**-17)
    assert (error <= limit.clamp(min=2**-70)).all()


def test_calibration_sees_what_a_stream_through_whole_modules_sees(tmp_path: Path) -> None:
    """The same noise, frame after frame instead of block after block."""
    options = micro_options(
        tmp_path, config=WIDE, backend="tensorrt-rtx", compute_capability=("8.9",), precision="bf16"
    )
    opened = open_chain(options)
    amax = calibration.calibrate(options, opened, 8, lambda *_: None)
    assert set(amax) == {f"block_{i}.{layer}" for i in (0, 1) for layer in LAYERS}
    run_ = calibration._Run(options, opened)
    entered, context = run_.enter(8)
    found: calibration.Amax = {}
    rings: dict[int, list[torch.Tensor]] = {}
    frames, sinks, tokens = options.frames, options.pinned, (SIZE // 16) ** 2
    for frame, (x, modulation, _, rope) in enumerate(entered):
        slot = frame if frame < frames else sinks + (frame - sinks) % (frames - sinks)
        mask = torch.zeros(len(x), 1, 1, frames * tokens)
        mask[..., (min(frame, frames - 1) + 1) * tokens :] = -torch.inf
        for index in (0, 1):
            keys = run_.call(f"prompt_kv_{index}", context)
            ring = torch.zeros(len(x), 2, frames * tokens, 64)
            rings.setdefault(index, [ring, ring])
            module, weights = run_._loaded(f"block_{index}")
            place = torch.full((len(x),), slot * tokens)
            many = [k.expand(len(x), -1, -1, -1).contiguous() for k in keys]
            with torch.no_grad(), calibration._watched(module, f"block_{index}.", found):
                x, *rings[index] = torch.func.functional_call(
                    module, weights, (x, modulation, rope, place, mask, *many, *rings[index])
                )
    assert found == pytest.approx(amax, rel=1e-5)


def test_an_engine_of_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibrated by a command, built for both GPUs; products have one byte for each weight."""
    monkeypatch.setitem(PRESETS, "tiny", WIDE)
    sizes = tmp_path / "sizes.json"
    command = ["calibrate", "--model", "tiny", "--seed", "0", "--height", "64", "--width", "64"]
    assert cli.main([*command, "--frames", "2", "--out", str(sizes)]) == 0
    options = micro_options(
        tmp_path, config=WIDE, backend="tensorrt-rtx",
        precision="fp8", compute_capability=("8.9", "12.0"), calibration=sizes,
    )  # fmt: skip
    ((name, entry),) = build_and_delete(options, ("block_0",), lambda *_: None).found
    assert name == "block_0 step"
    d, f = WIDE.dit.width, WIDE.dit.ffn
    narrow = 6 * d * d + 2 * d * f
    # biases and scales of the outputs; scales of four inputs to six layers, of one to each of two
    low = 2 * (7 * d + f) + 6
    wide = 6 * d + 2 * d + 3 * d
    assert entry.weights == narrow + 2 * low + 4 * wide


def test_a_calibration_that_does_not_fit(tmp_path: Path) -> None:
    facts: dict[str, Any] = {"config": WIDE, "backend": "tensorrt-rtx", "precision": "fp8",
                             "compute_capability": ("8.9",)}  # fmt: skip
    with pytest.raises(ConfigError, match="calibration: got None for fp8, expected the file"):
        check(micro_options(tmp_path, **facts))
    path = tmp_path / "fp8.json"
    options = micro_options(tmp_path, **facts, calibration=path)
    calibration.write(path, "other", {})
    with pytest.raises(ConfigError, match="is of other weights; make it again"):
        build_engines(options)
    path.write_text("[]")
    with pytest.raises(ConfigError, match="is none"):
        build_engines(options)
    calibration.write(path, weights_digest(options), {"block_0.ffn.0": 3.0})
    assert calibration.read(path, weights_digest(options)) == {"block_0.ffn.0": 3.0}
