"""Packages of AOTInductor against ONNX Runtime: units, and a stream whose blocks they run."""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from micro_engine import MICRO
from mixed_engine import Mixed, Packages, compiled

from export import inductor, verify
from export.models.vae_layers import RmsNorm
from export.onnx import Stored
from export.units import PhaseSpec, parts_of, wan_chain
from export.verify import run, run_bound, session
from rt import Pipeline, backends, manifest
from rt.backends.inductor import (
    CARD,
    InductorBackend,
    Recorder,
    entering,
    laid_out,
    read_card,
)
from rt.errors import ConfigError, EngineMismatch

COMPILED = (("block_0", "step"), ("decode_1", "first"))
"""A graph with rings and free rows, and one with caches."""


@pytest.fixture(scope="module")
def packages(tiny_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Packages:
    return compiled(tiny_engine, tmp_path_factory.mktemp("packages"), COMPILED, "fp32")


@pytest.mark.parametrize(
    "name, phase, rows", [*((*c, 1) for c in COMPILED), ("block_0", "step", 3)]
)
def test_a_package_equals_onnxruntime(packages: Packages, name: str, phase: str, rows: int) -> None:
    old, plan = packages.old(name, phase), packages.new(name, phase)
    feeds = verify.random_inputs(packages.made, plan, rows, name)
    got = run_bound(InductorBackend(1).load(packages.folder, plan), plan, feeds)
    expected = run(session(packages.engine / old.file), feeds)
    assert set(got) == set(expected)
    for output, array in expected.items():
        assert verify.difference(got[output], array) <= plan.tolerance, output


def test_blocks_share_one_library_and_read_their_own_weights(packages: Packages) -> None:
    backend = InductorBackend(1)
    plans = [packages.new(f"block_{i}", "step") for i in (0, 1)]
    one, two = (backend.load(packages.folder, plan) for plan in plans)
    assert len(backend._loaders) == 1
    feeds = verify.random_inputs(packages.made, plans[0], 1, "x")
    first, second = (run_bound(e, plans[0], feeds)["x_next"] for e in (one, two))
    assert np.abs(first - second).max() > 1e-2


def test_no_weight_is_in_a_package(packages: Packages) -> None:
    weights = (packages.folder / "weights.safetensors").read_bytes()
    plan = packages.new("block_0", "step")
    with zipfile.ZipFile(packages.folder / plan.file) as archive:
        inside = b"".join(archive.read(name) for name in archive.namelist())
    for file, offset, length, *_ in read_card(packages.folder / plan.file).weights.values():
        sample = weights[offset : offset + min(length, 64)]
        assert file == "weights.safetensors"
        assert len(set(sample)) < 8 or sample not in inside


def test_a_stream_through_packages_equals_the_stream_of_onnxruntime(
    packages: Packages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine chunks: the ring fills, turns over, and two rows run as one batch."""
    rng = np.random.default_rng(3)
    frames = [rng.integers(0, 255, (64, 64, 3), dtype=np.uint8) for _ in range(33)]

    def stream() -> np.ndarray[Any, Any]:
        with (
            Pipeline.load(packages.engine, devices="cpu", steps=2) as pipeline,
            pipeline.session(prompt="ink", steps=2, seed=5) as session,
        ):
            return np.stack([frame.rgb for frame in session.stream(frames)])

    expected = stream()
    monkeypatch.setattr(backends, "create", lambda _name, threads: Mixed(threads, packages))
    got = stream()
    assert len(got) == len(frames)
    # both round to whole levels: a difference of 1e-4 can tip one level
    assert np.abs(got.astype(int) - expected.astype(int)).max() <= 1
    assert (got != expected).mean() < 0.01


@pytest.mark.parametrize(
    "field, value, says",
    [
        ("torch", "1.0", "is for torch 1.0, here is"),
        ("device", "sm_10", "is compiled for sm_10, here is"),
        ("graph", None, "no package of this exporter"),
    ],
)
def test_a_package_for_something_else_is_refused(
    packages: Packages, tmp_path: Path, field: str, value: str | None, says: str
) -> None:
    """Before its library is opened, which may crash instead of failing."""
    plan = packages.new("block_0", "step")
    source, target = packages.folder / plan.file, tmp_path / plan.file
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        (name,) = (n for n in old.namelist() if n.endswith(CARD))
        fields = json.loads(old.read(name))
        fields[field] = value
        if value is None:
            del fields[field]
        new.writestr(name, json.dumps(fields))
    with pytest.raises(EngineMismatch, match=says):
        InductorBackend(1).load(tmp_path, plan)


def test_bindings_that_do_not_fit_are_refused(packages: Packages) -> None:
    plan = packages.new("block_0", "step")
    engine = InductorBackend(1).load(packages.folder, plan)
    feeds = verify.random_inputs(packages.made, plan, 1, "x")
    with pytest.raises(EngineMismatch, match=r"mask is float32 \['B', 1, 1, 96\]"):
        run_bound(engine, plan, feeds | {"mask": np.zeros((1, 1, 1, 95), np.float32)})
    with pytest.raises(EngineMismatch, match=r"bindings \['strange'\]"):
        run_bound(engine, plan, feeds | {"strange": feeds["mask"]})


def test_short_rows_are_compiled_for_any_address() -> None:
    """A package on a GPU reads 16 bytes at once where the example begins at a multiple of them."""
    spec = _block()
    unit = inductor._InPlace(spec, tuple(spec.module.state_dict()), "fp32")
    nodes = [n for n in unit.export().graph.nodes if n.op == "placeholder"][: len(unit.bindings)]
    offsets = dict(zip(unit.bindings, (n.meta["val"].storage_offset() for n in nodes), strict=True))
    assert {name for name, offset in offsets.items() if offset} == {"write_index"}


def test_weights_of_convolutions_have_their_channels_last_on_a_gpu_alone() -> None:
    """As the compiler is told, so the runtime gives them; both ask here."""
    shapes = {4: (8, 4, 3, 3), 5: (8, 4, 3, 3, 3), 2: (8, 4)}
    there = {n: laid_out(torch.empty(s, device="meta")) for n, s in shapes.items()}
    assert there[4].is_contiguous(memory_format=torch.channels_last)
    assert there[5].is_contiguous(memory_format=torch.channels_last_3d)
    assert there[2].is_contiguous()
    assert all(laid_out(torch.empty(s)).is_contiguous() for s in shapes.values())
    (entered,) = entering(torch.ones(8, 4, 3, 3, 3, device="meta"), torch.bfloat16)
    assert entered.stride() == there[5].stride()


def test_what_the_vae_normalises_stays_in_the_type_that_came_in() -> None:
    """gamma is float32 at every precision: a wider result would be carried to the convolution."""
    norm = RmsNorm(8, 3)
    torch.nn.init.normal_(norm.gamma)
    x = torch.randn(1, 8, 2, 4, 4)
    exact, low = norm(x), norm(x.bfloat16())
    assert (exact.dtype, low.dtype) == (torch.float32, torch.bfloat16)
    assert (low - exact).abs().max() <= 2**-7 * exact.abs().max()


@pytest.mark.parametrize("rows", [1, 2])
def test_bfloat16_is_close_to_float32_and_keeps_the_rings_small(
    tiny_engine: Path, rows: int
) -> None:
    """Autocast: weights, rings and prompt in bfloat16, the residual stream in float32."""
    spec = _block()
    lowered = inductor.in_precision(spec, "bf16")
    kinds = {b.name: b.dtype for b in (*lowered.inputs, *lowered.outputs)}
    assert kinds["prompt_k"] == lowered.state[0].dtype == "bfloat16"
    assert kinds["x"] == kinds["x_next"] == kinds["rope"] == "float32"
    made = manifest.read(tiny_engine)
    plan = next(u for u in made.chain if u.name == "block_0").plans["step"]
    feeds = verify.random_inputs(made, plan, rows, "bf16")
    expected = verify.run_module(spec, feeds)
    unit = inductor._InPlace(lowered, tuple(spec.module.state_dict()), "bf16")
    arrays = [torch.from_numpy(feeds[n]) for n in spec.input_names]
    given = dict(zip(spec.input_names, arrays, strict=True)) | {"x_next": torch.empty(1)}
    bound = {n: given[n].to(getattr(torch, v.dtype)) for n, v in unit.bindings.items()}
    bound["x_next"] = torch.full_like(bound["x"], torch.nan)
    wide = inductor._wide(spec.module)
    assert {"modulation", "norm3.weight", "self_attn.norm_q.weight"} <= wide
    weights = spec.module.state_dict()
    held = [w.detach() if name in wide else w.detach().bfloat16() for name, w in weights.items()]
    with torch.no_grad(), inductor._quiet():
        unit(*bound.values(), *held)
    for name, array in expected.items():
        got = bound[unit.aliases.get(name, name)].float().numpy()
        assert np.linalg.norm(got - array) <= 2e-2 * np.linalg.norm(array), name


def _block() -> PhaseSpec:
    """A block with random weights."""
    torch.manual_seed(0)
    chain = wan_chain(MICRO, parts_of(MICRO, 64, 64, text=False), 64, 64, 6)
    spec = next(u for u in chain.units if u.name == "block_0").phases["step"]
    for tensor in spec.module.parameters():
        torch.nn.init.normal_(tensor, std=0.1)
    return spec


class Cuda:
    """What a recorder uses of `torch.cuda`; writes down on what is captured and replayed."""

    def __init__(self) -> None:
        self.said: list[tuple[object, ...]] = []
        self.now: Any = "default"
        self.empty_cache = lambda: None

    def ExternalStream(self, handle: int, device: torch.device) -> Any:
        waits = {"wait_stream": lambda _: None, "synchronize": lambda: None}
        return SimpleNamespace(name=(handle, str(device)), **waits)

    def current_stream(self) -> Any:
        return self.now

    def graph_pool_handle(self) -> object:
        return object()

    def device(self, _device: torch.device) -> Any:
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.now = self.now, stream
        yield
        self.now = before

    def CUDAGraph(self) -> Any:
        return SimpleNamespace(replay=lambda: self.said.append(("replay", self.now.name)))

    @contextlib.contextmanager
    def graph(self, _graph: Any, pool: object, stream: Any, mode: str) -> Iterator[None]:
        self.said.append(("capture", stream.name, pool, mode))
        with self.stream(stream):
            yield


def test_graphs_of_a_device_are_captured_on_its_queue_and_share_their_scratch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The scratch of a matrix product belongs to the CUDA stream that it was captured on: two
    queues of one GPU must not have one.
    """
    cuda = Cuda()
    monkeypatch.setattr(torch, "cuda", cuda)
    ran: list[object] = []

    def launch() -> None:
        assert not torch.backends.cudnn.allow_tf32
        ran.append(cuda.now.name)

    one, two = Recorder(0, 7), Recorder(0, 8)
    replays = [recorder.capture([launch]) for recorder in (one, one, two)]
    assert ran == [(7, "cuda:0")] * 4 + [(8, "cuda:0")] * 2
    assert torch.backends.cudnn.allow_tf32
    pools = [pool for _, _, pool, _ in cuda.said]
    assert pools[0] is pools[1]
    assert pools[0] is not pools[2]
    assert {mode for *_, mode in cuda.said} == {"thread_local"}
    cuda.said.clear()
    for replay in replays:
        replay()
    assert [name for _, name in cuda.said] == [(7, "cuda:0")] * 2 + [(8, "cuda:0")]


@pytest.mark.gpu
@pytest.mark.parametrize("precision, most", [("fp32", 5e-3), ("bf16", 8e-2), ("fp8", 2e-1)])
def test_a_captured_package_equals_pytorch_on_the_gpu(
    cuda: Any, tmp_path: Path, precision: str, most: float
) -> None:
    """Compiled for the GPU, captured as a CUDA graph, replayed over changed inputs, in rows that
    begin where another one ends. A GPU without e4m3 says so instead.
    """
    spec = _block()
    typed = inductor.in_precision(spec, precision)
    if precision == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        with pytest.raises(ConfigError, match="multiplies e4m3 from"):
            inductor.compile_package(typed, precision=precision)
        return
    package = inductor.compile_package(typed, precision=precision)
    nowhere = {name: Stored("", 0, 0, "float32", ()) for name in package.weights}
    path = tmp_path / "block.pt2"
    path.write_bytes(inductor.plan(package, nowhere))
    weights, card = spec.module.state_dict(), read_card(path)
    engine = InductorBackend(1).engine(
        path, lambda name, device: entering(weights[name].to(device), card.kind(name))
    )
    torch.manual_seed(1)
    feeds = {
        name: torch.randn_like(a).numpy() if a.is_floating_point() else a.numpy()
        for name, a in zip(spec.input_names, spec.arguments(), strict=True)
    }
    kinds = {b.name: b.dtype for b in typed.inputs} | {s.input: s.dtype for s in typed.state}
    given = {name: verify.as_bound(array, kinds[name]) for name, array in feeds.items()}
    arrays = {n: cuda.zeros((len(a) + 1, *a.shape[1:]), a.dtype)[1:] for n, a in given.items()}
    arrays["x_next"] = cuda.asarray(np.full_like(feeds["x"], np.nan))
    arrays |= {"k_ring_next": arrays["k_ring"], "v_ring_next": arrays["v_ring"]}
    kinds |= {"x_next": "float32"} | {s.output: s.dtype for s in typed.state}
    launch = engine.bind(arrays)
    for name, array in given.items():
        arrays[name].set(array)
    launch()
    torch.cuda.synchronize()
    for name, expected in verify.run_module(spec, feeds).items():
        got = verify.as_float(cuda.asnumpy(arrays[name]), kinds[name])
        assert verify.difference(got, expected) <= most, name
