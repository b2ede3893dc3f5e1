"""refresh_sinks against a definition in plain NumPy, float64, one frame and one pair at a time."""

from __future__ import annotations

from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rt import ops

Floats = NDArray[np.float64]


@dataclass
class Ring:
    """One block and row by the law of docs/interfaces.md, kept as sets of whole frames."""

    window: int
    sinks: int
    tokens: int
    pairs: int
    theta: float
    k: Floats  # [N, W*S, K]
    v: Floats
    captured: dict[int, tuple[int, Floats]] = field(default_factory=dict)  # sink -> frame, time

    def slot(self, frame: int) -> slice:
        if frame >= self.window:
            frame = self.sinks + (frame - self.sinks) % (self.window - self.sinks)
        return slice(frame * self.tokens, (frame + 1) * self.tokens)

    def turn(self, time: Floats, position: int) -> Floats:
        z = time[..., 0::2] + 1j * time[..., 1::2]
        angle = position * self.theta ** (-np.arange(self.pairs) / self.pairs)
        z = z * np.exp(1j * (angle % (2 * np.pi)))
        return np.stack([z.real, z.imag], axis=-1).reshape(time.shape)

    def plain_keys(self, frame: int) -> Floats:
        keys = self.k[:, self.slot(frame)].copy()
        keys[..., : 2 * self.pairs] = self.turn(keys[..., : 2 * self.pairs], -frame)
        return keys

    def capture(self, frame: int, sink: int) -> None:
        self.captured[sink] = (frame, self.plain_keys(frame)[..., : 2 * self.pairs])

    def similarities(self, frame: int) -> dict[int, float]:
        def cosine(a: Floats, b: Floats) -> float:
            a, b = a.mean(axis=1).ravel(), b.mean(axis=1).ravel()
            return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

        found = {}
        for s, (_, time) in self.captured.items():
            keys = self.k[:, self.slot(s)].copy()
            keys[..., : 2 * self.pairs] = time
            found[s] = 0.5 * cosine(self.plain_keys(frame), keys)
            found[s] += 0.5 * cosine(self.v[:, self.slot(frame)], self.v[:, self.slot(s)])
        return found

    def refresh(self, last: int, query: int, threshold: float | None, positions: str) -> None:
        if 0 <= last < self.sinks:
            self.capture(last, last)
        elif last >= self.window and threshold is not None and self.captured:
            similar = self.similarities(last)
            s = min(similar, key=lambda s: similar[s])
            if similar[s] < threshold:
                self.k[:, self.slot(s)] = self.k[:, self.slot(last)]
                self.v[:, self.slot(s)] = self.v[:, self.slot(last)]
                self.capture(last, s)
        if positions == "window" and query >= self.window:
            for s, (_, time) in self.captured.items():
                position = query - (self.window - 1) + s
                self.k[:, self.slot(s), : 2 * self.pairs] = self.turn(time, position)


class Both:
    """The arrays of a stage, cut out of larger ones, and the definition beside them."""

    def __init__(self, rows: int, window: int, sinks: int, tokens: int, pairs: int) -> None:
        self.blocks, self.rows, self.heads, self.head_dim = 2, rows, 3, 2 * pairs + 4
        self.window, self.sinks, self.tokens, self.pairs = window, sinks, tokens, pairs
        self.rng = np.random.default_rng(window * 100 + sinks)
        shape = (self.blocks, rows + 2, self.heads, window * tokens, self.head_dim)
        self.whole_k, self.whole_v = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self.k, self.v = self.whole_k[:, 1 : 1 + rows], self.whole_v[:, 1 : 1 + rows]
        self.time = np.zeros((self.blocks, rows + 2, self.heads, sinks * tokens, 2 * pairs))
        self.time = self.time.astype(np.float32)[:, 1 : 1 + rows]
        self.index = np.full((self.blocks, rows, sinks), -1)
        size = (window, sinks, tokens, pairs, 100.0)
        self.rings = [
            [
                Ring(*size, self.k[b, r].astype(np.float64), self.v[b, r].astype(np.float64))
                for r in range(rows)
            ]
            for b in range(self.blocks)
        ]

    def write(self, row: int, frame: int) -> None:
        """A new frame, somewhat like the one before, in its slot."""
        for b in range(self.blocks):
            ring = self.rings[b][row]
            for ours, theirs in ((self.k[b, row], ring.k), (self.v[b, row], ring.v)):
                size = (self.heads, self.tokens, self.head_dim)
                values = (self.rng.normal(size=size) + self.rng.normal(size=size[-1:])).astype("f4")
                ours[:, ring.slot(frame)] = values
                theirs[:, ring.slot(frame)] = values

    def refresh(
        self, last: list[int], query: list[int], threshold: float | None, positions: str
    ) -> None:
        ops.refresh_sinks(
            self.k, self.v, self.time, self.index, np.array(last), np.array(query),
            window=self.window, sinks=self.sinks, tokens_per_frame=self.tokens, theta=100.0,
            threshold=threshold, positions=positions,  # type: ignore[arg-type]
        )  # fmt: skip
        for b in range(self.blocks):
            for r in range(self.rows):
                ring = self.rings[b][r]
                ring.refresh(last[r], query[r], threshold, positions)
                np.testing.assert_allclose(self.k[b, r], ring.k, atol=1e-5)
                np.testing.assert_allclose(self.v[b, r], ring.v, atol=0)
                expected = [ring.captured.get(s, (-1,))[0] for s in range(self.sinks)]
                assert self.index[b, r].tolist() == expected


@given(
    st.integers(1, 3),
    st.integers(2, 6),
    st.integers(0, 5),
    st.integers(1, 4),
    st.integers(0, 3),
    st.sampled_from([None, -0.5, 0.2, 0.9]),
    st.sampled_from(["window", "absolute"]),
)
@settings(max_examples=60, deadline=None)
def test_a_stream_follows_the_definition(
    rows: int, window: int, sinks: int, tokens: int, pairs: int, threshold: float | None,
    positions: str,
) -> None:  # fmt: skip
    both = Both(rows, window, min(sinks, window - 1), tokens, pairs)
    last = [-1] * rows
    for frame in range(3 * window + 2):
        # Rows lag behind each other, as denoising steps do; a row that waits has nothing new.
        query = [frame - r if frame >= r else -1 for r in range(rows)]
        both.refresh(last, query, threshold, positions)
        for row, at in enumerate(query):
            if at >= 0:
                both.write(row, at)
        last = query


def test_rotation_does_not_drift_over_a_long_stream() -> None:
    both = Both(1, 3, 1, 2, 3)
    both.write(0, 0)
    both.refresh([0], [1], None, "window")
    for query in [*range(3, 2000), 10**6, 10**9]:
        both.refresh([-1], [query], None, "window")


def test_arrays_outside_the_rows_stay_as_they_are() -> None:
    both = Both(2, 3, 2, 2, 2)
    both.whole_k[:, 0] = both.whole_k[:, -1] = 5
    both.write(0, 0)
    both.refresh([0, -1], [4, 5], 0.5, "window")
    assert (both.whole_k[:, 0] == 5).all()
    assert (both.whole_k[:, -1] == 5).all()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_rings_of_16_bits_are_the_float32_ones_rounded(dtype: type) -> None:
    """What is stored is the result of the same arithmetic in float32, rounded once."""
    rng = np.random.default_rng(4)
    window, sinks, tokens, pairs = 4, 2, 3, 3
    names = {
        "window": window, "sinks": sinks, "tokens_per_frame": tokens, "theta": 100.0,
        "threshold": 0.9, "positions": "window",
    }  # fmt: skip
    k, v = rng.normal(size=(2, 2, 2, 3, window * tokens, 8)).astype(dtype)
    time = np.zeros((2, 2, 3, sinks * tokens, 2 * pairs), np.float32)
    index = np.full((2, 2, sinks), -1)
    for last, query in [(-1, 0), (0, 1), (1, 2), (7, 8), (9, 1000), (-1, 10**6)]:
        wide_k, wide_v = k.astype(np.float32), v.astype(np.float32)
        wide_time, wide_index = time.copy(), index.copy()
        at = (np.full(2, last), np.full(2, query))
        ops.refresh_sinks(wide_k, wide_v, wide_time, wide_index, *at, **names)  # type: ignore[arg-type]
        bits = [a.view(np.uint16) if dtype is ml_dtypes.bfloat16 else a for a in (k, v)]
        ops.refresh_sinks(*bits, time, index, *at, **names)  # type: ignore[arg-type]
        np.testing.assert_array_equal(k, wide_k.astype(dtype))
        np.testing.assert_array_equal(v, wide_v.astype(dtype))
        np.testing.assert_array_equal(time, wide_time)
        np.testing.assert_array_equal(index, wide_index)
    assert (index > 1).any()  # a sink was replaced on the way


def test_bad_arguments_are_named() -> None:
    k = np.zeros((1, 2, 3, 8, 6), np.float32)
    time, index = np.zeros((1, 2, 3, 2, 4), np.float32), np.zeros((1, 2, 1), np.int64)
    at = np.zeros(2, np.int64)
    names = {
        "window": 4, "sinks": 1, "tokens_per_frame": 2, "theta": 100.0, "threshold": None,
        "positions": "window",
    }  # fmt: skip
    ops.refresh_sinks(k, k.copy(), time, index, at, at, **names)  # type: ignore[arg-type]
    arrays = {
        "k_ring": k, "v_ring": k.copy(), "sink_time": time, "sink_index": index, "last": at,
        "query": at,
    }  # fmt: skip
    bad = [
        ("k_ring", k[:, :, :, :7]),
        ("k_ring", k.astype(np.float64)),
        ("v_ring", k.astype(np.float16)),
        ("k_ring", np.asfortranarray(k)),
        ("v_ring", k[..., :4]),
        ("sink_time", time[..., :3]),
        ("sink_time", np.zeros((1, 2, 3, 2, 8), np.float32)),
        ("sink_index", index[:, :1]),
        ("sink_index", index.astype(np.int32)),
        ("last", at[:1]),
        ("query", at.astype(np.float32)),
    ]
    for name, array in bad:
        with pytest.raises(ValueError, match=f"^{name}"):
            ops.refresh_sinks(**(arrays | {name: array}), **names)  # type: ignore[arg-type]
    for name, value in [("window", 0), ("sinks", 4), ("theta", 0.5), ("positions", "relative")]:
        with pytest.raises(ValueError, match=f"^{name}"):
            ops.refresh_sinks(**arrays, **(names | {name: value}))  # type: ignore[arg-type]
