"""The readable definitions of `window`, `noise` and `motion` against the operators that do the
work, and the schedule against diffusers.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rt import noise, ops, window
from rt.config import Positions
from rt.motion import noise_scale

WORDS = st.integers(0, 0xFFFFFFFF)
SEEDS = st.integers(0, 2**64 - 1)
SHARES = st.floats(0, 1, width=32)


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 8.0])
def test_sigmas_are_those_of_diffusers(shift: float) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)
    table = noise.sigma_table(shift)
    np.testing.assert_allclose(table, scheduler.sigmas.numpy(), rtol=0, atol=2e-7)
    np.testing.assert_allclose(1000 * table, scheduler.timesteps.numpy(), rtol=0, atol=2e-4)


@given(st.sampled_from([1.0, 2.5, 8.0]), st.floats(0, 1000) | st.integers(0, 4000))
@settings(max_examples=100, deadline=None)
def test_sigma_is_that_of_the_nearest_entry(shift: float, timestep: float) -> None:
    """In exact arithmetic, where a tie of rounded numbers may fall either way."""
    timestep = timestep / 4 if isinstance(timestep, int) else timestep
    table = noise.sigma_table(shift)
    sigma = noise.sigma_at(table, timestep)
    away = [abs(Fraction(s) * 1000 - Fraction(timestep)) for s in table.tolist()]
    assert float(away[table.tolist().index(sigma)] - min(away)) <= 1e-9


def test_sigma_of_every_timestep_is_that_of_the_operator() -> None:
    table = noise.sigma_table(8.0)
    for timestep in range(1, 1001):
        record = ops.noise_control(
            np.zeros(1, np.float32), np.zeros(4, np.float32), False, reference=1.0, s_max=1.0,
            s_min=0.0, smoothing=1.0, timestep_offset=timestep - 1000, sigmas=table,
        )  # fmt: skip
        assert record[2] == timestep
        assert record[3] == noise.sigma_at(table, timestep)


@given(st.lists(st.tuples(WORDS, WORDS, WORDS, WORDS), min_size=1, max_size=4), WORDS, WORDS)
def test_words_are_those_of_the_operator(
    counters: list[tuple[int, int, int, int]], k0: int, k1: int
) -> None:
    got = noise.philox4x32(np.array(counters, np.uint32), (k0, k1))
    assert got.tolist() == [list(ops.philox4x32(c, (k0, k1))) for c in counters]


@given(st.integers(1, 2000), SEEDS, WORDS, WORDS, st.integers(0, 4))
@settings(max_examples=50, deadline=None)
def test_normals_are_those_of_the_operator(
    count: int, seed: int, session: int, chunk: int, step: int
) -> None:
    names: Any = {"seed": seed, "session": session, "chunk": chunk, "step": step}
    got = noise.philox_normal(count, **names)
    np.testing.assert_allclose(got, ops.philox_normal((count,), **names), rtol=0, atol=1e-5)


LATENTS = st.integers(0, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).normal(size=(2, 16, 3, 5)).astype(np.float32)
)


@given(LATENTS, SHARES, SEEDS, st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_mix_is_that_of_the_operator(
    pair: NDArray[np.float32], scale: float, seed: int, chunk: int
) -> None:
    latent = pair[0]
    eps = noise.philox_normal(latent.size, seed=seed, session=3, chunk=chunk, step=0)
    mixed = noise.mix(latent, scale, eps.reshape(latent.shape).astype(np.float32))
    control = np.array([0, scale, 0, 0], np.float32)
    got = ops.mix_noise(latent, control, seed=seed, session=3, chunk=chunk)
    np.testing.assert_allclose(mixed, got, rtol=0, atol=1e-5)


@given(LATENTS, SHARES, SHARES, SEEDS, st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_renoise_is_that_of_the_operator(
    pair: NDArray[np.float32], sigma: float, sigma_next: float, seed: int, step: int
) -> None:
    noisy, velocity = pair
    eps = noise.philox_normal(noisy.size, seed=seed, session=3, chunk=5, step=step)
    again = noise.renoise(
        noisy, velocity, sigma, sigma_next, eps.reshape(noisy.shape).astype(np.float32)
    )
    got = ops.renoise(
        noisy, velocity, np.array([sigma], np.float32), np.array([sigma_next], np.float32),
        seed=seed, session=3, chunk=5, step=step,
    )  # fmt: skip
    np.testing.assert_allclose(again, got, rtol=0, atol=1e-5)


def noise_scale_of_the_operator(scores: list[float], previous: float | None, law: Any) -> float:
    before = np.array([np.nan, np.nan if previous is None else previous, 0, 0], np.float32)
    record = ops.noise_control(
        np.array(scores, np.float32), before, previous is not None, timestep_offset=-100,
        sigmas=noise.sigma_table(8.0), **law,
    )  # fmt: skip
    return float(record[1])


@given(
    st.lists(st.floats(0, 1e3, width=32), min_size=1, max_size=4),
    st.none() | st.floats(0, 1, width=32),
    st.floats(1e-2, 1e2),
    st.tuples(st.floats(0.05, 1), st.floats(0, 1)),
    st.floats(0, 1),
)
def test_noise_scale_is_that_of_the_operator(
    scores: list[float],
    previous: float | None,
    reference: float,
    range_: tuple[float, float],
    smoothing: float,
) -> None:
    """Also for ranges that no model has, and bounded by them."""
    s_max, s_min = range_[0], range_[0] * range_[1]
    law = {"reference": reference, "s_max": s_max, "s_min": s_min, "smoothing": smoothing}
    scale = noise_scale(max(scores), previous, **law)
    assert scale == pytest.approx(noise_scale_of_the_operator(scores, previous, law), abs=1e-6)
    inside = min(max(0.5 if previous is None else previous, s_min), s_max)
    assert s_min - 1e-12 <= noise_scale(max(scores), inside, **law) <= s_max + 1e-12


def test_a_score_that_is_no_number_counts_as_0_as_in_the_operator() -> None:
    law = {"reference": 10.0, "s_max": 0.8, "s_min": 0.7, "smoothing": 0.9}
    assert noise_scale(math.nan, 0.75, **law) == pytest.approx(0.9 * 0.8 + 0.075)
    assert noise_scale_of_the_operator([math.nan], 0.75, law) == pytest.approx(0.9 * 0.8 + 0.075)


@given(
    st.integers(1, 7).flatmap(lambda w: st.tuples(st.just(w), st.integers(0, w - 1))),
    st.integers(1, 3),
    st.integers(0, 3),
    st.sampled_from([None, -0.5, 0.2, 0.9]),
    st.sampled_from(["window", "absolute"]),
    st.integers(0, 2**32 - 1),
    st.lists(st.booleans(), max_size=24),
)
@settings(max_examples=80, deadline=None)
def test_refresh_sinks_is_that_of_the_operator(
    shape: tuple[int, int],
    tokens: int,
    pairs: int,
    threshold: float | None,
    positions: Positions,
    seed: int,
    present: list[bool],
) -> None:
    """A row fills its window, then runs some chunks and sits out others."""
    frames, sinks = shape
    rng = np.random.default_rng(seed)
    heads, width = 2, 2 * pairs + 4
    k = rng.normal(size=(1, 1, heads, frames * tokens, width)).astype(np.float32)  # garbage
    v = rng.normal(size=k.shape).astype(np.float32)
    time = rng.normal(size=(1, 1, heads, sinks * tokens, 2 * pairs)).astype(np.float32)
    index = np.full((1, 1, sinks), -1)
    ours: Any = [a[0, 0].astype(np.float64) for a in (k, v, time)]
    our_index = index[0, 0].copy()
    law: Any = {
        "window": frames, "sinks": sinks, "tokens_per_frame": tokens, "theta": 100.0,
        "threshold": threshold, "positions": positions,
    }  # fmt: skip
    last = -1
    for query, runs in enumerate([True] * (frames + 1) + present):
        if not runs:
            continue
        ops.refresh_sinks(k, v, time, index, np.array([last]), np.array([query]), **law)
        window.refresh_sinks(ours[0], ours[1], ours[2], our_index, last, query, **law)
        np.testing.assert_array_equal(index[0, 0], our_index)
        for got, expected in zip((k, v, time), ours, strict=True):
            np.testing.assert_allclose(got[0, 0], expected, rtol=0, atol=2e-5)
        place = window.slot(query, frames, sinks) * tokens
        for theirs, mine in zip((k, v), ours[:2], strict=True):
            new = (rng.normal(size=(heads, tokens, width)) + rng.normal(size=width)).astype("f4")
            theirs[0, 0, :, place : place + tokens] = new
            mine[:, place : place + tokens] = new
        last = query
