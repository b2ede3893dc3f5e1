"""frames_to_pixels, pixels_to_frames and frame_difference against NumPy definitions and OpenCV."""

from __future__ import annotations

from itertools import pairwise

import cv2
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rt import ops

Frame = NDArray[np.uint8]


def frame_of(seed: int, height: int, width: int) -> Frame:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@st.composite
def frames_in_any_strides(draw: st.DrawFn, height: int = 0, width: int = 0) -> Frame:
    """A uint8 [H, W, 3] view: cut out, every n-th, mirrored, planar, BGR, broadcast, read-only."""
    height = height or draw(st.integers(1, 40))
    width = width or draw(st.integers(1, 70))
    kind = draw(st.sampled_from(["packed", "cut", "nth", "mirrored", "planar", "bgr", "flat"]))
    seed = draw(st.integers(0, 99))
    if kind == "cut":
        frame = frame_of(seed, height + 3, width + 2)[2 : 2 + height, 1 : 1 + width]
    elif kind == "nth":
        frame = frame_of(seed, 2 * height, 3 * width)[::2, ::3]
    elif kind == "mirrored":
        frame = frame_of(seed, height, width)[::-1, ::-1]
    elif kind == "planar":
        frame = np.random.default_rng(seed).integers(0, 256, (3, height, width), np.uint8)
        frame = frame.transpose(1, 2, 0)
    elif kind == "bgr":
        frame = frame_of(seed, height, width)[..., ::-1]
    elif kind == "flat":
        frame = np.broadcast_to(frame_of(seed, height, 1), (height, width, 3))
    else:
        frame = frame_of(seed, height, width)
        frame.flags.writeable = draw(st.booleans())
    return frame


def definition(frames: list[Frame]) -> NDArray[np.float32]:
    stacked = np.stack(frames).astype(np.float32)
    return (stacked / np.float32(127.5) - np.float32(1)).transpose(3, 0, 1, 2)


@given(st.data(), st.integers(1, 5), st.integers(1, 40), st.integers(1, 300), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_equal_size_is_exact(
    data: st.DataObject, count: int, height: int, width: int, threads: int
) -> None:
    frames = [data.draw(frames_in_any_strides(height, width)) for _ in range(count)]
    pixels = ops.frames_to_pixels(frames, height, width, threads=threads)
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels, definition(frames))
    np.testing.assert_array_equal(ops.pixels_to_frames(pixels, threads=threads), np.stack(frames))


def axis_matrix(n_in: int, n_out: int) -> NDArray[np.float64]:
    """Area average or linear interpolation of one axis as a plain matrix."""
    weights = np.zeros((n_out, n_in))
    for i in range(n_out):
        if n_out < n_in:
            begin, end = i * n_in / n_out, (i + 1) * n_in / n_out
            for j in range(n_in):
                weights[i, j] = max(0.0, min(end, j + 1) - max(begin, j)) * n_out / n_in
        else:
            at = min(max((i + 0.5) * n_in / n_out - 0.5, 0.0), n_in - 1.0)
            low = min(int(at), max(n_in - 2, 0))
            weights[i, low] += 1 - (at - low)
            weights[i, min(low + 1, n_in - 1)] += at - low
    return weights


@given(frames_in_any_strides(), st.integers(1, 60), st.integers(1, 300), st.integers(0, 3))
@settings(max_examples=80, deadline=None)
def test_resize_is_its_definition(frame: Frame, height: int, width: int, threads: int) -> None:
    down, across = axis_matrix(frame.shape[0], height), axis_matrix(frame.shape[1], width)
    expected = np.einsum("yi,xj,ijc->cyx", down, across, frame.astype(np.float64)) / 127.5 - 1
    pixels = ops.frames_to_pixels([frame], height, width, threads=threads)
    np.testing.assert_allclose(pixels[:, 0], expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    "size, flag",
    [((37, 53), cv2.INTER_AREA), ((120, 80), cv2.INTER_AREA), ((480, 640), cv2.INTER_LINEAR)],
)
def test_resize_agrees_with_opencv(size: tuple[int, int], flag: int) -> None:
    frame = frame_of(3, 240, 160)
    expected = cv2.resize(frame.astype(np.float32), size[::-1], interpolation=flag)
    pixels = ops.frames_to_pixels([frame], *size)
    np.testing.assert_allclose((pixels[:, 0].transpose(1, 2, 0) + 1) * 127.5, expected, atol=2e-3)


def test_frames_may_have_different_sizes() -> None:
    frames = [frame_of(1, 64, 48), frame_of(2, 31, 99), frame_of(3, 20, 20)]
    together = ops.frames_to_pixels(frames, 20, 20)
    for t, frame in enumerate(frames):
        np.testing.assert_array_equal(together[:, t], ops.frames_to_pixels([frame], 20, 20)[:, 0])


@pytest.mark.parametrize("resize", [False, True])
def test_half_formats_round_to_nearest(resize: bool) -> None:
    frame = frame_of(5, 33, 47)
    size = (20, 61) if resize else (33, 47)
    exact = ops.frames_to_pixels([frame], *size)
    half = ops.frames_to_pixels([frame], *size, np.empty(exact.shape, np.float16))
    np.testing.assert_array_equal(half, exact.astype(np.float16))
    brain = ops.frames_to_pixels([frame], *size, np.empty(exact.shape, np.uint16))
    expected = exact.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(brain, expected.view(np.uint16))
    np.testing.assert_array_equal(
        ops.pixels_to_frames(brain), ops.pixels_to_frames(expected.astype(np.float32))
    )
    np.testing.assert_array_equal(
        ops.pixels_to_frames(half), ops.pixels_to_frames(half.astype(np.float32))
    )


@given(st.integers(1, 3), st.integers(1, 20), st.integers(1, 300), st.booleans(), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_pixels_to_frames_is_its_definition(
    count: int, height: int, width: int, strided: bool, threads: int
) -> None:
    rng = np.random.default_rng(height * width)
    pixels = rng.normal(0, 1, (3, count, height, width)).astype(np.float32)
    pixels[rng.random(pixels.shape) < 0.05] = np.nan
    pixels[rng.random(pixels.shape) < 0.05] = np.inf
    pixels[rng.random(pixels.shape) < 0.05] = -np.inf
    out = np.full((count, height, 2 * width, 3), 7, np.uint8)
    target = out[:, ::-1, ::2] if strided else out[:, :, :width]
    if strided:
        pixels = np.asfortranarray(pixels)
    expected = np.rint((np.clip(pixels, -1, 1) + np.float32(1)) * np.float32(127.5))
    expected = np.nan_to_num(expected, nan=0).astype(np.uint8).transpose(1, 2, 3, 0)
    assert ops.pixels_to_frames(pixels, target, threads=threads) is target
    np.testing.assert_array_equal(target, expected)
    assert (out[:, :, 1::2] == 7).all() if strided else (out[:, :, width:] == 7).all()


def rgb_of_nv12(frame: Frame, red: float, blue: float) -> NDArray[np.float64]:
    """[H, W, 3] levels in 0..255, by the definition in the standards."""
    height, width = frame.shape[0] // 3 * 2, frame.shape[1]
    luma = (frame[:height].astype(np.float64) - 16) / 219
    pairs = frame[height:].reshape(height // 2, width // 2, 2).astype(np.float64)
    cb, cr = np.repeat(np.repeat((pairs - 128) / 224, 2, 0), 2, 1).transpose(2, 0, 1)
    r = luma + 2 * (1 - red) * cr
    b = luma + 2 * (1 - blue) * cb
    g = (luma - red * r - blue * b) / (1 - red - blue)
    return np.clip(np.stack([r, g, b], -1), 0, 1) * 255


@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 20), st.integers(0, 90), st.data())
@settings(max_examples=60, deadline=None)
def test_nv12_is_its_definition(
    half_height: int, half_width: int, height: int, width: int, data: st.DataObject
) -> None:
    """At equal size (0) and resized; with a row stride and without."""
    rng = np.random.default_rng(half_height)
    whole = rng.integers(0, 256, (3 * half_height, 2 * half_width + 5), np.uint8)
    frame = whole[:, : 2 * half_width]
    matrix, red, blue = data.draw(
        st.sampled_from([("bt601", 0.299, 0.114), ("bt709", 0.2126, 0.0722)])
    )
    height, width = height or 2 * half_height, width or 2 * half_width
    levels = rgb_of_nv12(frame, red, blue)
    down, across = axis_matrix(levels.shape[0], height), axis_matrix(levels.shape[1], width)
    expected = np.einsum("yi,xj,ijc->cyx", down, across, levels) / 127.5 - 1
    pixels = ops.frames_to_pixels([frame, frame.copy()], height, width, matrix=matrix)
    np.testing.assert_allclose(pixels[:, 0], expected, atol=3e-6, rtol=0)
    np.testing.assert_array_equal(pixels[:, 0], pixels[:, 1])


def test_nv12_agrees_with_opencv_to_its_rounding() -> None:
    frame = np.random.default_rng(8).integers(16, 256, (96, 80), np.uint8)  # it clamps luma at 16
    pixels = ops.frames_to_pixels([frame], 64, 80, matrix="bt601")
    expected = cv2.cvtColor(frame, cv2.COLOR_YUV2RGB_NV12).astype(np.float32)
    np.testing.assert_allclose((pixels[:, 0].transpose(1, 2, 0) + 1) * 127.5, expected, atol=1.5)


@pytest.mark.parametrize("shape", [(2, 2), (4, 2), (3, 1), (6, 5), (0, 2), (3, 0)])
def test_nv12_of_odd_sizes_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"^frames\[1\]: got uint8 .* or NV12"):
        ops.frames_to_pixels([frame_of(0, 4, 4), np.zeros(shape, np.uint8)], 4, 4)


def test_out_of_any_strides() -> None:
    frame = frame_of(1, 10, 12)
    out = np.zeros((12, 3, 2, 20), np.float32).transpose(1, 2, 3, 0)[:, :, ::-2]
    ops.frames_to_pixels([frame, frame[::-1]], 10, 12, out)
    np.testing.assert_array_equal(out, definition([frame, frame[::-1]]))


@given(st.data(), st.integers(1, 4), st.integers(1, 40), st.integers(1, 60), st.booleans())
@settings(max_examples=40, deadline=None)
def test_frame_difference_is_its_definition(
    data: st.DataObject, count: int, height: int, width: int, has_last: bool
) -> None:
    frames = [data.draw(frames_in_any_strides(height, width)) for _ in range(count + 1)]
    last = frames[0] if has_last else None
    scaled = [f.astype(np.float64) / 127.5 for f in frames]
    expected = [np.sqrt(np.mean((b - a) ** 2)) for a, b in pairwise(scaled)]
    if not has_last:
        expected[0] = 0.0
    got = ops.frame_difference(frames[1:], last)
    np.testing.assert_allclose(got, np.array(expected), rtol=1e-6)


def test_bad_arguments_are_named() -> None:
    frame = frame_of(0, 8, 8)
    with pytest.raises(ValueError, match=r"frames\[1\]: got float32 \[8, 8, 3\], expected uint8"):
        ops.frames_to_pixels([frame, frame.astype(np.float32)], 8, 8)
    with pytest.raises(ValueError, match=r"^matrix: got \"rgb\""):
        ops.frames_to_pixels([frame], 8, 8, matrix="rgb")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"frames\[0\]: got uint8 \[8, 8\], expected uint8"):
        ops.frames_to_pixels([frame[..., 0]], 8, 8)
    with pytest.raises(ValueError, match=r"frames\[0\]"):
        ops.frames_to_pixels([frame[:0]], 8, 8)
    with pytest.raises(ValueError, match=r"^frames: got none"):
        ops.frames_to_pixels([], 8, 8)
    with pytest.raises(ValueError, match=r"^height, width: got 0, 8"):
        ops.frames_to_pixels([frame], 0, 8)
    with pytest.raises(ValueError, match=r"^out: got shape \[3, 2, 8, 8\], expected"):
        ops.frames_to_pixels([frame], 8, 8, np.empty((3, 2, 8, 8), np.float32))
    with pytest.raises(ValueError, match=r"^out: .* expected float32 or float16"):
        ops.frames_to_pixels([frame], 8, 8, np.empty((3, 1, 8, 8), np.uint8))
    with pytest.raises(ValueError, match=r'^out: .*"d"'):
        ops.frames_to_pixels([frame], 8, 8, np.empty((3, 1, 8, 8), np.float64))
    with pytest.raises(ValueError, match=r"^threads: got -1"):
        ops.frames_to_pixels([frame], 8, 8, threads=-1)
    with pytest.raises(ValueError, match=r"^frames: got <class 'str'>"):
        ops.frames_to_pixels(["frame"], 8, 8)  # type: ignore[list-item]
    frozen = np.empty((3, 1, 8, 8), np.float32)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match=r"^out: got a read-only array"):
        ops.frames_to_pixels([frame], 8, 8, frozen)
    with pytest.raises(ValueError, match=r"^pixels: got float32 \[4, 1, 2, 2\]"):
        ops.pixels_to_frames(np.zeros((4, 1, 2, 2), np.float32))
    with pytest.raises(ValueError, match=r"^pixels: got int64"):
        ops.pixels_to_frames(np.zeros((3, 1, 2, 2), np.int64))
    with pytest.raises(ValueError, match=r"^last: got uint8 \[9, 8, 3\], expected shape"):
        ops.frame_difference([frame], frame_of(0, 9, 8))


def test_objects_with_dlpack_alone_are_read() -> None:
    class OnlyDlpack:
        def __init__(self, array: Frame) -> None:
            self.array = array
            self.shape = array.shape

        def __dlpack__(self, **options: object) -> object:
            return self.array.__dlpack__(**options)  # type: ignore[arg-type]

        def __dlpack_device__(self) -> tuple[int, int]:
            return self.array.__dlpack_device__()

    frame = frame_of(9, 12, 10)
    wrapped = OnlyDlpack(frame[:, ::-1])
    pixels = ops.frames_to_pixels([wrapped], 12, 10)  # type: ignore[list-item]
    np.testing.assert_array_equal(pixels, definition([frame[:, ::-1]]))
