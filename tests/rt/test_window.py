"""Slots, visibility and positions against a window that is kept as a plain list of frames."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray

from rt import window
from rt.config import Positions

WINDOWS = st.integers(2, 9).flatmap(lambda w: st.tuples(st.just(w), st.integers(0, w - 1)))
SOME_WINDOWS = [(6, 3), (2, 1), (4, 0), (5, 4)]


def empty(frames: int) -> NDArray[np.int64]:
    return np.full(frames, -1, np.int64)


@given(WINDOWS, st.integers(0, 10**9))
def test_slots_go_round_behind_the_sinks(shape: tuple[int, int], frame: int) -> None:
    frames, sinks = shape
    place = window.slot(frame, frames, sinks)
    assert 0 <= place < frames
    if frame < frames:
        assert place == frame
    else:
        assert place >= sinks
        assert place == window.slot(frame - (frames - sinks), frames, sinks)


@given(WINDOWS, st.integers(0, 60))
def test_a_frame_takes_the_slot_of_the_oldest_that_is_no_sink(
    shape: tuple[int, int], count: int
) -> None:
    frames, sinks = shape
    held: list[int] = []
    for frame in range(count):
        if len(held) < frames:
            held.append(frame)
        else:
            held[held.index(min(f for f in held if f >= sinks))] = frame
        assert held[window.slot(frame, frames, sinks)] == frame


@given(WINDOWS, st.lists(st.booleans(), min_size=1, max_size=40))
def test_what_is_visible_is_what_the_law_says(shape: tuple[int, int], runs: list[bool]) -> None:
    """A row runs some chunks and sits out others; the frames that it saw are listed by hand."""
    frames, sinks = shape
    ring, seen = empty(frames), list[int]()
    for query, ran in enumerate(runs):
        if not ran:
            continue
        seen.append(query)
        rolling = query - (frames - sinks) if query >= frames else -1
        expected = [j for j in seen if j < sinks or j > rolling]
        visible = window.visible_slots(ring, query, frames, sinks)
        ring[window.slot(query, frames, sinks)] = query
        assert sorted(ring[visible].tolist()) == expected
        assert visible[window.slot(query, frames, sinks)]


def test_visibility_leaves_the_record_alone() -> None:
    ring = empty(4)
    window.visible_slots(ring, 2, 4, 1)
    assert (ring == -1).all()


def test_a_full_window_shows_every_slot() -> None:
    ring = empty(6)
    for query in range(100):
        visible = window.visible_slots(ring, query, 6, 3)
        assert visible.sum() == min(query + 1, 6)
        ring[window.slot(query, 6, 3)] = query


def test_a_row_mask_spans_the_tokens_of_each_slot() -> None:
    mask = window.row_mask(np.array([0, 1, -1, -1]), 2, 4, 1, tokens_per_frame=3)
    assert mask.dtype == np.float32
    assert mask.tolist() == [0.0] * 9 + [-np.inf] * 3


@pytest.mark.parametrize("frames, sinks", SOME_WINDOWS)
def test_distance_to_a_sink_never_passes_the_window(frames: int, sinks: int) -> None:
    for query in [*range(3 * frames), 10**9]:
        for sink in range(min(sinks, query + 1)):
            distance = query - window.sink_position(query, sink, frames)
            assert distance == min(query, frames - 1) - sink


@pytest.mark.parametrize("pairs, theta", [(22, 1e4), (6, 1e4), (1, 1e4), (16, 5e5)])
@pytest.mark.parametrize("frame", [0, 1, 50, 999_999_937, 10**9])
def test_rotation_is_exact_for_years_of_video(frame: int, pairs: int, theta: float) -> None:
    got = window.rope_time(frame, pairs, theta)
    assert got.shape == (2, pairs)
    assert got.dtype == np.float32
    with mpmath.workdps(50):
        angle = [frame * mpmath.power(theta, -mpmath.mpf(p) / pairs) for p in range(pairs)]
        exact = [[float(f(a)) for a in angle] for f in (mpmath.cos, mpmath.sin)]
    np.testing.assert_allclose(got, exact, atol=1e-6, rtol=0)


class Row:
    """One block of one row, with every raw key and value kept beside the ring."""

    heads, tokens, pairs, rest, theta = 2, 3, 2, 4, 100.0

    def __init__(self, frames: int, sinks: int) -> None:
        self.frames, self.sinks = frames, sinks
        width = 2 * self.pairs + self.rest
        self.k = np.zeros((self.heads, frames * self.tokens, width))
        self.v = np.zeros_like(self.k)
        self.time = np.zeros((self.heads, sinks * self.tokens, 2 * self.pairs))
        self.index, self.last = empty(sinks), -1
        self.raw: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []

    def run(self, key: Any, value: Any, threshold: float | None, positions: Positions) -> None:
        """Refresh as before a pass, then write the next frame as the block does."""
        query, kept = len(self.raw), 2 * self.pairs
        window.refresh_sinks(
            self.k, self.v, self.time, self.index, self.last, query,
            window=self.frames, sinks=self.sinks, tokens_per_frame=self.tokens, theta=self.theta,
            threshold=threshold, positions=positions,
        )  # fmt: skip
        place = self.cells(window.slot(query, self.frames, self.sinks))
        self.raw.append((key, value))
        self.k[:, place], self.v[:, place] = key, value
        self.k[:, place, :kept] = self.turned(key[..., :kept], query)
        self.last = query

    def cells(self, place: int) -> slice:
        return slice(place * self.tokens, (place + 1) * self.tokens)

    def turned(self, time: NDArray[np.float64], position: float) -> NDArray[np.float64]:
        out = np.empty_like(time)
        for p in range(self.pairs):
            a = position * self.theta ** (-p / self.pairs)
            x, y = time[..., 2 * p], time[..., 2 * p + 1]
            out[..., 2 * p] = x * np.cos(a) - y * np.sin(a)
            out[..., 2 * p + 1] = x * np.sin(a) + y * np.cos(a)
        return out

    def random(self, rng: np.random.Generator) -> tuple[Any, Any]:
        size = (self.heads, self.tokens, self.k.shape[-1])
        return rng.normal(size=size), rng.normal(size=size)


@pytest.mark.parametrize("frames, sinks", SOME_WINDOWS)
@pytest.mark.parametrize("positions", ["window", "absolute"])
def test_fixed_sinks_stand_where_the_law_of_positions_says(
    frames: int, sinks: int, positions: Positions
) -> None:
    row, rng, kept = Row(frames, sinks), np.random.default_rng(1), 4
    for query in range(4 * frames):
        row.run(*row.random(rng), None, positions)
        for sink in range(min(sinks, query)):
            key, value = row.raw[sink]
            moved = positions == "window" and query >= frames
            position = window.sink_position(query, sink, frames) if moved else sink
            at = row.cells(sink)
            np.testing.assert_allclose(row.k[:, at, kept:], key[..., kept:])
            np.testing.assert_allclose(row.v[:, at], value)
            np.testing.assert_allclose(
                row.k[:, at, :kept], row.turned(key[..., :kept], position), atol=1e-9
            )


def test_scores_depend_on_the_distances_of_the_law_alone() -> None:
    """A query turned to its own index meets sink s as if they were min(i, W-1) - s apart."""
    row, rng = Row(5, 2), np.random.default_rng(2)
    query_vector = rng.normal(size=(row.heads, row.tokens, 4))
    for i in range(30):
        row.run(*row.random(rng), None, "window")
        for sink in range(min(2, i)):
            turned = row.turned(query_vector, i)
            got = np.einsum("htd,hsd->hts", turned, row.k[:, row.cells(sink), :4])
            apart = min(i, 4) - sink
            raw = row.raw[sink][0][..., :4]
            expected = np.einsum("htd,hsd->hts", row.turned(query_vector, apart), raw)
            np.testing.assert_allclose(got, expected, atol=1e-9)


def test_the_least_similar_sink_gives_way_after_the_window_is_full() -> None:
    row, rng = Row(4, 2), np.random.default_rng(3)
    scene = row.random(rng)
    other = (-scene[0], -scene[1])
    row.run(*other, 0.2, "window")
    for _ in range(3):
        row.run(*scene, 0.2, "window")
    assert row.index.tolist() == [0, 1]
    row.run(*scene, 0.2, "window")  # frame 4, which replaces sink 0 before frame 5
    assert row.index.tolist() == [0, 1]
    row.run(*scene, 0.2, "window")
    assert row.index.tolist() == [4, 1]
    np.testing.assert_allclose(row.v[:, row.cells(0)], scene[1])
    expected = row.turned(scene[0][..., :4], window.sink_position(5, 0, 4))
    np.testing.assert_allclose(row.k[:, row.cells(0), :4], expected, atol=1e-9)
    for _ in range(8):
        row.run(*scene, 0.2, "window")
    assert row.index.tolist() == [4, 1]  # alike: nothing is replaced


@given(st.integers(0, 2**31), st.sampled_from([-0.3, 0.0, 0.2]))
@settings(max_examples=20, deadline=None)
def test_absolute_sinks_keep_the_time_of_the_frame_that_they_hold(
    seed: int, threshold: float
) -> None:
    row, rng = Row(4, 2), np.random.default_rng(seed)
    for _ in range(14):
        row.run(*row.random(rng), threshold, "absolute")
    for sink, frame in enumerate(row.index.tolist()):
        key, value = row.raw[frame]
        at = row.cells(sink)
        np.testing.assert_allclose(row.v[:, at], value)
        np.testing.assert_allclose(row.k[:, at, :4], row.turned(key[..., :4], frame), atol=1e-9)
        np.testing.assert_allclose(row.time[:, at], key[..., :4], atol=1e-9)
