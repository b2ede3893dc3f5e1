"""The operator that ONNX plans of the DiT carry (csrc/onnxruntime_ops.cpp), as calls: what its
steps compute (csrc/kernels/rows.h), by any kernel that this processor has. Host, float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import rt._C as _C

from .ops import Array


def matrix_kernels() -> list[str]:
    """Names of the kernels for matrix products that this processor runs, the best one first."""
    names: list[str] = _C.matrix_kernels()
    return names


def rows(
    steps: Sequence[str],
    inputs: Sequence[Array],
    results: Sequence[int],
    shapes: Sequence[tuple[int, ...]],
    *,
    kernel: str | None = None,
    threads: int = 0,
) -> list[Array]:
    """The values numbered `results`, of these `shapes`: inputs have the first numbers, then steps.

    `kernel` is one of `matrix_kernels`, None the best one. Packs the weights on every call. Raises
    ValueError that names the step and the operand that does not fit.
    """
    out = [np.empty(shape, np.float32) for shape in shapes]
    kernel = kernel or matrix_kernels()[0]
    _C.rows("\n".join(steps), list(inputs), list(results), out, kernel=kernel, threads=threads)
    return out


def linear(
    x: Array,
    weight: Array,
    bias: Array,
    *,
    residual: Array | None = None,
    gate: Array | None = None,
    gelu: bool = False,
    kernel: str | None = None,
    threads: int = 0,
) -> Array:
    """residual + gate * activation(x weight^T + bias).

    x [B, S, I], weight [O, I], bias [O], residual [B, S, O], gate [B, 1, O] -> [B, S, O].
    """
    step = f"linear {{}} {{}} {{}} {{}} {{}} gelu={int(gelu)}"
    shape = (*np.shape(x)[:-1], len(weight))
    return _one(step, (x, weight, bias, residual, gate), shape, kernel, threads)


def attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None = None,
    *,
    kernel: str | None = None,
    threads: int = 0,
) -> Array:
    """softmax(q k^T + mask) v with its heads joined.

    q [B, N, S, K], k and v [B, N, M, K], mask [B, 1, 1, M] of 0 (seen) and -inf, of which every row
    has a 0 -> [B, S, N*K]. What is hidden is not read.
    """
    batch, heads, queries, size = np.shape(q)
    shape = (batch, queries, heads * size)
    return _one("attention {} {} {} {}", (q, k, v, mask), shape, kernel, threads)


def modulate(
    x: Array, scale: Array, shift: Array, *, eps: float, kernel: str | None = None, threads: int = 0
) -> Array:
    """Layer normalisation of x [B, S, D] without weights, times 1 + scale, plus shift [B, 1, D]."""
    step = f"modulate {{}} {{}} {{}} eps={eps!r}"
    return _one(step, (x, scale, shift), np.shape(x), kernel, threads)


def split_heads(
    x: Array,
    weight: Array | None,
    rope: Array | None = None,
    *,
    heads: int,
    eps: float,
    factor: float = 1.0,
    kernel: str | None = None,
    threads: int = 0,
) -> Array:
    """x [B, S, N*K] normalised by its root mean square, times weight [N*K] and `factor`, complex
    pairs (2p, 2p+1) turned by rope [B, 2, S, K/2] (cosines, sines) -> [B, N, S, K]. Without
    `weight` cut into heads and no more.
    """
    batch, tokens, width = np.shape(x)
    step = f"heads {{}} {{}} {{}} heads={heads} eps={eps!r} factor={factor!r}"
    shape = (batch, heads, tokens, width // heads)
    return _one(step, (x, weight, rope), shape, kernel, threads)


def _one(
    step: str,
    operands: Sequence[Array | None],
    shape: tuple[int, ...],
    kernel: str | None,
    threads: int,
) -> Array:
    """A chain of one step, whose `{}` stand for its operands in order."""
    given = [a for a in operands if a is not None]
    numbers = iter(range(len(given)))
    text = step.format(*("-" if a is None else next(numbers) for a in operands))
    (out,) = rows([text], given, [len(given)], [shape], kernel=kernel, threads=threads)
    return out
