"""Linear layers and attention of every kernel that this processor runs, against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rt import ops_matrix

Floats = NDArray[np.float32]
KERNELS = ops_matrix.matrix_kernels()
FEW = settings(max_examples=25, deadline=None)


def normal(seed: int, *shape: int) -> Floats:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def spread(kernel: str, a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Most by which a kernel may miss a b^T: in float32; with 16 bits of each factor; or with rows
    of whole numbers, the largest of which is at most 32767 and stands for at most a row's length.
    """
    a, b = np.abs(a.astype(np.float64)), np.abs(b.astype(np.float64)).swapaxes(-1, -2)
    if kernel.endswith("vnni"):
        half = 0.505 / 32767
        lengths = (
            np.linalg.norm(a, axis=-1, keepdims=True),
            np.linalg.norm(b, axis=-2, keepdims=True),
        )
        sums = a.sum(-1, keepdims=True), b.sum(-2, keepdims=True)
        by_rows: NDArray[Any] = half * (sums[0] * lengths[1] + lengths[0] * sums[1])
        return by_rows + 2.0**-21 * (a @ b)
    return (2.0**-15 if kernel == "amx" else 2.0**-21) * (a @ b)


def gelu(x: NDArray[Any]) -> NDArray[Any]:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def softmax(x: NDArray[Any]) -> NDArray[Any]:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("kernel", KERNELS)
@FEW
@given(
    st.integers(1, 3), st.integers(1, 70), st.integers(1, 300), st.integers(1, 100),
    st.booleans(), st.booleans(), st.booleans(),
)  # fmt: skip
def test_a_linear_layer_is_what_numpy_says(
    kernel: str, batch: int, rows: int, inputs: int, outputs: int,
    with_gelu: bool, with_residual: bool, with_gate: bool,
) -> None:  # fmt: skip
    x, weight, bias = normal(1, batch, rows, inputs), normal(2, outputs, inputs), normal(3, outputs)
    residual = normal(4, batch, rows, outputs) if with_residual else None
    gate = normal(5, batch, 1, outputs) if with_gate else None
    got = ops_matrix.linear(
        x, weight, bias, residual=residual, gate=gate, gelu=with_gelu, kernel=kernel
    )
    wide = [None if a is None else a.astype(np.float64) for a in (x, weight, bias, residual, gate)]
    x64, w64, b64, r64, g64 = wide
    assert x64 is not None
    assert w64 is not None
    y = x64 @ w64.T + b64
    y = gelu(y) if with_gelu else y
    y = y if g64 is None else y * g64
    y = y if r64 is None else y + r64
    error = 2.0**-19 + spread(kernel, x, weight)  # GELU's slope is at most 1.13
    factor = 1.0 if g64 is None else 1 + np.abs(g64)
    assert (np.abs(got - y) <= 2 * error * factor).all()


@pytest.mark.parametrize("kernel", KERNELS)
@FEW
@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 70), st.integers(1, 600),
    st.integers(1, 70), st.integers(0, 99), st.booleans(),
)  # fmt: skip
def test_attention_is_what_numpy_says(
    kernel: str, batch: int, heads: int, queries: int, keys: int, size: int, seed: int, hide: bool
) -> None:
    q = normal(seed, batch, heads, queries, size) * np.float32(2 / size**0.5)
    k, v = normal(seed + 1, batch, heads, keys, size), normal(seed + 2, batch, heads, keys, size)
    hidden = np.random.default_rng(seed).random((batch, 1, 1, keys)) < 0.5
    hidden[..., seed % keys] = False
    mask = np.where(hidden, -np.inf, 0).astype(np.float32) if hide else None
    got = ops_matrix.attention(q, k, v, mask, kernel=kernel)
    score = q.astype(np.float64) @ k.astype(np.float64).swapaxes(-1, -2)
    weight = softmax(score if mask is None else score + mask)
    expected = (weight @ v.astype(np.float64)).swapaxes(1, 2).reshape(got.shape)
    # Weights are off by as much as their scores; then they and the values are rounded once more.
    ones = np.ones((1, min(keys, 96)))
    error = spread(kernel, q, k).max() + spread(kernel, ones, ones).max() + 2.0**-19
    assert np.abs(got - expected).max() <= 2 * error * np.abs(v).max()


@pytest.mark.parametrize("kernel", KERNELS)
@FEW
@given(st.integers(1, 70), st.integers(2, 300), st.integers(1, 40), st.integers(0, 99))
def test_hidden_keys_are_not_read_and_neighbours_and_threads_change_no_bit(
    kernel: str, queries: int, keys: int, size: int, seed: int
) -> None:
    q, k, v = (normal(seed, 3, 2, n, size) for n in (queries, keys, keys))
    mask = np.zeros((3, 1, 1, keys), np.float32)
    mask[1, ..., : keys // 2] = -np.inf
    expected = ops_matrix.attention(q, k, v, mask, kernel=kernel, threads=1)
    k[1, :, : keys // 2], v[1, :, : keys // 2] = np.nan, np.inf
    assert np.array_equal(ops_matrix.attention(q, k, v, mask, kernel=kernel, threads=3), expected)
    for row in range(3):
        alone = (np.ascontiguousarray(a[row : row + 1]) for a in (q, k, v, mask))
        got = ops_matrix.attention(*alone, kernel=kernel, threads=2)
        assert np.array_equal(got, expected[row : row + 1])


@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=60, deadline=None)
@example(rows=33, inputs=65, outputs=1, with_gelu=False)
@given(st.integers(1, 70), st.integers(1, 300), st.integers(1, 70), st.booleans())
def test_a_row_of_a_layer_has_its_bits_in_any_batch(
    kernel: str, rows: int, inputs: int, outputs: int, with_gelu: bool
) -> None:
    x, weight, bias = normal(1, 3, rows, inputs), normal(2, outputs, inputs), normal(3, outputs)
    gate = normal(4, 3, 1, outputs)
    expected = ops_matrix.linear(
        x, weight, bias, gate=gate, gelu=with_gelu, kernel=kernel, threads=3
    )
    for row in range(3):
        one = slice(row, row + 1)
        got = ops_matrix.linear(
            x[one], weight, bias, gate=gate[one], gelu=with_gelu, kernel=kernel, threads=1
        )
        assert np.array_equal(got, expected[one])


@pytest.mark.parametrize("kernel", KERNELS)
@FEW
@given(st.integers(1, 3), st.integers(1, 70), st.integers(2, 300), st.integers(0, 99))
def test_modulation_is_what_numpy_says(
    kernel: str, batch: int, rows: int, width: int, seed: int
) -> None:
    x = normal(seed, batch, rows, width) * np.float32(3) + np.float32(2)
    scale, shift = normal(seed + 1, batch, 1, width), normal(seed + 2, batch, 1, width)
    got = ops_matrix.modulate(x, scale, shift, eps=1e-6, kernel=kernel)
    wide = x.astype(np.float64)
    plain = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-6)
    size = (np.abs(plain) + np.abs(wide).max() / wide.std(-1, keepdims=True)) * (1 + np.abs(scale))
    error = np.abs(got - (plain * (1 + scale.astype(np.float64)) + shift))
    assert (error <= 2.0**-20 * (size + np.abs(shift))).all()


@pytest.mark.parametrize("kernel", KERNELS)
@FEW
@given(
    st.integers(1, 3), st.integers(1, 70), st.integers(1, 4), st.integers(1, 40), st.booleans(),
    st.integers(0, 99),
)  # fmt: skip
def test_split_heads_is_what_numpy_says(
    kernel: str, batch: int, tokens: int, heads: int, pairs: int, turned: bool, seed: int
) -> None:
    x, weight = normal(seed, batch, tokens, heads * 2 * pairs), normal(seed, heads * 2 * pairs)
    angle = normal(seed, batch, tokens, pairs)
    rope = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    got = ops_matrix.split_heads(
        x, weight, rope if turned else None, heads=heads, eps=1e-6, factor=0.125, kernel=kernel
    )
    wide = x.astype(np.float64)
    y = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6) * weight * 0.125
    y = y.reshape(batch, tokens, heads, pairs, 2).swapaxes(1, 2)
    y = y[..., 0] + 1j * y[..., 1]  # [B, N, S, pairs]
    y = y * (rope[:, None, 0] + 1j * rope[:, None, 1]) if turned else y
    expected = np.stack([y.real, y.imag], axis=-1).reshape(got.shape)
    assert np.abs(got - expected).max() <= 2.0**-20 * max(1.0, np.abs(y).max())


def test_far_scores_neither_overflow_nor_vanish() -> None:
    """exp far below its range is nothing; the largest score decides, wherever it stands."""
    q, v = np.ones((1, 1, 1, 1), np.float32), np.arange(4, dtype=np.float32).reshape(1, 1, 4, 1)
    for kernel in KERNELS:
        for scores in ([-1e4, 3e4, -3e4, 0.0], [-500.0, -400.0, -450.0, -500.0]):
            k = np.float32(scores).reshape(1, 1, 4, 1)
            assert ops_matrix.attention(q, k, v, kernel=kernel).item() == pytest.approx(
                1.0, abs=1e-4
            )


def test_what_does_not_fit_is_refused() -> None:
    q, k = np.zeros((1, 2, 3, 4), np.float32), np.zeros((1, 2, 5, 4), np.float32)
    with pytest.raises(ValueError, match="kernel"):
        ops_matrix.attention(q, k, k, kernel="abacus")
    for wrong in (k[:, :1], k[..., :3], k[:, :, :2].copy()):
        with pytest.raises(ValueError, match=r"step 0 \(attention\): v: got \["):
            ops_matrix.attention(q, k, np.ascontiguousarray(wrong))
    for wrong in (k.astype(np.float64), k[:, :, ::2]):
        with pytest.raises(ValueError, match="inputs: got"):
            ops_matrix.attention(q, k, wrong)
    with pytest.raises(ValueError, match="mask"):
        ops_matrix.attention(q, k, k, np.zeros((1, 5), np.float32))
    x, weight, bias = q[0], np.zeros((6, 4), np.float32), np.zeros(6, np.float32)
    with pytest.raises(ValueError, match="bias"):
        ops_matrix.linear(x, weight, bias[:5])
    with pytest.raises(ValueError, match="gate"):
        ops_matrix.linear(x, weight, bias, gate=np.zeros((1, 1, 6), np.float32))


@FEW
@given(
    st.sampled_from(KERNELS), st.integers(1, 3), st.integers(1, 140), st.integers(1, 3),
    st.integers(1, 5), st.integers(1, 70), st.integers(1, 4),
)  # fmt: skip
def test_a_chain_is_its_steps_one_after_another(
    kernel: str, batch: int, tokens: int, heads: int, pairs: int, keys: int, threads: int
) -> None:
    size = 2 * pairs
    width = heads * size
    x, gate = normal(1, batch, tokens, width), normal(2, batch, 1, width)
    scale, shift = normal(3, batch, 1, width), normal(4, batch, 1, width)
    rope = normal(5, batch, 2, tokens, pairs)
    k, v = normal(6, batch, heads, keys, size), normal(7, batch, heads, keys, size)
    weights = [normal(8 + n, width, width) / np.float32(width) for n in range(2)]
    bias, gain = normal(10, width), normal(11, width)
    inputs = [x, scale, shift, *weights, bias, gain, rope, k, v, gate]
    steps = [
        "modulate 0 1 2 eps=1e-06",
        "linear 11 3 5 - - gelu=1",
        f"heads 12 6 7 heads={heads} eps=1e-06 factor=0.5",
        "attention 13 8 9 -",
        "linear 14 4 5 0 10 gelu=0",
        "norm 15 6 5 eps=1e-06",
        f"heads 16 - - heads={heads} eps=0 factor=1",
    ]
    cut = (batch, heads, tokens, size)
    chain = ops_matrix.rows(steps, inputs, [15, 17], [x.shape, cut], kernel=kernel, threads=threads)
    a = ops_matrix.modulate(x, scale, shift, eps=1e-6, kernel=kernel)
    a = ops_matrix.linear(a, weights[0], bias, gelu=True, kernel=kernel)
    q = ops_matrix.split_heads(a, gain, rope, heads=heads, eps=1e-6, factor=0.5, kernel=kernel)
    a = ops_matrix.attention(q, k, v, kernel=kernel)
    a = ops_matrix.linear(a, weights[1], bias, residual=x, gate=gate, kernel=kernel)
    assert np.array_equal(chain[0], a)
    (normed,) = ops_matrix.rows(
        ["norm 0 1 2 eps=1e-06"], [a, gain, bias], [3], [x.shape], kernel=kernel
    )
    wide = a.astype(np.float64)
    plain = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-6)
    assert np.allclose(normed, plain * gain + bias, atol=1e-4, rtol=1e-4)
    assert np.array_equal(chain[1], normed.reshape(batch, tokens, heads, size).swapaxes(1, 2))


@pytest.mark.parametrize(
    "steps, told",
    [
        ("", "no steps"),
        ("conv 0 1 2", "no such kind"),
        ("modulate 0 1", "no shift"),
        ("modulate 0 1 - eps=1", "shift may not be absent"),
        ("modulate 0 1 x eps=1", "got x, expected a number"),
        ("modulate 0 1 2 eps=much", "got much, expected a number"),
        ("modulate 0 1 2 epsilon=1", "expected eps="),
        ("modulate 0 1 2 eps=1 more", "did not expect more"),
        ("modulate 0 1 3 eps=1", "shift: no such value"),
        ("modulate 3 1 2 eps=1", "x: no such value"),
        ("modulate 0 1 1 eps=1\nmodulate 3 1 4 eps=1", "shift: no such value"),
        ("heads 0 - - heads=3 eps=0 factor=1", "expected a multiple of 3 heads"),
        ("heads 0 - - heads=2 eps=0 factor=1\nmodulate 3 1 2 eps=1", "x: cut into heads"),
        ("attention 0 1 2 -", "q: got"),
    ],
)
def test_steps_that_mean_nothing_are_refused(steps: str, told: str) -> None:
    x, part = np.zeros((1, 3, 4), np.float32), np.zeros((1, 1, 4), np.float32)
    with pytest.raises(ValueError, match=told):
        ops_matrix.rows(steps.split("\n"), [x, part, part], [3], [x.shape])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("depth", [1, 2, 255, 4096])
def test_products_of_the_largest_sums_and_of_uneven_rows_hold(kernel: str, depth: int) -> None:
    """Equal values add up to as much as two rows of their lengths can; a large value beside small
    ones, and rows of zeros, keep what they have.
    """
    rows = np.ones((1, 4, depth), np.float32) * np.float32([[[3e-9], [7.0], [-2e6], [0.0]]])
    rows[0, 1, 0] = 5e3
    weight = rows[0, :3].copy()
    got = ops_matrix.linear(rows, weight, np.zeros(3, np.float32), kernel=kernel)[0]
    wide = rows[0].astype(np.float64)
    sums = 2.0**-24 * depth * (np.abs(wide) @ np.abs(wide[:3].T))  # of float32, one after another
    assert (np.abs(got - wide @ wide[:3].T) <= 2 * spread(kernel, wide, wide[:3]) + sums).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_is_rounded_is_rounded_to_the_nearest(kernel: str) -> None:
    x, weight = normal(1, 1, 200, 256), normal(2, 100, 256)
    got = ops_matrix.linear(x, weight, np.zeros(100, np.float32), kernel=kernel)[0]
    wide = x[0].astype(np.float64), weight.astype(np.float64)
    lengths = np.linalg.norm(wide[0], axis=1)[:, None] * np.linalg.norm(wide[1], axis=1)
    errors = (got - wide[0] @ wide[1].T) / lengths
    assert np.sqrt((errors**2).mean()) < 1.2e-5
    assert abs(errors.mean()) < 5e-7
