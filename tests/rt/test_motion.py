"""The noise controller of the paper: its range, its direction, its memory, its constants."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from rt import noise, ops
from rt.motion import DIFFERENCE_REFERENCE, noise_scale, reference_of

WAN: Any = {"reference": 0.2, "s_max": 0.8, "s_min": 0.7, "smoothing": 0.9}
SCORES = st.floats(0, 100)
SCALES = st.floats(0.7, 0.8)


def test_a_picture_without_predecessor_has_the_highest_noise() -> None:
    assert noise_scale(99.0, None, **WAN) == 0.8


@given(st.floats(-1, 100), SCALES)
def test_the_scale_stays_in_the_range_of_the_model(score: float, previous: float) -> None:
    assert 0.7 - 1e-12 <= noise_scale(score, previous, **WAN) <= 0.8 + 1e-12


@given(SCORES, SCORES, SCALES)
def test_more_motion_never_means_more_noise(a: float, b: float, previous: float) -> None:
    slow, fast = sorted((a, b))
    assert noise_scale(fast, previous, **WAN) <= noise_scale(slow, previous, **WAN)


@pytest.mark.parametrize(
    "score, previous, expected",
    [  # lambda (s_max - 0.1 d) + (1 - lambda) s_prev, by hand
        (0.0, 0.8, 0.8),
        (0.2, 0.8, 0.71),
        (5.0, 0.8, 0.71),
        (0.1, 0.7, 0.745),
        (0.2, 0.7, 0.7),
    ],
)
def test_the_constants_of_the_released_code(score: float, previous: float, expected: float) -> None:
    assert noise_scale(score, previous, **WAN) == pytest.approx(expected)


@given(SCORES)
def test_constant_motion_settles(score: float) -> None:
    scale = 0.8
    for _ in range(20):
        scale = noise_scale(score, scale, **WAN)
    assert scale == pytest.approx(0.8 - 0.1 * min(score / 0.2, 1), abs=1e-9)


def test_a_score_that_is_no_number_counts_as_no_motion() -> None:
    assert noise_scale(math.nan, 0.7, **WAN) == noise_scale(0.0, 0.7, **WAN)


def test_reference_of_flow_grows_with_the_picture_and_of_difference_does_not() -> None:
    assert reference_of("flow", 960, 1664) == pytest.approx(2 * reference_of("flow", 480, 832))
    assert reference_of("flow", 300, 400) == pytest.approx(5)
    assert reference_of("difference", 480, 832) == DIFFERENCE_REFERENCE == 0.2


@given(
    st.lists(st.floats(0, 1, width=32), min_size=1, max_size=4),
    st.none() | st.floats(0.5, 0.875, width=32),
)
def test_the_operator_follows_the_definition(scores: list[float], previous: float | None) -> None:
    control = ops.noise_control(
        np.array(scores, np.float32),
        np.array([0, previous or 0, 0, 0], np.float32),
        previous is not None,
        timestep_offset=-100,
        sigmas=noise.sigma_table(8),
        **WAN,
    )
    scale = noise_scale(max(scores), previous, **WAN)
    assert control[0] == np.float32(max(scores))
    assert control[1] == pytest.approx(scale, abs=1e-6)
    assert abs(control[2] - (int(1000 * scale) - 100)) <= 1
    assert control[3] == pytest.approx(
        noise.sigma_at(noise.sigma_table(8), float(control[2])), abs=1e-6
    )
