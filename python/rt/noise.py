"""Flow matching: sigmas and timesteps, mixing and re-noising, and the counter-based generator of
the noise.

`x_t = (1 - sigma) x0 + sigma eps`; the network predicts `v = eps - x0`. Philox (Salmon et al., SC
2011) makes a number a function of (seed, session, chunk, step, element): it never depends on batch,
device or order. These are the readable definitions; `rt.ops` does the work.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TRAIN_TIMESTEPS = 1000


def sigma_table(shift: float) -> NDArray[np.float32]:
    """The 1000 sigmas of Wan's schedule, from 1 downwards: `shift u / (1 + (shift - 1) u)`.
    Timestep = 1000 sigma.
    """
    u = np.linspace(1.0, 0.0, TRAIN_TIMESTEPS + 1)[:-1]
    return (shift * u / (1 + (shift - 1) * u)).astype(np.float32)


def sigma_at(table: NDArray[np.float32], timestep: float) -> float:
    """Sigma of the table's entry nearest to a timestep (0..1000); of two, the larger one."""
    return float(table[np.abs(table.astype(np.float64) * TRAIN_TIMESTEPS - timestep).argmin()])


def mix(latent: NDArray[np.float32], scale: float, eps: NDArray[np.float32]) -> NDArray[np.float32]:
    """A clean latent under noise of share `scale`: `s eps + (1 - s) z` (paper section 4.1)."""
    return np.float32(scale) * eps + np.float32(1 - scale) * latent


def renoise(
    noisy: NDArray[np.float32],
    velocity: NDArray[np.float32],
    sigma: float,
    sigma_next: float,
    eps: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Predicted clean latent `x_t - sigma v`, brought to `sigma_next` with fresh noise."""
    clean = noisy - np.float32(sigma) * velocity
    return np.float32(1 - sigma_next) * clean + np.float32(sigma_next) * eps


def philox4x32(counter: NDArray[np.uint32], key: tuple[int, int]) -> NDArray[np.uint32]:
    """Philox4x32-10: counters uint32 [n, 4] and a key of two words -> words uint32 [n, 4]."""
    c = [counter[:, i].astype(np.uint64) for i in range(4)]
    k0, k1 = np.uint64(key[0]), np.uint64(key[1])
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [
            (p1 >> np.uint64(32)) ^ c[1] ^ k0,
            p1 & low,
            (p0 >> np.uint64(32)) ^ c[3] ^ k1,
            p0 & low,
        ]
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return np.stack(c, axis=1).astype(np.uint32)


def philox_normal(
    count: int, *, seed: int, session: int, chunk: int, step: int
) -> NDArray[np.float64]:
    """`count` standard normals by Box-Muller, in float64 [count]; element e is word e % 4 of
    counter e // 4.
    """
    blocks = np.arange(-(-count // 4), dtype=np.uint32)
    counter = np.stack([blocks, *(np.full_like(blocks, v) for v in (chunk, step, session))], axis=1)
    words = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32)) >> np.uint32(8)
    radius = np.sqrt(-2 * np.log((words[:, 0::2].astype(np.float64) + 1) * 2.0**-24))
    angle = 2 * np.pi * words[:, 1::2].astype(np.float64) * 2.0**-24
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1).reshape(-1)[:count]
