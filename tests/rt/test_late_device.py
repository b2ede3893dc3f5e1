"""Law 4 on devices whose work is done late: nothing may read what was not waited for."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import late_cupy
import numpy as np
import pytest
from late_device import ForgetfulDevice, LateDevice
from micro_engine import SIZE
from numpy.typing import NDArray

import rt
from export import verify
from rt import backends, calibrate, devices, ops
from rt import manifest as manifests

Pictures = list[NDArray[np.uint8]]
OPERATORS = [
    "frames_to_pixels", "pixels_to_frames", "optical_flow_magnitude", "frame_difference",
    "noise_control", "mix_noise", "renoise", "refresh_sinks",
]  # fmt: skip


@functools.cache
def scene(seed: int) -> Sequence[NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    texture = rng.integers(0, 255, (SIZE, 4 * SIZE, 3), dtype=np.uint8)
    return [np.roll(texture, -3 * i, 1)[:, :SIZE] for i in range(30)]


def restyled(engine: Path, names: Sequence[str], sessions: int) -> list[Pictures]:
    """Sessions beside each other, each with its own scene and prompt."""
    found: list[Pictures] = [[] for _ in range(sessions)]

    def one(pipeline: rt.Pipeline, number: int) -> None:
        prompt = ("a pencil sketch", "an oil painting")[number]
        with pipeline.session(prompt=prompt, seed=number) as session:
            found[number] = [f.rgb for f in session.stream(scene(number))]

    with rt.Pipeline.load(engine, names, seats=sessions, steps=2, max_batch=1) as pipeline:
        threads = [threading.Thread(target=one, args=(pipeline, i)) for i in range(sessions)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return found


@pytest.fixture(scope="module")
def expected(tiny_engine: Path) -> list[Pictures]:
    return restyled(tiny_engine, ["cpu:0"], 2)


def instead(monkeypatch: pytest.MonkeyPatch, kind: type[LateDevice], stages: int) -> None:
    late = tuple(kind("late", i, 1) for i in range(stages))
    monkeypatch.setattr(devices, "resolve", lambda _: late)
    monkeypatch.setattr("rt.costfile.machine_key", lambda _: "late")


def equal(a: list[Pictures], b: list[Pictures]) -> bool:
    return all(np.array_equal(np.stack(x), np.stack(y)) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("sessions", [1, 2])
def test_late_devices_give_the_same_bits(
    tiny_engine: Path,
    expected: list[Pictures],
    stages: int,
    sessions: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    instead(monkeypatch, LateDevice, stages)
    assert equal(restyled(tiny_engine, ["late"] * stages, sessions), expected[:sessions])


def test_a_wait_that_is_left_out_shows(
    tiny_engine: Path, expected: list[Pictures], monkeypatch: pytest.MonkeyPatch
) -> None:
    instead(monkeypatch, ForgetfulDevice, 1)
    assert not equal(restyled(tiny_engine, ["late"], 1), expected[:1])


def test_staging_that_is_used_twice_shows(
    tiny_engine: Path, expected: list[Pictures], monkeypatch: pytest.MonkeyPatch
) -> None:
    put = LateDevice.put

    def shared(self: LateDevice, _name: Any, array: NDArray[Any]) -> NDArray[Any]:
        return put(self, "all", array)

    monkeypatch.setattr(LateDevice, "put", shared)
    instead(monkeypatch, LateDevice, 1)
    assert not equal(restyled(tiny_engine, ["late"], 1), expected[:1])


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_the_calls_to_cupy_give_the_same_bits(
    tiny_engine: Path, expected: list[Pictures], stages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`CudaDevice` itself, over a CuPy that does everything late and mixes with no NumPy array."""
    create, late = backends.create, []
    for index in range(stages):
        queue = late_cupy.Stream(non_blocking=True)
        late.append(devices.CudaDevice("cuda", index, 1, cupy=late_cupy, queue=queue))

    def on_gpu(name: str, threads: int, gpu: tuple[int, int]) -> Any:
        assert gpu in [(d.index, d.cuda_stream) for d in late]
        return late_cupy.LateBackend(create(name, threads))

    monkeypatch.setattr(devices, "resolve", lambda _: tuple(late))
    monkeypatch.setattr("rt.costfile.machine_key", lambda _: "late")
    monkeypatch.setattr(backends, "create", on_gpu)
    monkeypatch.setitem(sys.modules, "cupyx", late_cupy.pinned)
    for name in OPERATORS:
        monkeypatch.setattr(ops, name, late_cupy.on_streams(getattr(ops, name)))
    assert equal(restyled(tiny_engine, ["late"] * stages, 2), expected)


def test_a_gpu_fills_and_copies_without_kernels_of_cupy() -> None:
    """Bytes where there are gaps too; memory that is not pinned is read before `copy` returns."""
    queue = late_cupy.Stream(non_blocking=True)
    device = devices.CudaDevice("cuda", 0, 1, cupy=late_cupy, queue=queue)
    array = device.zeros((2, 3, 4), np.int64)
    device.fill(array[:, 1:2], -1)
    device.copy(array[0, 0], host := np.arange(4))
    host[:] = 9
    device.fill(array[1, 2], 0)
    device.wait()
    expected = np.zeros((2, 3, 4), np.int64)
    expected[:, 1] = -1
    expected[0, 0] = range(4)
    assert np.array_equal(array.there, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_logical_devices_of_a_gpu_give_the_same_bits(
    cuda: Any, tmp_path: Path, stages: int
) -> None:
    from micro_engine import build_micro

    assert cuda.cuda.runtime.getDeviceCount()
    engine = build_micro(tmp_path, backend="inductor", precision="bf16")
    alone = restyled(engine, ["cuda:0"], 2)
    assert all(np.ptp(np.stack(pictures)) for pictures in alone)
    assert equal(restyled(engine, ["cuda:0"] * stages, 2), alone)


def test_costs_are_measured_on_a_late_device(tiny_engine: Path) -> None:
    """What is timed is done when the clock is read, copies and operators too."""
    place = LateDevice("late", 0, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rt.costfile.machine_key", lambda _: "late")
        costs = calibrate.measure(manifests.read(tiny_engine), tiny_engine, place, 2)
    assert all(timing.p50_ms > 0 for unit in costs.units for timing in unit.timings)
    assert costs.handover.gb_per_s > 0


def test_a_plan_is_verified_on_a_late_device(tiny_engine: Path) -> None:
    """Bound, then filled, then run, then read: as where a capture runs what it binds."""
    made = manifests.read(tiny_engine)
    place, host = LateDevice("late", 0, 1), devices.Device("cpu", 0, 1)
    for unit in made.chain:
        plan = unit.plans["step"]
        engine = host.backend("onnxruntime").load(tiny_engine, plan)
        feeds = verify.random_inputs(made, plan, 1, unit.name)
        expected = verify.run_bound(engine, plan, feeds)
        found = verify.run_bound(engine, plan, feeds, place)
        assert all(np.array_equal(found[name], array) for name, array in expected.items())
        assert any(array.any() for array in expected.values())
