"""From pictures to noise: what the flow does with a pan, a rest and a lamp, and the difference not.

Through the operators, with the constants of the runtime.
"""

from __future__ import annotations

import numpy as np
import pytest

from bench import motion as scenes

S_MAX, S_MIN = scenes.RANGE["s_max"], scenes.RANGE["s_min"]
SETTLED = 2  # chunks until the noise scale has come from that of the start


def test_a_still_camera_keeps_the_noise_and_a_fast_pan_takes_it_down() -> None:
    found = scenes.scores(scenes.still_then_pan(), "flow")
    scales = scenes.noise_scales(found, "flow")
    assert scales[:5].min() > S_MAX - 0.005
    assert scales[-1] == pytest.approx(S_MIN, abs=1e-3)
    assert (np.diff(scales[SETTLED:]) < 2e-3).all()


def test_a_steady_pan_gives_a_steady_noise_scale() -> None:
    frames = scenes.pan_over_shading()
    flow = scenes.noise_scales(scenes.scores(frames, "flow"), "flow")[SETTLED:]
    assert np.ptp(flow) < 0.002
    assert flow.mean() == pytest.approx((S_MAX + S_MIN) / 2, abs=0.005)
    difference = scenes.noise_scales(scenes.scores(frames, "difference"), "difference")[SETTLED:]
    # It sleeps, and follows the contrast of what is panned over instead.
    assert difference.min() > S_MAX - 0.025
    assert np.ptp(difference) > max(0.01, 5 * np.ptp(flow))


def test_a_lamp_that_flickers_does_not_lower_the_noise() -> None:
    frames = scenes.flickering_lamp()
    flow = scenes.noise_scales(scenes.scores(frames, "flow"), "flow")
    assert flow.min() > S_MAX - 0.005
    difference = scenes.noise_scales(scenes.scores(frames, "difference"), "difference")
    assert difference.min() < S_MIN + 0.01
