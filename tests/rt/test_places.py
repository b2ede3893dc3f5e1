"""What a text names, and the clocks of what is live: pure, against definitions of three lines."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt import media
from rt.errors import ConfigError, SinkError, SourceError
from rt.media.clocks import JUMP_S, TICK, Backoff, Timeline, Turn
from rt.media.images import named
from rt.media.places import inlet, outlet, shown


@pytest.mark.parametrize(
    "text, kind",
    [
        ("clip.mp4", "file"),
        ("http:clip.mp4", "file"),
        ("raw", "file"),
        ("/dev/video", "file"),
        ("100%.mp4", "file"),
        ("still.png", "file"),
        ("/dev/video0", "camera"),
        ("frames/%04d.png", "images"),
        ("frames/*.JPG", "images"),
        ("rtsp://camera.local/1", "rtsp"),
        ("RTSPS://u:p@camera.local/1", "rtsp"),
        ("rtmp://host/app/name", "rtmp"),
        ("https://host/clip.mp4", "http"),
        ("-", "y4m"),
        ("raw:", "raw"),
    ],
)
def test_inputs(text: str, kind: str) -> None:
    assert inlet(text).kind == kind
    assert inlet(Path(text)).kind in (kind, "file"), "a Path is on the disk, whatever its name"


@pytest.mark.parametrize(
    "text, kind",
    [
        ("out.mp4", "file"),
        ("live/index.m3u8", "hls"),
        ("http://127.0.0.1:8090/", "mjpeg"),
        ("rtmps://host/app/key", "rtmp"),
        ("rtsp://host/name", "rtsp"),
        ("/dev/video12", "camera"),
        ("frames/%06d.png", "images"),
        ("-", "y4m"),
        ("raw:", "raw"),
    ],
)
def test_outputs(text: str, kind: str) -> None:
    assert outlet(text).kind == kind


@pytest.mark.parametrize(
    "text", ["ftp://host/x", "srt://host:1", "rtsp://", "http:///x", "a+b://c"]
)
def test_other_protocols_are_refused(text: str) -> None:
    with pytest.raises(SourceError, match="rtsp://HOST"):
        inlet(text)
    with pytest.raises(SinkError, match="rtmp://HOST"):
        outlet(text)


def test_an_output_is_no_web_page() -> None:
    with pytest.raises(SinkError, match="is no address"):
        outlet("https://host/x")


words = st.text("abcdefgh123", min_size=1, max_size=12)


@given(words, words, words)
def test_passwords_and_keys_are_never_shown(user: str, secret: str, host: str) -> None:
    secret = f"S{secret}S"
    for text in (f"rtsp://{user}:{secret}@{host}/cam", f"rtmp://{host}/app?key={secret}"):
        place = inlet(text)
        assert secret in place.url
        assert secret not in str(place)
        assert host in str(place)
    assert shown("a:b@c?d") == "a:b@c?d", "what is no address is a name"


def test_pictures_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("a10.png", "a9.png", "a100.png", "b1.png", "a7.jpg", "a.png", "a1x.png"):
        (tmp_path / name).touch()
    assert [p.name for p in named(tmp_path / "a%d.png")] == ["a9.png", "a10.png", "a100.png"]
    assert [p.name for p in named(tmp_path / "a%03d.png")] == ["a9.png", "a10.png", "a100.png"]
    assert [p.name for p in named(tmp_path / "b*.png")] == ["b1.png"]
    assert named(tmp_path / "nowhere" / "*.png") == []


@pytest.mark.parametrize("text", ["640", "640x", "0x480", "-1x5", "640x480x3", "640 x 480"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="WIDTHxHEIGHT"):
        media.size(text)
    assert media.size("640x480") == (480, 640)


@pytest.mark.parametrize(
    "text, asked, words",
    [
        ("raw:", media.Asked(), "--input-size"),
        ("raw:", media.Asked((4, 4)), "--input-fps"),
        ("a.mp4", media.Asked((4, 4)), "size of its own"),
        ("-", media.Asked(fps=5), "rate of its own"),
        ("raw:", media.Asked((4, 4), 0.0), "above 0"),
    ],
)
def test_facts_that_a_source_does_not_heed(text: str, asked: media.Asked, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        media.open_source(text, asked)


# Trying again


policies = st.builds(Backoff, st.floats(0.01, 5), st.floats(5, 60), st.floats(0, 1000))


@given(policies, st.integers(0, 10_000), st.floats(0, 2000), st.floats(0, 1, exclude_max=True))
def test_pauses_grow_and_end(policy: Backoff, attempt: int, gone_s: float, draw: float) -> None:
    pause = policy.pause_s(attempt, gone_s, draw)
    if gone_s >= policy.patience_s:
        assert pause is None
        return
    assert pause is not None
    longest = min(policy.first_s * 2.0 ** min(attempt, 100), policy.most_s)
    left = policy.patience_s - gone_s
    assert min(left, longest / 2) <= pause <= min(left, longest)
    later = policy.pause_s(attempt + 1, gone_s, draw)
    assert later is not None
    assert later >= pause


@given(policies, st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=50))
def test_patience_is_used_up_exactly(policy: Backoff, draws: list[float]) -> None:
    """Attempts at once fail at once: what is waited in all is the patience, no more, no less."""
    gone = 0.0
    for attempt in range(1_000_000):
        pause = policy.pause_s(attempt, gone, draws[attempt % len(draws)])
        if pause is None:
            break
        gone += pause
    assert gone == pytest.approx(policy.patience_s)


# A clock that goes on


steps = st.tuples(
    st.one_of(st.none(), st.fractions(-1000, 1000)),  # what the stream says
    st.floats(0, 20),  # seconds since the last picture
    st.booleans(),  # whether the connection broke before
)


@given(st.lists(steps, max_size=60))
def test_whatever_a_stream_says_its_times_rise(
    said: list[tuple[Fraction | None, float, bool]],
) -> None:
    line, now, times = Timeline(Fraction(1, 25)), 100.0, [Fraction(-1)]
    for stream_s, passed_s, broke in said:
        now += passed_s
        if broke:
            line.broke()
        times.append(line.place(stream_s, now))
        assert times[-1] > times[-2]
        assert (times[-1] / TICK).denominator == 1
        assert times[-1] - times[-2] <= passed_s + JUMP_S + 0.05


@given(st.lists(st.floats(0.001, 2), min_size=1, max_size=50), st.fractions(-500, 500))
def test_a_stream_that_keeps_its_clock_keeps_its_times(gaps: list[float], origin: Fraction) -> None:
    """However late a picture comes, up to the limit, its own time counts."""
    line, times, now = Timeline(Fraction(1, 25)), [Fraction(0)], 5.0
    line.place(origin, now)
    for gap in gaps:
        times.append(times[-1] + round(Fraction(gap) / TICK) * TICK)
        found = line.place(origin + times[-1], now)
        now += gap
        assert abs(found - times[-1]) <= TICK / 2


def test_a_sender_that_begins_again_goes_on_after_the_time_that_passed() -> None:
    line = Timeline(Fraction(1, 25))
    assert line.place(Fraction(900), 10.0) == 0
    assert line.place(Fraction(901), 11.0) == 1
    line.broke()
    assert line.place(Fraction(0), 14.0) == 4
    assert line.place(Fraction(1, 2), 14.5) == Fraction(9, 2)
    # Without a word: its clock alone says so.
    assert line.place(Fraction(-70), 15.0) == 5
    assert line.offset_s == -75


@given(st.lists(st.tuples(st.floats(0, 3), st.floats(0, 3)), min_size=1, max_size=50))
def test_frames_leave_at_their_turn(frames: list[tuple[float, float]]) -> None:
    """Between two frames lies what their pts say, or more where the later one was late itself."""
    turn, now, pts, left = Turn(), 50.0, 0.0, []
    for gap, work in frames:
        pts, now = pts + gap, now + work
        pause = turn.pause_s(pts, now)
        assert pause >= 0
        now += pause
        left.append((pts, now, pause))
    for (a, at_a, _), (b, at_b, pause) in itertools.pairwise(left):
        assert at_b - at_a >= b - a - 1e-9
        assert pause < 1e-9 or at_b - at_a == pytest.approx(b - a, abs=1e-6)
