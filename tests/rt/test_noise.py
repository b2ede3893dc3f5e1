"""The schedule, the two mixtures and the generator against their definitions and publication."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from rt import noise, ops

Floats = NDArray[np.float32]
LATENTS = hnp.arrays(np.float32, (2, 3), elements=st.floats(-10, 10, width=32))
SHARES = st.floats(0, 1, width=32)
ONES = 0xFFFFFFFF


@pytest.mark.parametrize("shift", [1, 5, 8])
def test_the_table_is_the_shifted_line(shift: int) -> None:
    table = noise.sigma_table(shift)
    assert table.shape == (1000,)
    assert table.dtype == np.float32
    assert table[0] == 1
    assert (np.diff(table) < 0).all()
    for i in (1, 500, 999):
        u = 1 - Fraction(i, 1000)
        assert table[i] == pytest.approx(float(shift * u / (1 + (shift - 1) * u)), rel=1e-6)


@given(st.floats(-50, 1050))
def test_sigma_is_of_the_nearest_timestep(timestep: float) -> None:
    table = noise.sigma_table(8)
    sigma = noise.sigma_at(table, timestep)
    assert sigma in table
    nearest = np.abs(table.astype(np.float64) * 1000 - timestep).min()
    assert abs(sigma * 1000 - timestep) == pytest.approx(nearest, abs=1e-3)


def test_timesteps_of_the_wan_presets_lie_close_to_an_entry() -> None:
    """Entries are 8 timesteps apart at the clean end, which is the widest."""
    table = noise.sigma_table(8)
    for timestep in (700, 500, 400, 200):
        assert noise.sigma_at(table, timestep) == pytest.approx(timestep / 1000, abs=4e-3)


@given(LATENTS, LATENTS, SHARES)
def test_mix_is_between_latent_and_noise(
    latent: Floats,
    eps: Floats,
    scale: float,
) -> None:
    got = noise.mix(latent, scale, eps)
    assert got.dtype == np.float32
    exact = scale * eps.astype(np.float64) + (1 - scale) * latent.astype(np.float64)
    np.testing.assert_allclose(got, exact, atol=4e-6)


@given(LATENTS, LATENTS, LATENTS, SHARES, SHARES)
def test_renoise_undoes_the_path_and_takes_it_again(
    clean: Floats,
    eps: Floats,
    fresh: Floats,
    sigma: float,
    sigma_next: float,
) -> None:
    """With the true velocity eps - x0 the clean latent comes back, at the next sigma."""
    got = noise.renoise(noise.mix(clean, sigma, eps), eps - clean, sigma, sigma_next, fresh)
    np.testing.assert_allclose(got, noise.mix(clean, sigma_next, fresh), atol=2e-5)


def test_the_last_step_gives_the_clean_latent_itself() -> None:
    noisy, velocity = np.array([1.5, -2], np.float32), np.array([0.25, 4], np.float32)
    fresh = np.array([9, 9], np.float32)
    assert noise.renoise(noisy, velocity, 0.5, 0.0, fresh).tolist() == [1.375, -4.0]


@pytest.mark.parametrize(
    "counter, key, words",
    [  # known answers of the generator's publication (Random123, philox4x32, 10 rounds)
        ([0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([ONES] * 4, (ONES, ONES), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_published_words(
    counter: list[int], key: tuple[int, int], words: list[int]
) -> None:
    assert noise.philox4x32(np.array([counter], np.uint32), key).tolist() == [words]


def test_normals_are_box_muller_of_the_words_of_their_counter() -> None:
    seed, session, chunk, step = (5 << 32) + 3, 2, 9, 1
    got = noise.philox_normal(9, seed=seed, session=session, chunk=chunk, step=step)
    assert got.shape == (9,)
    for element in range(9):
        counter = np.array([[element // 4, chunk, step, session]], np.uint32)
        w = noise.philox4x32(counter, (3, 5))[0].tolist()
        pair = 2 * (element % 4 // 2)
        u1, u2 = ((w[pair] >> 8) + 1) / 2**24, (w[pair + 1] >> 8) / 2**24
        turn = np.cos if element % 2 == 0 else np.sin
        expected = np.sqrt(-2 * np.log(u1)) * turn(2 * np.pi * u2)
        assert got[element] == pytest.approx(expected, abs=1e-12)


def test_normals_have_mean_0_and_variance_1() -> None:
    n = 400_000
    x = noise.philox_normal(n, seed=11, session=0, chunk=0, step=0)
    assert abs(x.mean()) < 4 / np.sqrt(n)
    assert abs(x.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs(np.mean(x**4) - 3) < 4 * np.sqrt(96 / n)


@pytest.mark.parametrize("other", [{"seed": 1 << 40}, {"session": 1}, {"chunk": 1}, {"step": 1}])
def test_every_part_of_the_address_gives_other_noise(other: dict[str, int]) -> None:
    n = 40_000
    address = {"seed": 1, "session": 0, "chunk": 0, "step": 0}
    x, y = noise.philox_normal(n, **address), noise.philox_normal(n, **(address | other))
    assert abs(np.mean(x * y)) < 4 / np.sqrt(n)


def test_the_operators_give_the_same_noise() -> None:
    address: Any = {"seed": (1 << 64) - 5, "session": 3, "chunk": 10**9, "step": 2}
    got = ops.philox_normal((16, 5, 7), **address)
    expected = noise.philox_normal(16 * 5 * 7, **address).reshape(16, 5, 7)
    np.testing.assert_allclose(got, expected, atol=2e-6)
