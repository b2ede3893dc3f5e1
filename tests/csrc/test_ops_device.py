"""Arrays on a device: what is said where there is none, device against host where there is one."""

from __future__ import annotations

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


def test_an_array_that_no_device_knows_is_refused() -> None:
    pixels: Any = Elsewhere((3, 1, 4, 4), "<f4")
    with pytest.raises(RuntimeError, match="CUDA"):
        ops.pixels_to_frames(pixels)


@pytest.mark.parametrize("typestr", ["<f8", ">f4", "<c8"])
def test_a_device_array_of_another_type_is_refused(typestr: str) -> None:
    pixels: Any = Elsewhere((3, 1, 4, 4), typestr)
    with pytest.raises(ValueError, match=r"^pixels: "):
        ops.pixels_to_frames(pixels)


SIZES = [(1, 1), (7, 13), (64, 64), (33, 259), (480, 832)]


@pytest.fixture
def cupy() -> Any:
    module = pytest.importorskip("cupy")
    if module.cuda.runtime.getDeviceCount() == 0:
        pytest.skip("no CUDA device")
    return module


def frames_of(height: int, width: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(height)
    return rng.integers(0, 256, (2, height, width, 3), np.uint8)


@pytest.mark.gpu
@pytest.mark.parametrize("size", SIZES)
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
