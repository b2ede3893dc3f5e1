"""The operators that ONNX plans of the DiT carry (csrc/onnxruntime_ops.cpp), as calls: what they
compute, by any kernel that this processor has.
"""

from __future__ import annotations

import numpy as np

import rt._C as _C

from .ops import Array


def matrix_kernels() -> list[str]:
    """Names of the kernels for matrix products that this processor runs, the best one first."""
    names: list[str] = _C.matrix_kernels()
    return names


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
    """residual + gate * activation(x weight^T + bias), on the host: the operator of ONNX plans.

    float32 x [B, S, I], weight [O, I], bias [O], residual [B, S, O], gate [B, 1, O] -> [B, S, O].
    `kernel` is one of `matrix_kernels`, None the best one. Packs the weight on every call.
    """
    out = np.empty((*np.shape(x)[:-1], len(weight)), np.float32)
    kernel = kernel or matrix_kernels()[0]
    _C.linear(
        x, weight, bias, residual=residual, gate=gate, gelu=gelu, kernel=kernel, out=out,
        threads=threads,
    )  # fmt: skip
    return out


def attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None = None,
    *,
    kernel: str | None = None,
    threads: int = 0,
) -> Array:
    """softmax(q k^T + mask) v with its heads joined, on the host: the operator of ONNX plans.

    float32 q [B, N, S, K], k and v [B, N, M, K], mask [B, 1, 1, M] of 0 (seen) and -inf, of which
    every row has a 0 -> [B, S, N*K]. What is hidden is not read. `kernel` as for `linear`.
    """
    batch, heads, queries, size = np.shape(q)
    out = np.empty((batch, queries, heads * size), np.float32)
    kernel = kernel or matrix_kernels()[0]
    _C.attention(q, k, v, mask=mask, kernel=kernel, out=out, threads=threads)
    return out


def modulate(
    x: Array, scale: Array, shift: Array, *, eps: float, kernel: str | None = None, threads: int = 0
) -> Array:
    """Layer normalisation of x [B, S, D] without weights, times 1 + scale, plus shift [B, 1, D]; on
    the host, float32: the operator of ONNX plans. `kernel` as for `linear`.
    """
    out = np.empty(np.shape(x), np.float32)
    kernel = kernel or matrix_kernels()[0]
    _C.modulate(x, scale, shift, eps=eps, kernel=kernel, out=out, threads=threads)
    return out


def split_heads(
    x: Array,
    weight: Array,
    rope: Array | None = None,
    *,
    heads: int,
    eps: float,
    factor: float = 1.0,
    kernel: str | None = None,
    threads: int = 0,
) -> Array:
    """x [B, S, N*K] normalised by its root mean square, times weight [N*K] and `factor`, complex
    pairs (2p, 2p+1) turned by rope [B, 2, S, K/2] (cosines, sines) -> [B, N, S, K]; on the host,
    float32: the operator of ONNX plans. `kernel` as for `linear`.
    """
    batch, tokens, width = np.shape(x)
    out = np.empty((batch, heads, tokens, width // heads), np.float32)
    kernel = kernel or matrix_kernels()[0]
    _C.split_heads(x, weight, rope, eps=eps, factor=factor, kernel=kernel, out=out, threads=threads)
    return out
