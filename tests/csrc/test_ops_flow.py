"""optical_flow and optical_flow_magnitude on pairs with known motion, beside OpenCV's DIS flow.

The classes of motion are those of bench/flow.py, here with two pictures of its five.
"""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage import data

from bench import flow
from rt import ops

Frame = NDArray[np.uint8]


def photo(height: int, width: int, name: str = "astronaut") -> Frame:
    made = cv2.resize(getattr(data, name)(), (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(made, np.uint8)


def moved(frame: Frame, dx: float, dy: float) -> Frame:
    matrix = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
    size = (frame.shape[1], frame.shape[0])
    made = cv2.warpAffine(frame, matrix, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    return np.asarray(made, np.uint8)


def median_error(flow: NDArray[np.float32], dx: float, dy: float) -> float:
    return float(np.median(np.hypot(flow[..., 0] - dx, flow[..., 1] - dy)))


def dis_flow(prev: Frame, next: Frame, preset: int) -> NDArray[np.float32]:
    grey = [cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in (prev, next)]
    flow = cv2.DISOpticalFlow_create(preset).calc(grey[0], grey[1], None)
    return np.asarray(flow, np.float32)


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea"])
def test_translations_are_found_about_as_well_as_by_dis(name: str) -> None:
    frame = photo(240, 416, name)
    motions = [(0.5, 0.0), (0.0, 1.0), (2.0, 1.0), (-3.0, 4.0), (8.0, -4.0), (16.0, 5.0)]
    ours, fast, theirs = [], [], []
    for dx, dy in motions:
        other = moved(frame, dx, dy)
        ours.append(median_error(ops.optical_flow(frame, other), dx, dy))
        fast.append(median_error(ops.optical_flow(frame, other, "fast"), dx, dy))
        theirs.append(
            median_error(dis_flow(frame, other, cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST), dx, dy)
        )
    assert np.mean(fast) <= max(1.25 * np.mean(theirs), 0.3)
    assert np.mean(ours) <= max(1.25 * np.mean(theirs), 0.15)


Classes = dict[str, list[flow.Pair]]


@pytest.fixture(scope="module")
def classes() -> Classes:
    return flow.classes(("coffee", "clouds"))


# ours, theirs, the share of their error that is allowed, the error that always is
BARS = [
    ("ours accurate", "DIS medium", 1.25, 0.15),
    ("ours fast", "DIS ultrafast", 1.1, 0.3),
]


@pytest.mark.parametrize("ours, theirs, share, always", BARS)
def test_every_class_of_motion_is_found(
    classes: Classes, ours: str, theirs: str, share: float, always: float
) -> None:
    found = {name: flow.median_error(flow.METHODS[ours], pairs) for name, pairs in classes.items()}
    for name, error in found.items():
        if error > always:
            bar = share * flow.median_error(flow.METHODS[theirs], classes[name])
            assert error <= bar, (name, found)


def test_the_mean_magnitude_ranks_motions_as_they_are(classes: Classes) -> None:
    assert flow.rank_correlation(classes) >= 0.98


def shading(name: str) -> Frame:
    """Light on a wall, without any texture: steps of single grey levels, tens of pixels wide."""
    y, x = np.mgrid[: flow.HEIGHT, : flow.WIDTH]
    from_middle = np.hypot(x - flow.WIDTH / 2, y - flow.HEIGHT / 2)
    grey = {
        "ramp": 40 + 160 * x / flow.WIDTH,
        "faint ramp": 100 + 30 * (x + y) / (flow.WIDTH + flow.HEIGHT),
        "vignette": 10 + 200 * np.exp(-(from_middle**2) / (2 * 300.0**2)),
        "lamp": 30 + 170 * np.exp(-((x - 200.0) ** 2 + (y - 100.0) ** 2) / (2 * 200.0**2)),
    }[name]
    return np.repeat(np.round(grey).astype(np.uint8)[..., None], 3, 2)


SHADED = ("ramp", "faint ramp", "vignette", "lamp")
PHOTOS = ("coffee", "clouds", "rocket", "camera", "moon", "clock", "coins", "retina")


@pytest.mark.parametrize("name", PHOTOS + SHADED)
@pytest.mark.parametrize("gain", [0.8, 1.2])
def test_flicker_alone_reports_hardly_any_motion(name: str, gain: float) -> None:
    # Skies, the moon, the wall behind the clock are shading in steps of one grey level, and these
    # steps do move.
    frame = shading(name) if name in SHADED else flow.picture(name)
    pair = flow.lit(flow.translation(frame, 0.0, 0.0), gain)
    mean, median, p90, _, moving = ops.optical_flow_magnitude([pair.next], pair.prev)[0]
    assert mean < 0.1
    assert median < 0.1
    assert p90 < 0.35
    assert moving < 0.05


@pytest.mark.parametrize("gain", [0.8, 1.2])
def test_brightness_is_no_motion(gain: float) -> None:
    frame = (photo(240, 416) * 0.8).astype(np.uint8)
    other = np.round(frame * gain).astype(np.uint8)
    mean, median, p90, _, moving = ops.optical_flow_magnitude([other], frame)[0]
    assert mean < 0.1
    assert median < 0.1
    assert p90 < 0.1
    assert moving < 0.01
    assert np.median(np.linalg.norm(dis_flow(frame, other, 0), axis=2)) > mean


def test_brightness_does_not_hide_motion() -> None:
    frame = (photo(240, 416) * 0.8).astype(np.uint8)
    other = np.round(moved(frame, 6, -3) * 1.2).astype(np.uint8)
    assert median_error(ops.optical_flow(frame, other), 6, -3) < 0.15


@given(st.integers(1, 70), st.integers(1, 90), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_equal_pictures_do_not_move(height: int, width: int, threads: int) -> None:
    frame = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    for quality in ("accurate", "fast"):
        assert not ops.optical_flow(frame, frame.copy(), quality, threads=threads).any()
    assert not ops.optical_flow_magnitude([frame, frame.copy()], frame).any()


@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 9), st.sampled_from([-1, 1]))
@settings(max_examples=40, deadline=None)
def test_any_size_and_stride_gives_the_same_as_a_copy(
    height: int, width: int, seed: int, step: int
) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 256, (2, height, width, 3), np.uint8)[:, ::step, :, ::step]
    flow = ops.optical_flow(a, b, threads=1)
    assert np.isfinite(flow).all()
    np.testing.assert_array_equal(flow, ops.optical_flow(a.copy(), b.copy(), threads=3))
    out = np.empty((width, height, 2), np.float32).transpose(1, 0, 2)
    np.testing.assert_array_equal(flow, ops.optical_flow(a, b, out=out))


@given(st.data(), st.integers(1, 40), st.integers(1, 40), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_statistics_of_any_strides_are_those_of_a_copy(
    data: st.DataObject, height: int, width: int, count: int
) -> None:
    rng = np.random.default_rng(height * width)
    step = [data.draw(st.sampled_from([1, -1, 2, -2])) for _ in range(2)]
    whole = rng.integers(0, 256, (count + 1, 2 * height, 2 * width, 3), np.uint8)
    frames = whole[:, :: step[0], :: step[1], :: data.draw(st.sampled_from([1, -1]))]
    frames.flags.writeable = False
    last = data.draw(st.sampled_from([None, frames[0]]))
    rows = ops.optical_flow_magnitude(list(frames[1:]), last, threads=1)
    assert np.isfinite(rows).all()
    copies = [frame.copy() for frame in frames]
    again = ops.optical_flow_magnitude(copies[1:], None if last is None else copies[0])
    np.testing.assert_array_equal(rows, again)
    mean, median, p90, most, moving = rows.T
    assert (median <= p90).all()
    assert (p90 <= most).all()
    assert (mean <= most).all()
    assert ((moving >= 0) & (moving <= 1)).all()


def test_result_does_not_depend_on_threads() -> None:
    frames = [moved(photo(480, 832), 3 * k, k) for k in range(4)]
    one = ops.optical_flow_magnitude(frames[1:], frames[0], threads=1)
    for threads in (2, 3, 8):
        np.testing.assert_array_equal(
            one, ops.optical_flow_magnitude(frames[1:], frames[0], threads=threads)
        )


def test_magnitude_describes_the_fast_field() -> None:
    frame = photo(128, 160)
    other = moved(frame, 4, 3)
    row = ops.optical_flow_magnitude([other], frame)[0]
    lengths = np.linalg.norm(ops.optical_flow(frame, other, "fast"), axis=2)
    # 128 x 160 is worked at full resolution, so nothing lies between field and statistics.
    np.testing.assert_allclose(row[0], lengths.mean(), rtol=1e-5)
    np.testing.assert_allclose(row[1], np.quantile(lengths, 0.5, method="inverted_cdf"), rtol=1e-6)
    np.testing.assert_allclose(row[2], np.quantile(lengths, 0.9, method="inverted_cdf"), rtol=1e-6)
    np.testing.assert_allclose(row[3], lengths.max(), rtol=1e-6)
    np.testing.assert_allclose(row[4], (lengths > 0.5).mean(), atol=1e-6)
    assert abs(row[1] - 5) < 0.3


def test_the_first_frame_without_predecessor_is_zero() -> None:
    frames = [photo(64, 64), moved(photo(64, 64), 2, 0)]
    rows = ops.optical_flow_magnitude(frames, None)
    assert not rows[0].any()
    np.testing.assert_array_equal(rows[1:], ops.optical_flow_magnitude(frames[1:], frames[0]))


def test_bad_arguments_are_named() -> None:
    frame = photo(32, 32)
    with pytest.raises(ValueError, match=r"^next: got uint8 \[31, 32, 3\], expected shape"):
        ops.optical_flow(frame, frame[1:])
    with pytest.raises(ValueError, match=r"^prev: got float32"):
        ops.optical_flow(frame.astype(np.float32), frame)
    with pytest.raises(ValueError, match=r'^quality: got "best", expected "accurate" or "fast"'):
        ops.optical_flow(frame, frame, "best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^out: got float32 \[1, 4\], expected shape \[1, 5\]"):
        ops.optical_flow_magnitude([frame], frame, np.empty((1, 4), np.float32))
    with pytest.raises(ValueError, match=r"^pictures: got 0, expected 1 to 1024"):
        ops.flow_scratch(32, 32, 0)
    with pytest.raises(ValueError, match=r"^height: got 0, expected 1 to "):
        ops.flow_scratch(0, 32, 2)
    with pytest.raises(ValueError, match=r"^frames\[1\]: got uint8 \[31, 32, 3\]"):
        ops.optical_flow_magnitude([frame, frame[1:]], frame)
