"""Arrays on a device: what is said where there is none, device against host where there is one."""

from __future__ import annotations

import importlib
import os
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rt import ops


class Elsewhere:
    """Describes itself as CuPy does, at an address that no device knows."""

    def __init__(self, shape: tuple[int, ...], typestr: str) -> None:
        self.shape = shape
        self.__cuda_array_interface__ = {
            "shape": shape, "typestr": typestr, "data": (4096, False), "version": 3,
            "strides": None,
        }  # fmt: skip


@pytest.mark.parametrize("typestr", ["<f4", "<f2", "<u2", "<V2"])  # the last is torch's bfloat16
def test_an_array_that_no_device_knows_is_refused(typestr: str) -> None:
    pixels: Any = Elsewhere((3, 1, 4, 4), typestr)
    with pytest.raises(RuntimeError, match="CUDA"):
        ops.pixels_to_frames(pixels)


class Both(bytearray):
    """As CuPy's arrays since 13: the buffer protocol as well, for memory that the host can read."""

    __cuda_array_interface__ = Elsewhere((3, 1, 4, 4), "<f4").__cuda_array_interface__
    shape = (3, 1, 4, 4)


def test_an_array_that_is_also_a_buffer_is_on_the_device() -> None:
    pixels: Any = Both(3 * 4 * 4 * 4)
    with pytest.raises(RuntimeError, match="CUDA"):
        ops.pixels_to_frames(pixels)


@pytest.mark.parametrize("typestr", ["<f8", ">f4", "<c8"])
def test_a_device_array_of_another_type_is_refused(typestr: str) -> None:
    pixels: Any = Elsewhere((3, 1, 4, 4), typestr)
    with pytest.raises(ValueError, match=r"^pixels: "):
        ops.pixels_to_frames(pixels)


SIZES = [(1, 1), (7, 13), (64, 64), (33, 259), (480, 832), (2160, 3840)]


def missing() -> str:
    """Why no test can run on a device here; "" where one can."""
    try:
        import cupy

        return "" if cupy.cuda.runtime.getDeviceCount() else "no CUDA device"
    except ImportError:
        return "CuPy is not installed"
    except Exception as error:  # noqa: BLE001 - CuPy's own errors, whose types it does not promise
        return f"CUDA: {error}"


@pytest.fixture
def cupy() -> Any:
    if reason := missing():
        if os.environ.get("RT_REQUIRE_GPU") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    module = importlib.import_module("cupy")
    # Each array its own allocation, so that compute-sanitizer sees what is written beside one.
    module.cuda.set_allocator(None)
    return module


def frames_of(height: int, width: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(height)
    return rng.integers(0, 256, (2, height, width, 3), np.uint8)


@pytest.mark.gpu
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("made", [None, (16, 16), (90, 301)])
def test_pictures_are_the_same_on_the_device(
    cupy: Any, size: tuple[int, int], made: tuple[int, int] | None
) -> None:
    frames = frames_of(*size)[:, ::-1, :, ::-1]
    height, width = made or size
    expected = ops.frames_to_pixels(list(frames), height, width)
    on_device = cupy.asarray(np.ascontiguousarray(frames[:, ::-1]))[:, ::-1]
    for dtype in (np.float32, np.float16):
        pixels = cupy.empty(expected.shape, dtype)
        ops.frames_to_pixels(list(on_device), height, width, pixels)
        np.testing.assert_array_equal(pixels.get(), expected.astype(dtype))
        back = cupy.empty((2, height, width, 3), np.uint8)
        ops.pixels_to_frames(pixels, back)
        np.testing.assert_array_equal(back.get(), ops.pixels_to_frames(expected.astype(dtype)))


@pytest.mark.gpu
@pytest.mark.usefixtures("cupy")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_arrays_of_torch_are_read_where_they_lie(dtype: str) -> None:
    import torch

    pixels = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 2, 7, 13)))
    pixels = pixels.to(getattr(torch, dtype))
    bits = pixels.view(torch.uint16) if dtype == "bfloat16" else pixels
    expected = ops.pixels_to_frames(bits.numpy())
    out = torch.zeros(expected.shape, dtype=torch.uint8, device="cuda")
    there: Any = pixels.cuda()
    ops.pixels_to_frames(there, out)  # type: ignore[arg-type]
    np.testing.assert_array_equal(out.cpu().numpy(), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("count", [1, 3, 4, 1027, 16 * 60 * 104])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_noise_is_the_same_on_the_device(cupy: Any, count: int, dtype: type) -> None:
    rng = np.random.default_rng(count)
    latent, velocity = rng.normal(size=(2, count)).astype(dtype)
    control = np.array([1, 0.7, 600, 0.6], np.float32)
    sigma, sigma_next = np.array([0.6], np.float32), np.array([0.3], np.float32)
    names = {"seed": 2**40 + 3, "session": 1, "chunk": 2}
    expected = ops.mix_noise(latent, control, **names)
    got = cupy.empty(count, dtype)
    ops.mix_noise(cupy.asarray(latent), cupy.asarray(control), **names, out=got)
    np.testing.assert_array_equal(got.get(), expected)
    for then in (sigma_next, np.zeros(1, np.float32)):
        expected = ops.renoise(latent, velocity, sigma, then, **names, step=1)
        arrays = [cupy.asarray(a) for a in (latent, velocity, sigma, then)]
        ops.renoise(*arrays, **names, step=1, out=got)
        np.testing.assert_array_equal(got.get(), expected)


@pytest.mark.gpu
def test_arrays_of_two_places_are_refused(cupy: Any) -> None:
    pixels = cupy.zeros((3, 1, 4, 4), np.float32)
    with pytest.raises(ValueError, match=r"^out: got an array on the host, expected one on cuda:"):
        ops.pixels_to_frames(pixels)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(2, 2), (6, 14), (66, 130), (2160, 3840)], ids=str)
@pytest.mark.parametrize("made", [None, (17, 31)])
def test_nv12_is_the_same_on_the_device(
    cupy: Any, size: tuple[int, int], made: tuple[int, int] | None
) -> None:
    rng = np.random.default_rng(size[0])
    whole = rng.integers(0, 256, (3 * size[0] // 2, size[1] + 3), np.uint8)
    height, width = made or size
    expected = ops.frames_to_pixels([whole[:, : size[1]]], height, width)
    pixels = cupy.empty(expected.shape, np.float32)
    ops.frames_to_pixels([cupy.asarray(whole)[:, : size[1]]], height, width, pixels)
    np.testing.assert_array_equal(pixels.get(), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("cut", [False, True])
def test_frame_difference_is_the_same_on_the_device(
    cupy: Any, size: tuple[int, int], cut: bool
) -> None:
    frames = np.concatenate([frames_of(*size), frames_of(*size)[:, ::-1]])
    on_device = cupy.asarray(frames)
    if cut:
        frames, on_device = frames[:, ::-1, ::2], on_device[:, ::-1, ::2]
    sums, got = cupy.full(3, 7, np.int64), cupy.empty(3, np.float32)
    for last in (0, None):
        expected = ops.frame_difference(list(frames[1:]), None if last is None else frames[0])
        before = None if last is None else on_device[0]
        ops.frame_difference(list(on_device[1:]), before, got, sums=sums)
        np.testing.assert_array_equal(got.get(), expected)


def drifting(count: int, height: int, width: int) -> NDArray[np.uint8]:
    """A cloudy picture that drifts and gets brighter, with noise."""
    rng = np.random.default_rng(height)
    made = rng.normal(0, 1, (height + 2 * count, width + 3 * count, 3)).astype(np.float32)
    for axis in (0, 1):
        made = np.add.reduce([np.roll(made, k, axis) for k in range(4)])
    frames = [
        made[2 * i : 2 * i + height, 3 * i : 3 * i + width] * (8 + i) + rng.normal(120, 2, 3)
        for i in range(count)
    ]
    return np.clip(np.stack(frames), 0, 255).astype(np.uint8)


@pytest.mark.gpu
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("quality", ["fast", "accurate"])
@pytest.mark.parametrize("cut", [False, True])
def test_flow_is_the_same_on_the_device(
    cupy: Any, size: tuple[int, int], quality: Any, cut: bool
) -> None:
    height, width = size
    frames = drifting(2, height * (2 if cut else 1), width)
    on_device = cupy.asarray(frames)
    if cut:
        frames, on_device = frames[:, ::-2, ::-1], on_device[:, ::-2, ::-1]
    expected = ops.optical_flow(frames[0], frames[1], quality)
    scratch = cupy.full(ops.flow_scratch(height, width, 2, quality), 0xFF, np.uint8)
    got = cupy.empty(expected.shape, np.float32)
    ops.optical_flow(on_device[0], on_device[1], quality, got, scratch=scratch)
    np.testing.assert_array_equal(got.get(), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("begins", [False, True])
def test_flow_statistics_are_the_same_on_the_device(
    cupy: Any, size: tuple[int, int], begins: bool
) -> None:
    frames = list(drifting(4, *size))
    last, listed = (None, frames) if begins else (frames[0], frames[1:])
    expected = ops.optical_flow_magnitude(listed, last)
    there = [cupy.asarray(frame) for frame in frames]
    scratch = cupy.full(ops.flow_scratch(*size, 4), 0xFF, np.uint8)
    got = cupy.empty(expected.shape, np.float32)
    before = None if begins else there[0]
    ops.optical_flow_magnitude(there if begins else there[1:], before, got, scratch=scratch)
    np.testing.assert_array_equal(got.get(), expected)


@pytest.mark.gpu
def test_motion_becomes_noise_without_leaving_the_device(cupy: Any) -> None:
    frames = drifting(5, 480, 832)
    there = [cupy.asarray(frame) for frame in frames]
    names: Any = {
        "reference": 9.6, "s_max": 0.8, "s_min": 0.7, "smoothing": 0.9, "timestep_offset": -100
    }  # fmt: skip
    sigmas = np.linspace(1, 0, 1000, endpoint=False, dtype=np.float32)
    previous = np.array([0, 0.75, 700, 0.7], np.float32)
    scores = ops.optical_flow_magnitude(list(frames[1:]), frames[0])[:, 2]
    expected = ops.noise_control(scores, previous, True, **names, sigmas=sigmas)
    scratch = cupy.empty(ops.flow_scratch(480, 832, 5), np.uint8)
    table, record = cupy.asarray(sigmas), cupy.asarray(previous)
    rows, got = cupy.empty((4, 5), np.float32), cupy.empty(4, np.float32)
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    ops.optical_flow_magnitude(there[1:], there[0], rows, scratch=scratch, cuda_stream=stream.ptr)
    ops.noise_control(
        rows[:, 2], record, True, **names, sigmas=table, out=got, cuda_stream=stream.ptr
    )
    stream.synchronize()
    np.testing.assert_array_equal(got.get(), expected)


@pytest.mark.gpu
def test_scratch_memory_is_asked_for(cupy: Any) -> None:
    frames = [cupy.zeros((64, 64, 3), np.uint8) for _ in range(2)]
    out, few = cupy.empty((2, 5), np.float32), cupy.empty(256, np.uint8)
    needed = ops.flow_scratch(64, 64, 2)
    for scratch, got in ((None, "none"), (few, r"uint8 \[256\] on cuda:0")):
        with pytest.raises(ValueError, match=rf"^scratch: got {got}, expected uint8 \[{needed}\]"):
            ops.optical_flow_magnitude(frames, None, out, scratch=scratch)


@pytest.mark.gpu
@pytest.mark.parametrize("scores", [[0.0], [3.0, np.nan, 5.5], [1e9], [np.inf, 1.0]])
@pytest.mark.parametrize("has_previous", [False, True])
def test_noise_control_is_the_same_on_the_device(
    cupy: Any, scores: list[float], has_previous: bool
) -> None:
    names: Any = {
        "reference": 8.0, "s_max": 0.8, "s_min": 0.7, "smoothing": 0.9, "timestep_offset": -100
    }  # fmt: skip
    table = np.linspace(1, 0, 1000, endpoint=False)
    arrays = [np.array(a, np.float32) for a in (scores, [0, 0.75, 700, 0.7])]
    sigmas = (8 * table / (1 + 7 * table)).astype(np.float32)
    expected = ops.noise_control(*arrays, has_previous, **names, sigmas=sigmas)
    got, there = cupy.empty(4, np.float32), [cupy.asarray(a) for a in arrays]
    ops.noise_control(*there, has_previous, **names, sigmas=cupy.asarray(sigmas), out=got)
    np.testing.assert_array_equal(got.get(), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (3, 5, 7, 10), (2, 2, 60, 128)])
@pytest.mark.parametrize("threshold", [None, 0.9])
def test_refresh_sinks_is_the_same_on_the_device(
    cupy: Any, dtype: type, shape: tuple[int, int, int, int], threshold: float | None
) -> None:
    blocks, heads, tokens, width = shape
    rng = np.random.default_rng(width)
    k, v = rng.normal(size=(2, blocks, 4, heads, 5 * tokens, width)).astype(dtype)
    time = np.zeros((blocks, 4, heads, 2 * tokens, width // 4 * 2), np.float32)
    index = np.full((blocks, 4, 2), -1)
    host = [a[:, 1:3] for a in (k, v, time, index)]
    device = [cupy.asarray(a)[:, 1:3] for a in (k, v, time, index)]
    names: Any = {
        "window": 5, "sinks": 2, "tokens_per_frame": tokens, "theta": 1e4, "threshold": threshold,
        "positions": "window",
    }  # fmt: skip
    close = 1e-5 if dtype is np.float32 else 4e-3
    for last, query in [([-1, 0], [0, 1]), ([0, 1], [1, 7]), ([9, 11], [10, 10**6])]:
        at = [np.array(last), np.array(query)]
        ops.refresh_sinks(*host, *at, **names)
        ops.refresh_sinks(*device, *(cupy.asarray(a) for a in at), **names)
        for ours, theirs in zip(device, host, strict=True):
            np.testing.assert_allclose(ours.get(), theirs, atol=close, rtol=close)


@pytest.mark.gpu
def test_a_call_runs_on_the_stream_that_it_is_given(cupy: Any) -> None:
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        pixels = cupy.zeros((3, 1, 33, 47), np.float32)
        out = cupy.empty((1, 33, 47, 3), np.uint8)
        ops.pixels_to_frames(pixels, out, cuda_stream=stream.ptr)
    stream.synchronize()
    assert (out.get() == 128).all()
