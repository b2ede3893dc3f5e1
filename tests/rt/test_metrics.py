"""The recorder against the definitions of the metrics, written out over lists of all events."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import tracemalloc
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from rt.config import SLO
from rt.frame import Frame
from rt.metrics import CHUNKS_KEPT, ChunkRecord, Distribution, Histogram, Recorder, Report

PICTURE = np.zeros((1, 1, 3), np.uint8)
MS = 1_000_000
ERROR = 0.01
TIMES_MS = st.floats(1e-3, 1e6)


def frame(index: int, captured_ns: int = 0, pts_s: float = 0.0) -> Frame:
    return Frame(PICTURE, index, pts_s, captured_ns)


def ranked(values: list[float], share: float) -> float:
    """The nearest-rank percentile, by its definition."""
    return sorted(values)[max(1, math.ceil(share * len(values))) - 1]


def check(got: Distribution, values: list[float]) -> None:
    if not values:
        assert got == Distribution(None, None, None, None)
        return
    for share, value in ((0.5, got.p50), (0.9, got.p90), (0.99, got.p99)):
        # Under a microsecond all is one bin.
        assert value == pytest.approx(ranked(values, share), rel=ERROR, abs=1e-3)
    assert got.maximum == pytest.approx(max(values), abs=1e-9)


@given(st.lists(TIMES_MS | st.just(0.0), max_size=200))
def test_a_percentile_is_within_one_percent(values: list[float]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    check(histogram.summary(), values)


@given(st.lists(TIMES_MS, min_size=1, max_size=50))
def test_percentiles_rise_up_to_the_maximum(values: list[float]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    found = [histogram.percentile(share / 20) for share in range(21)]
    known = [value for value in found if value is not None]
    assert len(known) == 21
    assert known == sorted(known)
    assert known[-1] <= max(values)


@st.composite
def streams(draw: st.DrawFn) -> list[tuple[int, int, float]]:
    """(captured_ns, emitted_ns, pts_s) of each frame; both clocks only go forward."""
    count = draw(st.integers(0, 60))
    gaps = st.lists(st.integers(0, 300 * MS), min_size=count, max_size=count)
    captured = np.cumsum(np.array(draw(gaps), np.int64)) + 5 * MS
    emitted = np.zeros(count, np.int64)
    previous = 0
    for i, wait in enumerate(draw(gaps)):
        previous = max(previous, int(captured[i])) + wait
        emitted[i] = previous
    return [
        (int(c), int(e), i / 16) for i, (c, e) in enumerate(zip(captured, emitted, strict=True))
    ]


@given(streams(), st.none() | st.floats(1, 2000), st.integers(1, 20))
@settings(max_examples=200)
def test_a_report_is_what_the_definitions_say(
    events: list[tuple[int, int, float]], budget_ms: float | None, warmup: int
) -> None:
    recorder = Recorder(None if budget_ms is None else SLO(latency_ms=budget_ms), warmup)
    for i, (captured, emitted, pts) in enumerate(events):
        recorder.frame_in(frame(i, captured, pts))
        recorder.emitted(frame(i, captured, pts), emitted)
    report = recorder.report()
    latency = [(e - c) / MS for c, e, _ in events]
    late = sum(value > budget_ms for value in latency) if budget_ms is not None else 0
    assert report.frames_in == report.frames_emitted == len(events)
    assert (report.frames_late, report.frames_on_time) == (late, len(events) - late)
    assert report.miss_share == pytest.approx(late / max(1, len(events)))
    check(report.latency_ms, latency)
    check(report.jitter_ms, [abs(b - a) for a, b in pairs(latency)])
    check(
        report.presentation_jitter_ms,
        [abs((b[1] - a[1]) / MS - (b[2] - a[2]) * 1e3) for a, b in pairs(events)],
    )
    if events:
        assert report.ttff_s == pytest.approx((events[0][1] - events[0][0]) * 1e-9)
    else:
        assert report.ttff_s is None
    if len(events) > warmup and events[-1][1] > events[warmup - 1][1]:
        seconds = (events[-1][1] - events[warmup - 1][1]) * 1e-9
        assert report.fps == pytest.approx((len(events) - warmup) / seconds)
    else:
        assert report.fps is None


def pairs(values: list[Any]) -> list[tuple[Any, Any]]:
    return list(itertools.pairwise(values))


@given(st.lists(st.sampled_from(["in", "out", "drop"]), max_size=80), st.integers(0, 2**20))
def test_frames_are_conserved_at_every_instant(actions: list[str], seed: int) -> None:
    rng = np.random.default_rng(seed)
    recorder, waiting, entered = Recorder(SLO(latency_ms=1.0), 1), list[Frame](), 0
    emitted = dropped = 0
    for action in actions:
        if action == "in":
            waiting.append(frame(entered))
            recorder.frame_in(waiting[-1])
            entered += 1
        elif waiting and action == "out":
            recorder.emitted(waiting.pop(0), int(rng.integers(0, 2 * MS)))
            emitted += 1
        elif waiting:
            waiting.pop(0)
            recorder.dropped(1)
            dropped += 1
        r = recorder.report()
        assert r.frames_in == entered
        assert (r.frames_emitted, r.frames_dropped) == (emitted, dropped)
        assert r.frames_in_flight == len(waiting)
        assert entered == r.frames_on_time + r.frames_late + r.frames_dropped + r.frames_in_flight
        assert r.drop_share == pytest.approx(dropped / max(1, entered))


@given(
    st.lists(
        st.tuples(
            st.integers(0, 80_000),
            st.sampled_from(["in", "in", "in", "out", "out", "drop"]),
            st.sampled_from([0.0625, 0.0, 1.5, -0.25]),
        ),
        max_size=60,
    ),
    st.integers(1, 6),
    st.integers(0, 10**15),
)
@settings(max_examples=200)
def test_rate_and_jitter_are_those_of_the_emitted_frames(
    events: list[tuple[int, str, float]], warmup: int, now: int
) -> None:
    """Frames come, leave and are dropped in any order, and their pts jump."""
    recorder, pts, first_in = Recorder(None, warmup), 0.0, -1
    waiting, out = list[Frame](), list[tuple[Frame, int]]()
    for wait_us, event, step_s in events:
        now += wait_us * 1000
        if event == "in":
            pts += step_s
            waiting.append(frame(0, now, pts))
            recorder.frame_in(waiting[-1])
            first_in = now if first_in < 0 else first_in
        elif waiting and event == "out":
            out.append((waiting.pop(0), now))
            recorder.emitted(*out[-1])
        elif waiting:
            recorder.dropped(len(waiting))
            waiting.clear()
        report, steady = recorder.report(), out[warmup - 1 :]
        assert report.frames_in_flight == len(waiting)
        assert report.ttff_s == (pytest.approx((out[0][1] - first_in) / 1e9) if out else None)
        if len(steady) > 1 and steady[-1][1] > steady[0][1]:
            seconds = (steady[-1][1] - steady[0][1]) / 1e9
            assert report.fps == pytest.approx((len(steady) - 1) / seconds)
        else:
            assert report.fps is None
    latency = [(at - f.captured_ns) / MS for f, at in out]
    check(recorder.report().latency_ms, latency)
    check(recorder.report().jitter_ms, [abs(b - a) for a, b in pairs(latency)])
    check(
        recorder.report().presentation_jitter_ms,
        [abs((b - a) / MS - (g.pts_s - f.pts_s) * 1e3) for (f, a), (g, b) in pairs(out)],
    )


def test_nothing_measured_is_none() -> None:
    report = Recorder(SLO(), 21).report()
    nothing = Distribution(None, None, None, None)
    assert report.latency_ms == report.jitter_ms == report.presentation_jitter_ms == nothing
    assert (report.ttff_s, report.fps, report.chunks) == (None, None, ())
    assert (report.frames_in, report.frames_in_flight, report.drop_share) == (0, 0, 0)


def test_bins_are_bounded() -> None:
    """200,000 values between a nanosecond and an hour fall into under 2,000 bins of 2 %."""
    values = np.exp(np.random.default_rng(0).uniform(np.log(1e-6), np.log(3.6e6), 200_000))
    histogram = Histogram()
    for value in values.tolist():
        histogram.add(value)
    assert len(histogram._counts) < 2000
    check(histogram.summary(), values.tolist())


def test_a_late_frame_is_one_past_the_budget_not_at_it() -> None:
    recorder = Recorder(SLO(latency_ms=100), 1)
    for i, latency_ms in enumerate((100, 101)):
        recorder.frame_in(frame(i))
        recorder.emitted(frame(i), latency_ms * MS)
    assert (recorder.report().frames_on_time, recorder.report().frames_late) == (1, 1)


def test_a_steady_stream_has_its_rate_and_no_jitter() -> None:
    recorder = Recorder(None, 21)
    for i in range(200):
        now = round(i * 1e9 / 16)
        recorder.frame_in(frame(i, now, i / 16))
        recorder.emitted(frame(i, now, i / 16), now + 50 * MS)
    report = recorder.report()
    assert report.fps == pytest.approx(16)
    assert report.ttff_s == pytest.approx(0.05)
    assert report.latency_ms.p50 == pytest.approx(50, rel=ERROR)
    assert report.jitter_ms.p99 == pytest.approx(0, abs=1e-3)
    assert report.presentation_jitter_ms.p99 == pytest.approx(0, abs=1e-3)
    assert report.fps_warmup_frames == 21


def record(index: int) -> ChunkRecord:
    return ChunkRecord(index, 1.5, 0.75, 650.0, 0.65, 2, 40.0)


def test_chunks_are_kept_in_order_and_the_oldest_let_go() -> None:
    recorder = Recorder(None, 1)
    for i in range(CHUNKS_KEPT + 10):
        recorder.chunk(record(i))
    kept = recorder.report().chunks
    assert len(kept) == CHUNKS_KEPT
    assert (kept[0].index, kept[-1].index) == (10, CHUNKS_KEPT + 9)


def test_memory_does_not_grow_with_the_stream() -> None:
    recorder, rng = Recorder(SLO(), 1), np.random.default_rng(0)

    def stream(count: int) -> None:
        for i, latency in enumerate(rng.lognormal(17, 1, count).astype(int).tolist()):
            recorder.frame_in(frame(i))
            recorder.emitted(frame(i, 0, i / 16), latency)

    stream(20_000)
    tracemalloc.start()
    try:
        stream(20_000)
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 4 * 20_000  # a list of all would hold 24 bytes of each frame, thrice
    assert recorder.report().frames_in == 40_000


def test_a_report_is_frozen_and_goes_through_json() -> None:
    recorder = Recorder(None, 1)
    recorder.frame_in(frame(0))
    recorder.emitted(frame(0), 30 * MS)
    recorder.chunk(record(0))
    report = recorder.report()
    back = json.loads(json.dumps(report.as_dict()))
    assert back["frames_in"] == 1
    assert back["fps"] is None
    assert back["chunks"][0]["noise_scale"] == 0.75
    assert set(back) == {field.name for field in dataclasses.fields(Report)}
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.frames_in = 2  # type: ignore[misc]
