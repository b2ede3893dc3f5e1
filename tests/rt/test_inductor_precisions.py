"""Packages at bfloat16 and with linear layers of e4m3: what they compute, and a stream whose rings
and prompts are of bfloat16.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from micro_engine import MICRO, micro_options
from mixed_engine import Mixed, Packages, compiled
from torch import nn

from export import inductor, verify
from export.build import TOLERANCE, check
from export.gpu_commands import calibration_of
from export.narrow import NarrowLinear, narrow, narrowed_module
from rt import Pipeline, backends, manifest
from rt.backends.inductor import (
    NARROW,
    InductorBackend,
    InductorEngine,
    narrowed,
    read_card,
)
from rt.errors import ConfigError

PROMPT = (("prompt_in", "step"), ("prompt_kv_0", "step"))
BLOCK = (("block_0", "step"),)
"""With `PROMPT` all that touch rings and prompts."""
LARGEST = 448.0


@pytest.fixture(scope="module")
def packages(tiny_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Packages]:
    """By precision. Only blocks differ at fp8."""
    folder = tmp_path_factory.mktemp
    bf16 = compiled(tiny_engine, folder("bf16"), (*PROMPT, *BLOCK), "bf16")
    return {"bf16": bf16, "fp8": compiled(tiny_engine, folder("fp8"), BLOCK, "fp8", bf16)}


@pytest.mark.parametrize(
    "precision, name, rows",
    [
        ("bf16", "prompt_kv_1", 1), ("bf16", "block_1", 1), ("bf16", "block_0", 3),
        ("fp8", "block_1", 1), ("fp8", "block_0", 3),
    ],
)  # fmt: skip
def test_a_package_is_close_to_pytorch(
    packages: dict[str, Packages], precision: str, name: str, rows: int
) -> None:
    """Over bits: NumPy has no bfloat16, so its arrays are of uint16."""
    made = packages[precision]
    plan = made.new(name, "step")
    assert "bfloat16" in {b.dtype for b in (*plan.outputs, *plan.state)}
    chain = verify.twin(made.made, made.engine, MICRO, True)
    spec = next(u for u in chain.units if u.name == name).phases["step"]
    feeds = verify.random_inputs(made.made, plan, rows, "x")
    got = verify.run_bound(InductorBackend(1).load(made.folder, plan), plan, feeds)
    expected = verify.run_module(spec, feeds)
    worst = max(verify.difference(got[n], expected[n]) for n in expected)
    least = {"bf16": 1e-4, "fp8": 1e-3}[precision]
    assert least < worst <= TOLERANCE[precision]


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_a_stream_is_close_to_that_of_float32(
    packages: dict[str, Packages], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine chunks and two steps: pictures differ by a level or so in the mean, by few anywhere, and
    at the end, when the ring has turned over, by no more than at the start.
    """
    made = packages[precision]
    rng = np.random.default_rng(3)
    frames = [rng.integers(0, 255, (64, 64, 3), dtype=np.uint8) for _ in range(33)]
    kinds: set[Any] = set()

    def stream() -> np.ndarray[Any, Any]:
        with (
            Pipeline.load(made.engine, devices="cpu", steps=2) as pipeline,
            pipeline.session(prompt="ink", steps=2, seed=5) as session,
        ):
            memory = pipeline.stages[0].memory
            kinds.update({memory.k_ring.dtype, memory.prompt_v.dtype})
            return np.stack([frame.rgb for frame in session.stream(frames)])

    expected = stream()
    assert kinds == {np.dtype(np.float32)}
    monkeypatch.setattr(manifest, "read", lambda _: made.manifest())
    monkeypatch.setattr(manifest, "check_files", lambda *_: None)
    monkeypatch.setattr(backends, "create", lambda _name, threads: Mixed(threads, made))
    got = stream()
    assert np.dtype(np.uint16) in kinds
    apart = np.abs(got.astype(int) - expected)
    mean, most = {"bf16": (1, 12), "fp8": (1.5, 24)}[precision]
    assert 0 < apart.mean() <= mean
    assert apart.max() <= most
    assert apart[-4:].mean() <= 2 * apart[:5].mean()
    assert np.array_equal(stream(), got)


# e4m3


@given(
    st.lists(st.lists(st.floats(-1e4, 1e4, width=32), min_size=3, max_size=3), min_size=1),
)
@example([[0.0, 0.0, 0.0]])
@example([[2.0**-149] * 3])
@example([[3.4e38, -3.4e38, 1.0]])
def test_a_row_fills_the_range_and_keeps_four_bits(values: list[list[float]]) -> None:
    rows = torch.tensor(values)
    narrow_rows, scale = narrowed(rows)
    assert narrow_rows.dtype is NARROW
    assert narrow_rows.float().isfinite().all()
    largest = rows.abs().amax(1, keepdim=True)
    full = narrow_rows.float().abs().amax(1, keepdim=True)
    assert torch.where(largest > 1e-30, full == LARGEST, full <= LARGEST).all()
    error = (narrow_rows.float() * scale - rows).abs()
    # half a unit of four bits of a mantissa, or of the smallest numbers of a row at its scale
    limit = torch.maximum(rows.abs() / 16, largest * 2**-18).clamp(min=2**-100)
    assert (error <= limit * 1.0001).all()


def test_a_layer_is_the_product_of_what_it_narrowed() -> None:
    """Against three lines of NumPy; near to the layer that it stands for."""
    torch.manual_seed(0)
    linear = nn.Linear(64, 48)
    weight, scale = narrowed(linear.weight.detach())
    layer = NarrowLinear(linear)
    layer.weight, layer.scale = weight, scale
    x = torch.randn(2, 5, 64) * torch.logspace(-3, 3, 10).view(2, 5, 1)
    got = layer(x).detach()
    assert got.dtype is torch.bfloat16
    given, size = (t.double().numpy() for t in narrowed(x.flatten(0, 1)))
    product = (given * size) @ (weight.double() * scale).numpy().T
    expected = (product + linear.bias.detach().double().numpy()).reshape(2, 5, 48)
    assert np.abs(got.double().numpy() - expected).max() <= 2**-7 * np.abs(expected).max()
    near = linear(x).detach()
    apart = (got.float() - near).norm(dim=-1) / near.norm(dim=-1)
    assert 1e-3 < apart.max() <= 0.06


def test_no_row_of_a_layer_depends_on_another() -> None:
    linear = nn.Linear(64, 48)
    layer = NarrowLinear(linear)
    layer.weight, layer.scale = narrowed(linear.weight.detach())
    x = torch.randn(3, 7, 64)
    together = layer(x)
    x[1:] *= 1e3
    assert torch.equal(layer(x)[0], together[0])
    assert torch.equal(layer(x[:1])[0], together[0])


def test_blocks_hold_their_matrices_in_one_byte(packages: dict[str, Packages]) -> None:
    """And nothing else of them is narrow; a weight that is read twice is narrowed once."""
    made = packages["fp8"]
    plan = made.new("block_1", "step")
    card = read_card(made.folder / plan.file)
    assert set(card.narrow) == {
        *(f"self_attn.{n}.weight" for n in "qkvo"), "cross_attn.q.weight", "cross_attn.o.weight",
        "ffn.0.weight", "ffn.2.weight",
    }  # fmt: skip
    backend = InductorBackend(1)
    (first, second) = (backend.load(made.folder, plan) for _ in range(2))
    assert isinstance(first, InductorEngine)
    assert isinstance(second, InductorEngine)
    held = [t for t in first._weights if t.dtype is NARROW]
    d, f = MICRO.dit.width, MICRO.dit.ffn
    assert sum(t.nbytes for t in held) == 6 * d * d + 2 * d * f
    assert [t.data_ptr() for t in first._weights] == [t.data_ptr() for t in second._weights]


def test_only_linear_layers_of_blocks_are_narrow_and_the_module_stays_as_it_was() -> None:
    from export.models.dit import Block, DitIn, PromptKV

    block = Block(MICRO.dit)
    names, before = narrow(block, "fp8"), dict(block.named_modules())
    assert len(names) == 8
    assert not narrow(block, "bf16")
    assert not narrow(PromptKV(MICRO.dit), "fp8")
    assert not narrow(DitIn(MICRO.dit, 8, 8), "fp8")
    changed = narrowed_module(block, names)
    assert dict(block.named_modules()) == before
    assert sum(isinstance(m, NarrowLinear) for m in changed.modules()) == 8
    assert changed.get_parameter("self_attn.norm_q.weight") is block.self_attn.norm_q.weight


def test_a_calibration_that_lies_beside_the_weights_is_left_there(tmp_path: Path) -> None:
    (tmp_path / "fp8.json").touch()
    found = {
        backend: calibration_of(
            argparse.Namespace(
                backend=backend, precision="fp8", checkpoint=tmp_path, calibration=None
            )
        )
        for backend in ("inductor", "tensorrt")
    }
    assert found == {"inductor": None, "tensorrt": tmp_path / "fp8.json"}


def test_fp8_needs_no_calibration_but_a_gpu_that_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = micro_options(tmp_path, backend="inductor", precision="fp8")
    check(options)
    calibrated = micro_options(
        tmp_path, backend="inductor", precision="fp8", calibration=tmp_path / "fp8.json"
    )
    with pytest.raises(ConfigError, match=r"for fp8 of .*tensorrt.*, else none"):
        check(calibrated)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, has in (((8, 9), True), ((9, 0), True), ((12, 0), True), ((8, 6), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda c=capability: c)
        inductor.check_precision("bf16")
        if has:
            check(options)
            continue
        with pytest.raises(ConfigError, match=r"capability 8.6, which multiplies e4m3 from 8.9 on"):
            check(options)
