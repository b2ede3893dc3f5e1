"""Law 4 on devices whose work is done late: nothing may read what was not waited for."""

from __future__ import annotations

import functools
import gc
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import late_cupy
import numpy as np
import pytest
from late_device import ForgetfulDevice, LateDevice
from micro_engine import SIZE, build_micro
from mixed_engine import QUICK
from numpy.typing import NDArray

import rt
from export import inductor, verify
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


@pytest.fixture
def gpu_engine(cuda: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled for this GPU by the first test, found up to date by the others."""
    assert cuda.cuda.runtime.getDeviceCount()
    with patch.object(inductor, "_OPTIONS", inductor._OPTIONS | QUICK):
        folder = tmp_path_factory.getbasetemp() / "inductor-device"
        return build_micro(folder, backend="inductor", precision="bf16")


@pytest.mark.gpu
@pytest.mark.timeout(900)  # The compiler is busy for minutes.
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_logical_devices_of_a_gpu_give_the_same_bits(gpu_engine: Path, stages: int) -> None:
    alone = restyled(gpu_engine, ["cuda:0"], 2)
    assert all(np.ptp(np.stack(pictures)) for pictures in alone)
    assert equal(restyled(gpu_engine, ["cuda:0"] * stages, 2), alone)


@pytest.mark.gpu
@pytest.mark.timeout(900)
def test_a_stream_on_a_gpu_is_close_to_that_of_float32(gpu_engine: Path, tiny_engine: Path) -> None:
    """Against ONNX Runtime on the processor: the same weights, noise and prompt."""
    (exact,), (found,) = restyled(tiny_engine, ["cpu:0"], 1), restyled(gpu_engine, ["cuda:0"], 1)
    apart = np.abs(np.stack(found).astype(int) - np.stack(exact))
    assert 0 < apart.mean() <= 1
    assert apart.max() <= 16


@pytest.mark.gpu
@pytest.mark.timeout(900)
def test_streams_on_a_gpu_leave_memory_as_it_was(cuda: Any, gpu_engine: Path) -> None:
    """A pipeline that is closed gives back what it took, of either library; no pass allocates."""
    import torch

    def free() -> int:
        gc.collect()
        cuda.get_default_memory_pool().free_all_blocks()
        torch.cuda.empty_cache()
        return int(cuda.cuda.runtime.memGetInfo()[0])

    restyled(gpu_engine, ["cuda:0"], 1)
    before = free()
    with rt.Pipeline.load(gpu_engine, ["cuda:0"]) as pipeline:
        taken: list[int] = []
        with pipeline.session(prompt="ink") as session:
            for index, _ in enumerate(session.stream(scene(0))):
                if index in (12, 28):
                    taken.append(int(cuda.cuda.runtime.memGetInfo()[0]))
    assert taken[1] >= taken[0] - (1 << 21)
    del pipeline, session
    assert free() >= before - (1 << 26)


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
