"""Arguments of every kind to every operator: the right result or a clear exception, never a crash.

The objects here describe themselves wrongly, or as being on a device that is not there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rt import ops


class Claims:
    """Says of itself what it is told to, as a device array does."""

    def __init__(self, interface: object, shape: tuple[int, ...] = (3, 1, 4, 4)) -> None:
        self.shape, self.dtype = shape, np.dtype(np.float32)
        self.__cuda_array_interface__ = interface


def claim(shape: tuple[int, ...], typestr: str = "<f4", address: int = 4096) -> dict[str, Any]:
    return {
        "shape": shape, "typestr": typestr, "data": (address, False), "version": 3, "strides": None
    }  # fmt: skip


KINDS = [np.uint8, np.uint16, np.float16, np.float32, np.float64, np.int32, np.int64, np.bool_]


VIEWS = ["plain", "mirrored", "nth", "fortran", "flat", "unaligned", "frozen"]


@st.composite
def views(draw: st.DrawFn, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """An array of this shape and type in any strides, with NaN and infinity where it can."""
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    kind = draw(st.sampled_from(VIEWS))
    array: NDArray[Any] = np.asarray(rng.normal(size=shape) * 100).astype(dtype)
    if np.issubdtype(dtype, np.floating) and array.size and draw(st.booleans()):
        array.flat[0], array.flat[-1] = np.nan, np.inf
    if kind == "mirrored" and shape:
        array = array[::-1, ..., ::-1] if len(shape) > 1 else array[::-1]
    elif kind == "nth" and shape:
        array = np.repeat(array, 2, -1)[..., ::2]
    elif kind == "fortran":
        array = np.asfortranarray(array)
    elif kind == "flat" and array.size:
        array = np.broadcast_to(array[:1], shape) if shape else array
    elif kind == "unaligned":  # elements whose addresses are no multiples of their size
        raw = np.zeros(array.nbytes + 1, np.uint8)[1:]
        array = raw.view(dtype).reshape(shape)
    elif kind == "frozen":
        array.flags.writeable = False
    return array


@st.composite
def arguments(draw: st.DrawFn, like: NDArray[Any]) -> Any:
    """Mostly what fits; else another shape or type, or an object that claims to be on a device."""
    shape, dtype = like.shape, like.dtype
    change = draw(st.sampled_from(["none"] * 7 + ["shape", "type", "place"]))
    if change == "shape":
        shape = tuple(draw(st.lists(st.integers(0, 9), max_size=5)))
    elif change == "type":
        dtype = np.dtype(draw(st.sampled_from(KINDS)))
    elif change == "place":
        return Claims(claim(shape, dtype.str), shape)
    return draw(views(shape, dtype))


CONTROL: dict[str, Any] = {
    "reference": 8.0, "s_max": 0.8, "s_min": 0.5, "smoothing": 0.5, "timestep_offset": -100,
}  # fmt: skip
KEY: dict[str, Any] = {"seed": 1, "session": 2, "chunk": 3}
RULES: dict[str, Any] = {
    "window": 3, "sinks": 1, "tokens_per_frame": 2, "theta": 100.0, "threshold": 0.5,
    "positions": "window",
}  # fmt: skip

CALLS: dict[str, tuple[int, Callable[..., Any]]] = {
    "frames_to_pixels": (2, lambda a, b: ops.frames_to_pixels([a, b], 5, 6)),
    "frames_to_pixels, NV12": (2, lambda a, b: ops.frames_to_pixels([a, b], 5, 6)),
    "frames_to_pixels, out": (2, lambda a, b: ops.frames_to_pixels([a], 5, 6, b)),
    "pixels_to_frames": (1, ops.pixels_to_frames),
    "pixels_to_frames, out": (2, ops.pixels_to_frames),
    "optical_flow": (2, ops.optical_flow),
    "optical_flow, out": (4, lambda a, b, c, d: ops.optical_flow(a, b, "fast", c, scratch=d)),
    "optical_flow_magnitude": (2, lambda a, b: ops.optical_flow_magnitude([a], b)),
    "optical_flow_magnitude, out": (
        4,
        lambda a, b, c, d: ops.optical_flow_magnitude([a], b, c, scratch=d),
    ),
    "frame_difference": (2, lambda a, b: ops.frame_difference([a], b)),
    "frame_difference, out": (3, lambda a, b, c: ops.frame_difference([a], b, c, sums=c)),
    "noise_control": (3, lambda a, b, c: ops.noise_control(a, b, True, **CONTROL, sigmas=c)),
    "mix_noise": (3, lambda a, b, c: ops.mix_noise(a, b, **KEY, out=c)),
    "renoise": (4, lambda a, b, c, d: ops.renoise(a, b, c, d, **KEY, step=1)),
    "philox_normal": (1, lambda a: ops.philox_normal(a.shape, **KEY, step=1, out=a)),
    "refresh_sinks": (6, lambda *a: ops.refresh_sinks(*a, **RULES)),
}


PICTURE = np.zeros((4, 4, 3), np.uint8)
FITTING: dict[str, tuple[list[Any], list[str]]] = {
    "frames_to_pixels": ([PICTURE, PICTURE], ["|u1", "|u1"]),
    "frames_to_pixels, NV12": ([np.zeros((6, 4), np.uint8), PICTURE], ["|u1", "|u1"]),
    "frames_to_pixels, out": (
        [PICTURE, np.zeros((3, 1, 5, 6), np.float32)], ["|u1", "<f4"],
    ),
    "pixels_to_frames, out": (
        [np.zeros((3, 1, 4, 4), np.float32), np.zeros((1, 4, 4, 3), np.uint8)], ["<f4", "|u1"],
    ),
    "optical_flow": ([PICTURE, PICTURE], ["|u1", "|u1"]),
    "optical_flow, out": (
        [PICTURE, PICTURE, np.zeros((4, 4, 2), np.float32), np.zeros(9, np.uint8)],
        ["|u1", "|u1", "<f4", "|u1"],
    ),
    "optical_flow_magnitude": ([PICTURE, PICTURE], ["|u1", "|u1"]),
    "optical_flow_magnitude, out": (
        [PICTURE, PICTURE, np.zeros((1, 5), np.float32), np.zeros(9, np.uint8)],
        ["|u1", "|u1", "<f4", "|u1"],
    ),
    "frame_difference": ([PICTURE, PICTURE], ["|u1", "|u1"]),
    "frame_difference, out": ([PICTURE, PICTURE, np.zeros(1, np.float32)], ["|u1", "|u1", "<f4"]),
    "noise_control": (
        [np.zeros(4, np.float32), np.full(4, 0.5, np.float32), np.ones(1000, np.float32)],
        ["<f4"] * 3,
    ),
    "mix_noise": (
        [np.zeros(9, np.float32), np.zeros(4, np.float32), np.zeros(9, np.float32)], ["<f4"] * 3
    ),
    "renoise": (
        [np.zeros(9, np.float32)] * 2 + [np.zeros(1, np.float32)] * 2, ["<f4"] * 4
    ),
    "philox_normal": ([np.zeros(9, np.float32)], ["<f4"]),
    "refresh_sinks": (
        [
            np.zeros((1, 2, 3, 6, 4), np.float32), np.zeros((1, 2, 3, 6, 4), np.float32),
            np.zeros((1, 2, 3, 2, 4), np.float32), np.zeros((1, 2, 1), np.int64),
            np.zeros(2, np.int64), np.zeros(2, np.int64),
        ],
        ["<f4"] * 3 + ["<i8"] * 3,
    ),
}  # fmt: skip


@given(st.data(), st.sampled_from(sorted(FITTING)))
@settings(max_examples=400, deadline=None)
def test_any_arguments_give_a_result_or_an_error(data: st.DataObject, name: str) -> None:
    fitting, _ = FITTING[name]
    arrays = [data.draw(arguments(array)) for array in fitting]
    message = ""
    try:
        with np.errstate(all="ignore"):
            CALLS[name][1](*arrays)
    except (ValueError, RuntimeError) as error:
        message = str(error)
    assert message == "" or ": got " in message or "CUDA" in message


@pytest.mark.parametrize("name", sorted(FITTING))
def test_one_array_of_a_device_among_those_of_the_host_is_refused(name: str) -> None:
    fitting, types = FITTING[name]
    call = CALLS[name][1]
    call(*fitting)
    for i, (array, typestr) in enumerate(zip(fitting, types, strict=True)):
        strange = Claims(claim(array.shape, typestr), array.shape)
        with pytest.raises((ValueError, RuntimeError), match=r"CUDA|got "):
            call(*fitting[:i], strange, *fitting[i + 1 :])


WRONG: dict[str, object] = {
    "none": None,
    "a number": 3,
    "empty": {},
    "no type": {"shape": (3, 1, 4, 4), "data": (4096, False)},
    "shape of words": claim(("a", "b")),  # type: ignore[arg-type]
    "negative axis": claim((3, 1, -4, 4)),
    "larger than memory": claim((3, 2**40, 2**40, 4)),
    "too many axes": claim((1,) * 9),
    "strides of other count": claim((3, 1, 4, 4)) | {"strides": (4,)},
    "strides beyond memory": claim((3, 1, 4, 4)) | {"strides": (2**60, 4, 4, 4)},
    "strides between elements": claim((3, 1, 4, 4)) | {"strides": (64, 64, 16, 3)},
    "data that is no pair": claim((3, 1, 4, 4)) | {"data": 4096},
    "an address that is none": claim((3, 1, 4, 4)) | {"data": (None, False)},
    "a type that is none": claim((3, 1, 4, 4), "float32"),
    "of structures": claim((3, 1, 4, 4), "|V4"),
}


@pytest.mark.parametrize("case", sorted(WRONG))
def test_a_wrong_description_is_an_error_of_the_argument(case: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=r"^pixels: got|CUDA"):
        ops.pixels_to_frames(Claims(WRONG[case]))  # type: ignore[arg-type]


class Capsule:
    """Offers DLPack and hands out something else."""

    def __init__(self, place: object, capsule: object) -> None:
        self.shape, self.place, self.capsule = (3, 1, 4, 4), place, capsule

    def __dlpack_device__(self) -> object:
        return self.place

    def __dlpack__(self, **_: object) -> object:
        return self.capsule


@pytest.mark.parametrize("place", [(1, 0), (2, 0), (7, 0), 3, (1,), ("a", "b")])
@pytest.mark.parametrize("capsule", [None, 5, "words"])
def test_dlpack_that_is_none_is_an_error_of_the_argument(place: object, capsule: object) -> None:
    with pytest.raises((ValueError, RuntimeError), match=r"^pixels: got|CUDA"):
        ops.pixels_to_frames(Capsule(place, capsule))  # type: ignore[arg-type]
