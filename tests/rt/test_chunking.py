"""Laws of grouping: every frame once and in order, 1 then 4 and 4, and what continues what."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from rt.chunking import GAP_S, Chunker
from rt.config import Start
from rt.frame import Chunk, Frame

PICTURE = np.zeros((1, 1, 3), np.uint8)
STARTS: Any = st.sampled_from(["fast", "full"])


def frames(times: list[float]) -> list[Frame]:
    return [Frame(PICTURE, i, t, 0) for i, t in enumerate(times)]


def grouped(start: Start, given_: list[Frame]) -> list[list[Chunk]]:
    """Chunks after each push, and after the flush."""
    chunker = Chunker(7, start)
    return [*(chunker.push(frame) for frame in given_), chunker.flush()]


@given(STARTS, st.lists(st.floats(0, 100), max_size=40))
def test_every_frame_is_in_one_chunk_in_order(start: Start, times: list[float]) -> None:
    source = frames(times)
    chunks = [chunk for some in grouped(start, source) for chunk in some]
    assert [f for chunk in chunks for f in chunk.frames] == source
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    sizes = [len(chunk.frames) for chunk in chunks]
    assert sizes[:1] == [1] * bool(source)
    assert all(size == 4 for size in sizes[1:-1])
    assert all(1 <= size <= 4 for size in sizes[-1:])
    assert [c.phase for c in chunks] == ["first", *["step"] * len(chunks)][: len(chunks)]
    assert all(chunk.session == 7 for chunk in chunks)


@given(STARTS, st.lists(st.floats(0, 10), max_size=40))
def test_a_chunk_continues_unless_time_jumps_to_or_in_it(start: Start, times: list[float]) -> None:
    for some in grouped(start, frames(times)):
        for chunk in some:
            first, last = chunk.frames[0].index, chunk.frames[-1].index
            steps = [times[i] - times[i - 1] for i in range(max(1, first), last + 1)]
            assert chunk.continues == (
                chunk.index > 0 and all(0 <= step <= GAP_S for step in steps)
            )


@given(STARTS, st.lists(st.booleans(), max_size=40))
def test_flushes_anywhere_lose_and_move_nothing(start: Start, flushes: list[bool]) -> None:
    """True is a flush, False the next frame; a flush cuts what waits, and the start is over."""
    source = frames([i / 16 for i in range(len(flushes))])
    chunker, chunks, waiting = Chunker(0, start), list[Chunk](), list[Frame]()
    expected: list[list[Frame]] = []
    for flush in [*flushes, True]:
        if flush:
            chunks += chunker.flush()
        else:
            waiting.append(source.pop(0))
            chunks += chunker.push(waiting[-1])
        if waiting and not expected and (flush or start == "fast" or len(waiting) == 5):
            expected.append([waiting.pop(0)])
        if waiting and (flush or (expected and len(waiting) == 4)):
            expected.append(waiting)
            waiting = []
        assert [list(chunk.frames) for chunk in chunks] == expected
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert [chunk.continues for chunk in chunks] == [i > 0 for i in range(len(chunks))]


def test_fast_gives_a_chunk_as_soon_as_it_can() -> None:
    sizes = [[len(c.frames) for c in some] for some in grouped("fast", frames([0.1] * 10))]
    assert sizes == [[1], [], [], [], [4], [], [], [], [4], [], [1]]


def test_full_waits_for_five_and_gives_two() -> None:
    sizes = [[len(c.frames) for c in some] for some in grouped("full", frames([0.1] * 9))]
    assert sizes == [[], [], [], [], [1, 4], [], [], [], [4], []]


@pytest.mark.parametrize("count, sizes", [(0, []), (1, [1]), (2, [1, 1]), (4, [1, 3])])
def test_full_gives_what_is_there_when_the_stream_ends_early(count: int, sizes: list[int]) -> None:
    after_each = grouped("full", frames([0.0] * count))
    assert [len(c.frames) for c in after_each[-1]] == sizes
    assert not any(after_each[:-1])


def test_a_second_flush_gives_nothing() -> None:
    chunker = Chunker(0, "fast")
    chunker.push(frames([0.0])[0])
    assert chunker.flush() == chunker.flush() == []


@pytest.mark.parametrize(
    "at, step, broken",
    [(5, 1.001, [False, True]), (7, 1.001, [False, True]), (5, -0.5, [False, True]),
     (1, 5.0, [True, False]), (5, 1.0, [False, False]), (6, 0.0, [False, False])],
)  # fmt: skip
def test_a_gap_breaks_the_chunk_that_it_lies_before_or_in(
    at: int, step: float, broken: list[bool]
) -> None:
    times = [i / 16 for i in range(13)]
    times = [*times[:at], *(t - times[at] + times[at - 1] + step for t in times[at:])]
    chunks = [chunk for some in grouped("fast", frames(times)) for chunk in some]
    assert [not chunk.continues for chunk in chunks] == [True, *broken, False]
    assert [chunk.phase for chunk in chunks] == ["first", "step", "step", "step"]
