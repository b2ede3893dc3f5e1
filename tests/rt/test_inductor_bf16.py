"""Packages at bfloat16: what they compute, and a stream whose rings and prompts are of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from micro_engine import MICRO
from mixed_engine import Mixed, Packages, compiled

from export import verify
from export.build import TOLERANCE
from rt import Pipeline, backends, manifest
from rt.backends.inductor import InductorBackend

COMPILED = (("prompt_in", "step"), ("prompt_kv_0", "step"), ("block_0", "step"))
"""All that touch rings and prompts."""


@pytest.fixture(scope="module")
def packages(tiny_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Packages:
    return compiled(tiny_engine, tmp_path_factory.mktemp("bf16"), COMPILED, "bf16")


@pytest.mark.parametrize("name, rows", [("prompt_kv_1", 1), ("block_1", 1), ("block_0", 3)])
def test_a_package_is_close_to_pytorch(packages: Packages, name: str, rows: int) -> None:
    """Over bits: NumPy has no bfloat16, so its arrays are of uint16."""
    plan = packages.new(name, "step")
    assert "bfloat16" in {b.dtype for b in (*plan.outputs, *plan.state)}
    chain = verify.twin(packages.made, packages.engine, MICRO, True)
    spec = next(u for u in chain.units if u.name == name).phases["step"]
    feeds = verify.random_inputs(packages.made, plan, rows, "x")
    got = verify.run_bound(InductorBackend(1).load(packages.folder, plan), plan, feeds)
    expected = verify.run_module(spec, feeds)
    worst = max(verify.difference(got[n], expected[n]) for n in expected)
    assert 1e-4 < worst <= TOLERANCE["bf16"]


def test_a_stream_is_close_to_that_of_float32(
    packages: Packages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine chunks and two steps: pictures differ by a level in the mean, by few anywhere, and at
    the end, when the ring has turned over, by no more than at the start.
    """
    rng = np.random.default_rng(3)
    frames = [rng.integers(0, 255, (64, 64, 3), dtype=np.uint8) for _ in range(33)]
    kinds: set[Any] = set()

    def stream() -> np.ndarray[Any, Any]:
        with (
            Pipeline.load(packages.engine, devices="cpu", steps=2) as pipeline,
            pipeline.session(prompt="ink", steps=2, seed=5) as session,
        ):
            memory = pipeline.stages[0].memory
            kinds.update({memory.k_ring.dtype, memory.prompt_v.dtype})
            return np.stack([frame.rgb for frame in session.stream(frames)])

    expected = stream()
    assert kinds == {np.dtype(np.float32)}
    monkeypatch.setattr(manifest, "read", lambda _: packages.manifest())
    monkeypatch.setattr(manifest, "check_files", lambda *_: None)
    monkeypatch.setattr(backends, "create", lambda _name, threads: Mixed(threads, packages))
    got = stream()
    assert np.dtype(np.uint16) in kinds
    apart = np.abs(got.astype(int) - expected)
    assert 0 < apart.mean() <= 1
    assert apart.max() <= 12
    assert apart[-4:].mean() <= 2 * apart[:5].mean()
    assert np.array_equal(stream(), got)
