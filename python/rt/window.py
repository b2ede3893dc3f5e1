"""The rolling window of a row, as pure arithmetic on the index of a latent frame: slots,
visibility, positions.

Nothing here is state: every device computes it alone (DESIGN section 5). `refresh_sinks` is the
readable definition of the operator of that name, in float64, and its test oracle.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .config import Positions


def slot(frame: int, window: int, sinks: int) -> int:
    """Where a latent frame is written: the first `window` frames in order, then round the slots
    behind the sinks.
    """
    return frame if frame < window else sinks + (frame - sinks) % (window - sinks)


def visible_slots(
    slot_frames: NDArray[np.int64], query: int, window: int, sinks: int
) -> NDArray[np.bool_]:
    """Which slots frame `query` may attend to, itself included: bool [window].

    `slot_frames[s]` is the frame that slot s holds, -1 = none, before `query` is written. Sinks are
    visible once written. A rolling frame is visible while it is in the window, so a row that sat
    out hides what has left it.
    """
    held = slot_frames.copy()
    held[slot(query, window, sinks)] = query
    oldest = 0 if query < window else query - (window - sinks) + 1
    visible: NDArray[np.bool_] = (held >= 0) & (held >= oldest)
    visible[:sinks] = held[:sinks] >= 0
    return visible


def row_mask(
    slot_frames: NDArray[np.int64], query: int, window: int, sinks: int, tokens_per_frame: int
) -> NDArray[np.float32]:
    """Additive mask float32 [window * tokens_per_frame]: 0 = visible, -inf = hidden."""
    visible = visible_slots(slot_frames, query, window, sinks)
    return np.repeat(np.where(visible, 0.0, -np.inf).astype(np.float32), tokens_per_frame)


def sink_position(query: int, sink: int, window: int) -> int:
    """Position of sink `sink` as frame `query` sees it: never further than the window is long."""
    return sink if query < window else query - (window - 1) + sink


def angles(frame: int, pairs: int, theta: float) -> NDArray[np.float64]:
    """Time angle of each complex pair at `frame`, float64 [pairs] in [0, 2 pi).

    float64 keeps the error under 1e-6 up to frame 10**9 (eight years at 4 frames a second of
    latents).
    """
    return np.mod(frame * theta ** (-np.arange(pairs) / pairs), 2 * np.pi)


def rope_time(frame: int, pairs: int, theta: float) -> NDArray[np.float32]:
    """cos and sin of the time angles of a latent frame: float32 [2, pairs]."""
    angle = angles(frame, pairs, theta)
    return np.stack([np.cos(angle), np.sin(angle)]).astype(np.float32)


def rotate(x: NDArray[np.float64], angle: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn the complex pairs (2p, 2p+1) of x [..., 2 * pairs] by angle [pairs]."""
    pairs = x[..., 0::2] + 1j * x[..., 1::2]
    turned = pairs * np.exp(1j * angle)
    return np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)


def refresh_sinks(
    k_ring: NDArray[np.float64],
    v_ring: NDArray[np.float64],
    sink_time: NDArray[np.float64],
    sink_index: NDArray[np.int64],
    last: int,
    query: int,
    *,
    window: int,
    sinks: int,
    tokens_per_frame: int,
    theta: float,
    threshold: float | None,
    positions: Positions,
) -> None:
    """One block of one row, in place. k_ring, v_ring [N, W*S, K]; sink_time [N, sinks*S, 2P];
    sink_index [sinks].

    The law is in docs/interfaces.md, "Ring and sinks"; DESIGN section 5 gives the reasons.
    """
    time = sink_time.shape[-1]
    pairs = time // 2

    def of(ring: NDArray[np.float64], place: int) -> NDArray[np.float64]:
        return ring[:, place * tokens_per_frame : (place + 1) * tokens_per_frame]

    def unrotated() -> NDArray[np.float64]:
        return rotate(
            of(k_ring, slot(last, window, sinks))[..., :time], -angles(last, pairs, theta)
        )

    if 0 <= last < sinks:
        of(sink_time, last)[...] = unrotated()
        sink_index[last] = last
    elif last >= window and threshold is not None and (sink_index >= 0).any():
        here = slot(last, window, sinks)
        key = np.concatenate([unrotated(), of(k_ring, here)[..., time:]], axis=-1).mean(axis=1)
        value = of(v_ring, here).mean(axis=1)
        likeness = np.full(sinks, np.inf)
        for s in map(int, np.flatnonzero(sink_index >= 0)):
            old = np.concatenate([of(sink_time, s), of(k_ring, s)[..., time:]], axis=-1).mean(
                axis=1
            )
            likeness[s] = (_cosine(key, old) + _cosine(value, of(v_ring, s).mean(axis=1))) / 2
        s = int(likeness.argmin())
        if likeness[s] < threshold:
            of(v_ring, s)[...] = of(v_ring, here)
            first = 0 if positions == "absolute" else time
            of(k_ring, s)[..., first:] = of(k_ring, here)[..., first:]
            of(sink_time, s)[...] = unrotated()
            sink_index[s] = last
    if positions == "window" and query >= window:
        for s in map(int, np.flatnonzero(sink_index >= 0)):
            angle = angles(sink_position(query, s, window), pairs, theta)
            of(k_ring, s)[..., :time] = rotate(of(sink_time, s), angle)


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float((a * b).sum()) / norm if norm else 0.0
