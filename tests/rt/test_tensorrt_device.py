"""Engines of TensorRT on a GPU: against their twins, over garbage, as graphs, in two contexts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from micro_engine import MICRO, SIZE, micro_options
from numpy.typing import NDArray

from export import checkpoints, tensorrt, verify
from export.build import Built, build_engines
from export.units import UnitSpec, concrete, wan_chain
from rt.backends.base import library_name
from rt.backends.tensorrt import FLAVOURS, TensorRtBackend, capture, library
from rt.manifest import Plan

WIDE = replace(MICRO, name="micro-64", dit=replace(MICRO.dit, width=128, heads=2, head_dim=64))
"""A head that fused attention has kernels for."""
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class World:
    """An engine of this GPU, its backend, and the modules that it was made of."""

    cupy: Any
    built: Built
    backend: TensorRtBackend
    units: tuple[UnitSpec, ...]

    def plan(self, unit: str, phase: str = "step") -> Plan:
        manifest = self.built.manifest
        found = (u for u in (*manifest.prompt, *manifest.chain) if u.name == unit)
        return next(found).plans[phase]

    def bound(self, plan: Plan, feeds: Mapping[str, NDArray[Any]]) -> tuple[Any, dict[str, Any]]:
        """A launch over device copies of `feeds`, and its results on the device."""
        rows = next(iter(feeds.values())).shape[0]
        kinds = {b.name: b.dtype for b in plan.inputs} | {s.input: s.dtype for s in plan.state}
        given = {n: self.cupy.asarray(verify.as_bound(a, kinds[n])) for n, a in feeds.items()}
        results: dict[str, Any] = {}
        for b in plan.outputs:
            results[b.name] = self._empty(concrete(b.shape, rows), b.dtype)
        for s in plan.state:
            fresh = self._empty(concrete(s.shape, rows), s.dtype)
            results[s.output] = given[s.input] if s.mode == "alias" else fresh
        engine = self.backend.load(self.built.directory, plan)
        return engine.bind(given | results), results

    def _empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        return self.cupy.asarray(verify.as_bound(np.full(shape, np.nan, np.float32), dtype))

    def seen(self, plan: Plan, results: Mapping[str, Any]) -> Arrays:
        self.cupy.cuda.get_current_stream().synchronize()
        kinds = {b.name: b.dtype for b in plan.outputs} | {s.output: s.dtype for s in plan.state}
        return {n: verify.as_float(self.cupy.asnumpy(a), kinds[n]) for n, a in results.items()}

    def run(self, plan: Plan, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        launch, results = self.bound(plan, feeds)
        launch()
        return self.seen(plan, results)

    def feeds(self, plan: Plan, rows: int, seed: str) -> Arrays:
        return verify.random_inputs(self.built.manifest, plan, rows, seed)


def absent(reason: str) -> NoReturn:
    """Skip, but where everything is required."""
    if os.environ.get("RT_REQUIRE_GPU") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture
def world(cuda: Any, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Built by the first test, found up to date by the others."""
    flavour = next((f for f in FLAVOURS if library_name(f) is not None), None)
    if flavour is None:
        absent("neither TensorRT nor TensorRT for RTX is installed")
    number = cuda.cuda.Device(0).compute_capability
    here = f"{number[:-1]}.{number[-1]}"
    if (known := tensorrt._capabilities(library(flavour))) and here not in known:
        absent(f"{flavour} does not build for GPUs of {here}")
    folder: Path = tmp_path_factory.getbasetemp() / "tensorrt-device"
    weights = folder / "weights"
    if not weights.is_dir():
        checkpoints.write_random(WIDE, weights, 0)
    options = micro_options(
        folder, config=WIDE, backend=flavour, precision="bf16", checkpoint=weights,
        compute_capability=(here,),
    )  # fmt: skip
    built = build_engines(options)
    parts = checkpoints.load_parts(WIDE, weights, SIZE, SIZE, fold_time=False)
    chain = wan_chain(WIDE, parts, SIZE, SIZE, options.frames)
    return World(cuda, built, TensorRtBackend(flavour), chain.units)


@pytest.mark.gpu
def test_every_engine_equals_its_twin(world: World) -> None:
    for unit in world.units:
        for phase, spec in unit.phases.items():
            plan = world.plan(unit.name, phase)
            for rows in (1, 3) if spec.batched else (1,):
                feeds = world.feeds(plan, rows, unit.name)
                got, expected = world.run(plan, feeds), verify.run_module(spec, feeds)
                for name, array in expected.items():
                    worst = verify.difference(got[name], array)
                    assert worst <= plan.tolerance, (unit.name, phase, rows, name)


@pytest.mark.gpu
def test_garbage_in_slots_that_are_hidden_changes_nothing(world: World) -> None:
    """Law 8, bit for bit: it decides whether a row mask may be used."""
    plan, tokens = world.plan("block_0"), (SIZE // 16) ** 2
    feeds = world.feeds(plan, 2, "poison")
    feeds["write_index"][:] = 0
    feeds["mask"][...] = 0
    feeds["mask"][..., 2 * tokens :] = -np.inf
    first = world.run(plan, feeds)["x_next"]
    for ring in ("k_ring", "v_ring"):
        feeds[ring][:, :, 2 * tokens :] = 1e4
    assert np.isfinite(first).all()
    assert np.array_equal(world.run(plan, feeds)["x_next"], first)


@pytest.mark.gpu
def test_a_graph_replays_what_a_launch_does(world: World) -> None:
    plan = world.plan("block_0")
    feeds = world.feeds(plan, 2, "graph")
    expected = world.run(plan, feeds)
    launch, results = world.bound(plan, feeds)
    replay = capture([launch], world.cupy)
    for array in results.values():
        if array is not results["k_ring_next"] and array is not results["v_ring_next"]:
            array.fill(0)
    replay()
    got = world.seen(plan, results)
    for name, array in expected.items():
        assert np.array_equal(got[name], array), name


@pytest.mark.gpu
def test_two_contexts_in_turn_are_each_alone(world: World) -> None:
    """Batches of one and of three share an engine and its scratch."""
    plan = world.plan("block_1")
    feeds = [world.feeds(plan, rows, "context") for rows in (1, 3)]
    alone = [world.run(plan, given) for given in feeds]
    both = [world.bound(plan, given) for given in feeds]
    for launch, _ in both:
        launch()
    for expected, (_, results) in zip(alone, both, strict=True):
        got = world.seen(plan, results)
        for name, array in expected.items():
            assert np.array_equal(got[name], array), name
