"""The kernels of the flow on a machine without a GPU: the .cu file compiled for the host, threads
as fibers (emulated/cuda_runtime.h). Bit for bit what the host's own loops give, and no byte outside
of what they were given.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rt import ops

CSRC = Path(__file__).parents[2] / "csrc"
HERE = Path(__file__).parent / "emulated"
LAUNCH = re.compile(r"(\w+_kernel)\s*<<<(.+?),\s*0,\s*stream>>>\s*\((.*?)\);", re.DOTALL)
GUARD = 4096


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if shutil.which("g++") is None:
        pytest.skip("no g++ to compile the kernels with")
    folder = tmp_path_factory.mktemp("emulated")
    source = (CSRC / "kernels" / "optical_flow.cu").read_text()
    rewritten, launches = LAUNCH.subn(r"emulated::launch(\2, [&] { \1(\3); });", source)
    assert launches == source.count("<<<") == 8
    (folder / "optical_flow_emulated.cpp").write_text(rewritten)
    library = folder / "flow.so"
    subprocess.run(
        [
            "g++", "-std=c++20", "-O2", "-shared", "-fPIC", "-ffp-contract=off", "-fno-math-errno",
            "-fno-trapping-math", "-fsanitize=undefined", "-fsanitize-undefined-trap-on-error",
            "-I", str(HERE), "-I", str(folder), "-I", str(CSRC), str(HERE / "flow.cpp"),
            str(CSRC / "kernels" / "flow_plan.cpp"), "-o", str(library),
        ],
        check=True,
    )  # fmt: skip
    return ctypes.CDLL(str(library))


def guarded(bytes_: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Memory that begins at a multiple of 256 and holds no numbers, and all of it with guards."""
    whole = np.full(bytes_ + 2 * GUARD, 0xFF, np.uint8)
    begin = GUARD // 2 + (-(whole.ctypes.data + GUARD // 2)) % 256
    return whole[begin : begin + bytes_], whole


def call(
    function: Callable[..., Any], frames: NDArray[np.uint8], extra: int, out: Any, quality: Any
) -> None:
    """`function` over frames [count, H, W, 3] in any strides, in guarded scratch memory."""
    scratch, whole = guarded(ops.flow_scratch(*frames.shape[1:3], len(frames), quality))
    integers = ctypes.c_int64 * 4
    function(
        ctypes.c_void_p(frames.ctypes.data), integers(*frames.shape), integers(*frames.strides),
        ctypes.c_int64(extra), ctypes.c_void_p(out.ctypes.data),
        ctypes.c_void_p(scratch.ctypes.data),
    )  # fmt: skip
    begin = scratch.ctypes.data - whole.ctypes.data
    assert (whole[:begin] == 0xFF).all()
    assert (whole[begin + len(scratch) :] == 0xFF).all()


def moving(count: int, height: int, width: int) -> NDArray[np.uint8]:
    """A cloudy picture that drifts and gets brighter, with noise."""
    rng = np.random.default_rng(height * width)
    made = rng.normal(0, 1, (height + 2 * count, width + 3 * count, 3))
    for axis in (0, 1):
        made = sum(np.roll(made, k, axis) for k in range(4))
    frames = [
        made[2 * i : 2 * i + height, 3 * i : 3 * i + width] * (8 + i) + rng.normal(120, 2, 3)
        for i in range(count)
    ]
    return np.clip(np.stack(frames), 0, 255).astype(np.uint8)


SIZES = [(1, 1), (1, 9), (8, 8), (7, 13), (17, 16), (34, 61)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("quality", ["fast", "accurate"])
def test_the_flow_of_the_kernels_is_that_of_the_host(
    device: ctypes.CDLL, size: tuple[int, int], quality: Any
) -> None:
    frames = moving(2, *size)
    got = np.full((*size, 2), np.nan, np.float32)
    call(device.flow, frames, int(quality == "accurate"), got, quality)
    np.testing.assert_array_equal(got, ops.optical_flow(frames[0], frames[1], quality))


@pytest.mark.parametrize("size", [(1, 1), (21, 40), (250, 300)])
@pytest.mark.parametrize("skip", [0, 1])
def test_the_statistics_of_the_kernels_are_those_of_the_host(
    device: ctypes.CDLL, size: tuple[int, int], skip: int
) -> None:
    # The largest is worked at half of its resolution.
    frames = moving(3 if size[0] < 100 else 2, 2 * size[0], size[1])[:, ::-2, ::-1]
    got = np.full((skip + len(frames) - 1, 5), np.nan, np.float32)
    call(device.magnitude, frames, skip, got, "fast")
    listed = list(frames)
    expected = ops.optical_flow_magnitude(listed[1 - skip :], None if skip else listed[0])
    np.testing.assert_array_equal(got, expected)
    assert got[skip:, 0].all() or size == (1, 1)


def test_one_picture_alone_has_no_motion(device: ctypes.CDLL) -> None:
    frames = moving(1, 20, 30)
    got = np.full((1, 5), np.nan, np.float32)
    call(device.magnitude, frames, 1, got, "fast")
    assert not got.any()
