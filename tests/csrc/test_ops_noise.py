"""Philox, mix_noise, renoise and noise_control against the publication and NumPy definitions."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rt import ops

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    "counter, key, words",
    [  # known answers of the Random123 distribution, philox4x32-10
        ([0] * 4, [0] * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ([ONES] * 4, [ONES] * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_words(
    counter: list[int], key: list[int], words: tuple[int, ...]
) -> None:
    assert ops.philox4x32(counter, key) == words


def philox(count: int, seed: int, session: int, chunk: int, step: int) -> NDArray[np.uint32]:
    """[count, 4] words in NumPy's 64-bit integers."""
    low = np.uint64(ONES)
    c = [np.arange(count, dtype=np.uint64)] + [
        np.full(count, w, np.uint64) for w in (chunk, step, session)
    ]
    k0, k1 = seed & ONES, seed >> 32
    for _ in range(10):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [
            (b >> np.uint64(32)) ^ c[1] ^ np.uint64(k0),
            b & low,
            (a >> np.uint64(32)) ^ c[3] ^ np.uint64(k1),
            a & low,
        ]
        k0, k1 = (k0 + 0x9E3779B9) & ONES, (k1 + 0xBB67AE85) & ONES
    return np.stack(c, axis=1).astype(np.uint32)


def normal(count: int, seed: int, session: int, chunk: int, step: int) -> NDArray[np.float64]:
    words = philox(-(-count // 4), seed, session, chunk, step) >> np.uint32(8)
    u1, u2 = (words[:, ::2] + 1.0) * 2.0**-24, words[:, 1::2] * 2.0**-24
    radius, angle = np.sqrt(-2 * np.log(u1)), 2 * np.pi * u2
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=2).reshape(-1)[:count]


@given(
    st.integers(1, 3000),
    st.integers(0, 2**64 - 1),
    st.integers(0, ONES),
    st.integers(0, ONES),
    st.integers(0, 4),
    st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_noise_is_its_definition(
    count: int, seed: int, session: int, chunk: int, step: int, threads: int
) -> None:
    names = {"seed": seed, "session": session, "chunk": chunk, "step": step}
    got = ops.philox_normal((count,), **names, threads=threads)
    np.testing.assert_allclose(got, normal(count, **names), atol=2e-6, rtol=1e-6)


def test_noise_is_standard_normal_and_independent() -> None:
    n = 4_000_000
    eps = ops.philox_normal((n,), seed=2024, session=3, chunk=5, step=1).astype(np.float64)
    assert abs(eps.mean()) < 4 / np.sqrt(n)
    assert abs(eps.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs((eps**3).mean()) < 4 * np.sqrt(15 / n)
    assert abs((eps**4).mean() - 3) < 4 * np.sqrt(96 / n)
    for lag in (1, 2, 3, 4):
        assert abs((eps[lag:] * eps[:-lag]).mean()) < 4 / np.sqrt(n)
    for other in ({"step": 2}, {"chunk": 6}, {"session": 4}, {"seed": 2025}):
        names = {"seed": 2024, "session": 3, "chunk": 5, "step": 1} | other
        assert abs((eps * ops.philox_normal((n,), **names)).mean()) < 4 / np.sqrt(n)


def test_smallest_and_largest_numbers_are_finite() -> None:
    eps = ops.philox_normal((1 << 22,), seed=0, session=0, chunk=0, step=0)
    assert np.isfinite(eps).all()
    assert np.abs(eps).max() < np.sqrt(-2 * np.log(2.0**-24)) + 1e-3


def latent_of(kind: str, seed: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    values = np.random.default_rng(seed).normal(size=(2 * shape[0], *shape[1:])).astype(np.float32)
    if kind == "strided":
        return values[::-2]
    if kind == "transposed":
        return np.asfortranarray(values[: shape[0]])
    return values[: shape[0]].copy()


KINDS = st.sampled_from(["packed", "strided", "transposed"])
SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 40))


@given(SHAPES, KINDS, KINDS, st.floats(0, 1, width=32), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_mix_noise_is_its_definition(
    shape: tuple[int, int, int], kind: str, out_kind: str, s: float, threads: int
) -> None:
    latent, out = latent_of(kind, 1, shape), latent_of(out_kind, 2, shape)
    control = np.array([9, s, 9, 9], np.float32)
    eps = ops.philox_normal(shape, seed=7, session=1, chunk=2, step=0)
    expected = control[1] * eps + (np.float32(1) - control[1]) * latent
    names = {"seed": 7, "session": 1, "chunk": 2}
    assert ops.mix_noise(latent, control, **names, out=out, threads=threads) is out
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(ops.mix_noise(latent, control, **names), expected)


@given(SHAPES, KINDS, st.floats(0, 1, width=32), st.floats(0, 1, width=32), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_renoise_is_its_definition(
    shape: tuple[int, int, int], kind: str, sigma: float, sigma_next: float, step: int
) -> None:
    noisy, velocity = latent_of(kind, 1, shape), latent_of("packed", 2, shape)
    now, then = np.array([sigma], np.float32), np.array([sigma_next], np.float32)
    eps = ops.philox_normal(shape, seed=7, session=1, chunk=2, step=step)
    clean = noisy - now * velocity
    expected = (np.float32(1) - then) * clean + then * eps if sigma_next else clean
    names = {"seed": 7, "session": 1, "chunk": 2, "step": step}
    np.testing.assert_array_equal(ops.renoise(noisy, velocity, now, then, **names), expected)
    ops.renoise(noisy, velocity, now, then, **names, out=noisy)
    np.testing.assert_array_equal(noisy, expected)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_latents_compute_in_float32(dtype: type) -> None:
    latent = latent_of("packed", 3, (4, 50, 13)).astype(dtype)
    control = np.array([0, 0.3, 0, 0], np.float32)
    names = {"seed": 1, "session": 2, "chunk": 3}
    exact = ops.mix_noise(latent.astype(np.float32), control, **names).astype(dtype)
    view = latent.view(np.uint16) if dtype is ml_dtypes.bfloat16 else latent
    got = ops.mix_noise(view, control, **names)
    np.testing.assert_array_equal(got.view(np.uint16), exact.view(np.uint16))


def test_bfloat16_keeps_nan_and_infinity() -> None:
    control = np.zeros(4, np.float32)
    latent = np.array([0x7F80, 0xFF80, 0x7F81, 0x7FFF, 0x0001], np.uint16)
    got = ops.mix_noise(latent, control, seed=0, session=0, chunk=0).view(ml_dtypes.bfloat16)
    assert np.isposinf(got[0])
    assert np.isneginf(got[1])
    assert np.isnan(got[2])
    assert np.isnan(got[3])
    assert got.view(np.uint16)[4] == 1


SIGMAS = np.linspace(1, 0, 1000, endpoint=False).astype(np.float64)
SIGMAS = (8 * SIGMAS / (1 + 7 * SIGMAS)).astype(np.float32)
RANGE = {"reference": 12.0, "s_max": 0.8, "s_min": 0.7, "smoothing": 0.9, "timestep_offset": -100}


@given(
    st.lists(st.floats(0, 40, width=32), min_size=1, max_size=4),
    st.floats(0, 1, width=32),
    st.booleans(),
    st.integers(-100, 50),
)
@settings(max_examples=200, deadline=None)
def test_noise_control_is_its_definition(
    scores: list[float], previous: float, has_previous: bool, offset: int
) -> None:
    before = np.array([0, previous, 0, 0], np.float32)
    names = RANGE | {"timestep_offset": offset}
    got = ops.noise_control(
        np.array(scores, np.float32), before, has_previous, **names, sigmas=SIGMAS
    )
    d = min(max(scores) / 12.0, 1.0)
    s = 0.8
    if has_previous:
        s = 0.9 * (0.8 - (0.8 - 0.7) * d) + (1 - 0.9) * float(before[1])
    timestep = max(1, int(1000 * s + 1e-3) + offset)
    nearest = np.argmin(np.abs(1000.0 * SIGMAS.astype(np.float64) - timestep))
    assert got.tolist() == [max(scores), np.float32(s), timestep, SIGMAS[nearest]]


def test_noise_control_of_a_still_picture_is_steady() -> None:
    record = np.zeros(4, np.float32)
    for chunk in range(50):
        record = ops.noise_control(
            np.zeros(4, np.float32), record, chunk > 0, **RANGE, sigmas=SIGMAS
        )
        assert record[1] == np.float32(0.8)
        assert record[2] == 700


def test_noise_control_reads_a_column_of_the_statistics() -> None:
    statistics = np.arange(20, dtype=np.float32).reshape(4, 5)
    names = {
        "reference": 40.0, "s_max": 0.8, "s_min": 0.5, "smoothing": 0.5, "timestep_offset": 0,
        "sigmas": np.linspace(1, 0, 1000, dtype=np.float32),
    }  # fmt: skip
    previous = np.array([0, 0.7, 700, 0.7], np.float32)
    for scores in (statistics[:, 2], statistics[::-1, 1]):
        got = ops.noise_control(scores, previous, True, **names)  # type: ignore[arg-type]
        packed = ops.noise_control(scores.copy(), previous, True, **names)  # type: ignore[arg-type]
        np.testing.assert_array_equal(got, packed)
        assert got[0] == scores.max()


def test_noise_control_ignores_scores_that_are_no_number() -> None:
    record = ops.noise_control(
        np.array([np.nan, 3, np.nan], np.float32), np.zeros(4, np.float32), False,
        **RANGE, sigmas=SIGMAS,
    )  # fmt: skip
    assert record[0] == 3


def test_bad_arguments_are_named() -> None:
    z, control, one = np.zeros((2, 3), np.float32), np.zeros(4, np.float32), np.ones(1, np.float32)
    names = {"seed": 0, "session": 0, "chunk": 0}
    with pytest.raises(ValueError, match=r"^control: got float32 \[3\], expected shape \[4\]"):
        ops.mix_noise(z, control[:3], **names)
    with pytest.raises(ValueError, match=r"^out: got float32 \[3, 2\], expected shape \[2, 3\]"):
        ops.mix_noise(z, control, **names, out=np.empty((3, 2), np.float32))
    with pytest.raises(ValueError, match=r"^out: got float16"):
        ops.mix_noise(z, control, **names, out=np.empty((2, 3), np.float16))
    with pytest.raises(ValueError, match=r"^latent: got int64"):
        ops.mix_noise(z.astype(np.int64), control, **names)
    with pytest.raises(ValueError, match=r"^latent: .* at least one element"):
        ops.mix_noise(z[:0], control, **names)
    with pytest.raises(ValueError, match=r"^velocity: "):
        ops.renoise(z, z[:1], one, one, **names, step=1)
    with pytest.raises(ValueError, match=r"^sigma_next: got float32 \[2\]"):
        ops.renoise(z, z, one, control[:2], **names, step=1)
    with pytest.raises(ValueError, match=r"^seed: got -1, expected 0 to 2\^64 - 1"):
        ops.philox_normal((4,), seed=-1, session=0, chunk=0, step=0)
    with pytest.raises(ValueError, match=r"^chunk: got 4294967296"):
        ops.philox_normal((4,), seed=0, session=0, chunk=2**32, step=0)
    with pytest.raises(ValueError, match=r"^s_min: got 0.9, expected 0 to 0.8"):
        ops.noise_control(control, control, False, **(RANGE | {"s_min": 0.9}), sigmas=SIGMAS)
    with pytest.raises(ValueError, match=r"^reference: got nan"):
        ops.noise_control(
            control, control, False, **(RANGE | {"reference": float("nan")}), sigmas=SIGMAS
        )
