"""Video files in and out: every frame once, at its time, upright, with its sound; every mistake and
every damage told in one line, and never half a file left behind.
"""

from __future__ import annotations

import dataclasses
import itertools
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.audio.stream import AudioStream
from av.stream import Disposition
from av.video.stream import VideoStream
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rt import media
from rt.errors import Error, SinkError, SourceError
from rt.frame import Frame
from rt.media.files import VideoFile

Picture = NDArray[np.uint8]
Paint = Callable[[int], Picture]

SIZE = (48, 64)
RATE = 44_100


def grey(index: int) -> Picture:
    """A flat picture whose level tells its number."""
    return np.full((*SIZE, 3), 20 + 7 * index % 200, np.uint8)


def corners(_: int) -> Picture:
    """Red, green, blue and white quarters, from the top left, row by row."""
    picture = np.zeros((*SIZE, 3), np.uint8)
    h, w = SIZE[0] // 2, SIZE[1] // 2
    picture[:h, :w], picture[:h, w:] = (230, 30, 30), (30, 230, 30)
    picture[h:, :w], picture[h:, w:] = (30, 30, 230), (230, 230, 230)
    return picture


def noisy(index: int) -> Picture:
    """Pictures that fill a file with bytes, so that a cut hits them."""
    return np.random.default_rng(index).integers(0, 256, (*SIZE, 3), np.uint8)


def make_clip(
    path: Path,
    *,
    frames: int = 12,
    fps: int = 25,
    paint: Paint = grey,
    times: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    sound: str | None = None,
    aspect: Fraction | None = None,
    gop: int = 5,
    flags: str | None = None,
) -> Path:
    """A file written by PyAV alone. `times` are pts in ticks of `time_base`."""
    base = time_base or Fraction(1, fps)
    with av.open(str(path), "w", options={"movflags": flags} if flags else {}) as out:
        video = out.add_stream("libx264", rate=fps, options={"g": str(gop)})
        assert isinstance(video, VideoStream)
        video.height, video.width = paint(0).shape[:2]
        video.pix_fmt = "yuv420p"
        video.codec_context.time_base = base
        if aspect:
            video.codec_context.sample_aspect_ratio = aspect
        audio = out.add_stream(sound, rate=RATE, layout="mono") if sound else None
        assert audio is None or isinstance(audio, AudioStream)
        for index in range(frames):
            picture = av.VideoFrame.from_ndarray(paint(index), format="rgb24")
            picture.pts, picture.time_base = times[index] if times else index, base
            out.mux(video.encode(picture))
        if audio is not None:
            add_tone(out, audio, frames / fps)
        out.mux(video.encode(None))
    return path


def add_tone(out: Any, audio: AudioStream, seconds: float) -> None:
    samples = (8000 * np.sin(0.05 * np.arange(int(RATE * seconds)))).astype(np.int16)[None]
    for at in range(0, samples.shape[1], 1024):
        block = av.AudioFrame.from_ndarray(samples[:, at : at + 1024], format="s16", layout="mono")
        block.sample_rate, block.pts, block.time_base = RATE, at, Fraction(1, RATE)
        out.mux(audio.encode(block))
    out.mux(audio.encode(None))


def pictures_of(path: Path) -> list[tuple[float, Picture]]:
    """Time and picture of every frame, read by PyAV alone."""
    with av.open(str(path)) as file:
        return [
            (float(f.pts * f.time_base), np.asarray(f.to_ndarray(format="rgb24"), np.uint8))
            for f in file.decode(video=0)
            if f.pts is not None and f.time_base is not None
        ]


def sound_of(path: Path) -> list[tuple[float, bytes]]:
    with av.open(str(path)) as file:
        packets = [p for p in file.demux(audio=0) if p.size and p.pts is not None]
        return [(float(p.pts * p.time_base), bytes(p)) for p in packets if p.pts is not None]


def copied(source: media.VideoSource, target: Path, *, stop: int | None = None) -> list[Frame]:
    """Read `source` and write what was read; ends like an interrupt after `stop` frames."""
    frames = list(itertools.islice(source, stop))
    sink = media.open_sink(target, source, source.height, source.width)
    for frame in frames:
        sink.write(frame)
    sink.close()
    source.close()
    return frames


def read_until_error(source: VideoFile) -> tuple[list[Frame], SourceError | None]:
    frames: list[Frame] = []
    try:
        for frame in source:
            frames.append(frame)
    except SourceError as error:
        return frames, error
    return frames, None


def one_line(error: Exception, *words: str) -> None:
    assert "\n" not in str(error)
    assert all(word in str(error) for word in words), str(error)


# Sources


def test_a_source_gives_every_frame_once_in_order(tmp_path: Path) -> None:
    source = media.open_source(make_clip(tmp_path / "a.mp4", frames=30))
    frames = list(source)
    assert [f.index for f in frames] == list(range(30))
    assert [f.pts_s for f in frames] == pytest.approx([i / 25 for i in range(30)])
    assert all(a.captured_ns < b.captured_ns for a, b in itertools.pairwise(frames))
    assert (source.height, source.width) == SIZE
    assert source.rate == Fraction(25)
    assert (source.frame_count, source.sound) == (30, None)
    for frame in frames:
        assert frame.rgb.dtype == np.uint8
        assert frame.rgb.shape == (*SIZE, 3)
        assert abs(frame.rgb.mean() - grey(frame.index).mean()) < 3


def test_a_source_starts_again_at_its_first_frame(tmp_path: Path) -> None:
    with media.open_source(make_clip(tmp_path / "a.mp4")) as source:
        begun = iter(source)
        next(begun)
        assert [f.index for f in source] == list(range(12))
        assert next(begun).index == 1


def test_times_of_a_variable_rate_are_kept(tmp_path: Path) -> None:
    times = [0, 3, 4, 10, 40, 41, 55, 90, 91, 100]
    clip = make_clip(tmp_path / "v.mp4", frames=10, times=times, time_base=Fraction(1, 100))
    assert [f.pts_s for f in media.open_source(clip)] == pytest.approx([t / 100 for t in times])
    copied(media.open_source(clip), tmp_path / "out.mp4")
    found = [time for time, _ in pictures_of(tmp_path / "out.mp4")]
    assert found == pytest.approx([t / 100 for t in times])


def turn(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Write a display matrix (ISO 14496-12, 8.3.2) into the head of the first track."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    a, b, c, d = (v << 16 for v in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


@pytest.mark.parametrize(
    "matrix, expected",
    [
        ((1, 0, 0, 1), "rgbw"),
        ((0, 1, -1, 0), "brwg"),  # a telephone held upright: a quarter turn clockwise
        ((-1, 0, 0, -1), "wbgr"),
        ((0, -1, 1, 0), "gwrb"),
        ((-1, 0, 0, 1), "grwb"),
        ((1, 0, 0, -1), "bwrg"),
        ((0, 1, 1, 0), "rbgw"),
        ((0, -1, -1, 0), "wgbr"),
    ],
)
def test_turned_and_mirrored_video_is_upright(
    tmp_path: Path, matrix: tuple[int, int, int, int], expected: str
) -> None:
    clip = make_clip(tmp_path / "turned.mp4", paint=corners, frames=2)
    turn(clip, matrix)
    source = media.open_source(clip)
    size = SIZE if matrix[0] else SIZE[::-1]
    assert (source.height, source.width) == size
    colours = {"r": (230, 30, 30), "g": (30, 230, 30), "b": (30, 30, 230), "w": (230,) * 3}
    for frame in source:
        h, w = size[0] // 4, size[1] // 4
        places = [(h, w), (h, 3 * w), (3 * h, w), (3 * h, 3 * w)]
        for place, name in zip(places, expected, strict=True):
            assert np.abs(frame.rgb[place] - np.array(colours[name])).max() < 30, name
    copied(media.open_source(clip), tmp_path / "out.mp4")
    assert pictures_of(tmp_path / "out.mp4")[0][1].shape == (*size, 3)


@pytest.mark.parametrize(
    "aspect, size",
    [(Fraction(16, 11), (48, 93)), (Fraction(8, 9), (54, 64)), (Fraction(1), (48, 64))],
)
def test_pixels_come_out_square(tmp_path: Path, aspect: Fraction, size: tuple[int, int]) -> None:
    clip = make_clip(tmp_path / "anamorphic.mp4", aspect=aspect, frames=2)
    source = media.open_source(clip)
    assert (source.height, source.width) == size
    assert all(frame.rgb.shape == (*size, 3) for frame in source)


def test_a_song_is_no_video(tmp_path: Path) -> None:
    song = tmp_path / "song.m4a"
    with av.open(str(song), "w", format="mp4") as out:
        audio = out.add_stream("aac", rate=RATE, layout="mono")
        assert isinstance(audio, AudioStream)
        add_tone(out, audio, 0.5)
    with pytest.raises(SourceError) as caught:
        media.open_source(song)
    one_line(caught.value, "song.m4a", "no video track", "audio")


def test_its_cover_is_no_video_either(tmp_path: Path) -> None:
    song = tmp_path / "song.m4a"
    with av.open(str(song), "w", format="mp4") as out:
        audio = out.add_stream("aac", rate=RATE, layout="mono")
        cover = out.add_stream("mjpeg", rate=1)
        assert isinstance(audio, AudioStream)
        assert isinstance(cover, VideoStream)
        cover.height, cover.width, cover.pix_fmt = *SIZE, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(grey(0), format="rgb24")
        out.mux(cover.encode(picture.reformat(format="yuvj420p")))
        out.mux(cover.encode(None))
        add_tone(out, audio, 0.5)
    with av.open(str(song)) as file:
        assert len(file.streams.video) == 1
    with pytest.raises(SourceError, match="no video track"):
        media.open_source(song)


def test_a_track_without_one_frame(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "none.mp4", flags="empty_moov+frag_keyframe")
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"moof") - 4])
    with pytest.raises(SourceError) as caught:
        media.open_source(path)
    one_line(caught.value, "none.mp4", "no readable frame")


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("text.mp4", b"This is no video at all.\n" * 200, "is no video"),
        ("empty.mp4", b"", "is no video"),
        ("zeros.mp4", bytes(10_000), "is no video"),
    ],
)
def test_what_is_no_video_is_refused(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SourceError) as caught:
        media.open_source(path)
    one_line(caught.value, name, words)


def test_missing_files_and_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        media.open_source(tmp_path / "missing.mp4")
    one_line(caught.value, "missing.mp4", "no such file")
    with pytest.raises(SourceError) as caught:
        media.open_source(tmp_path)
    one_line(caught.value, "a directory")


def test_a_name_with_a_colon_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_clip(tmp_path / "plain.mp4").rename(tmp_path / "http:clip.mp4")
    assert len(list(media.open_source(Path("http:clip.mp4")))) == 12


# Damage


@pytest.mark.parametrize(
    "name, flags",
    [
        ("head-first.mp4", "faststart"),
        ("fragments.mp4", "frag_keyframe+empty_moov+default_base_moof"),
        ("blocks.mkv", None),
        ("index.avi", None),
    ],
)
@pytest.mark.parametrize("share", [0.3, 0.6])
def test_a_cut_file_gives_what_is_there_and_then_the_error(
    tmp_path: Path, name: str, flags: str | None, share: float
) -> None:
    path = make_clip(tmp_path / name, frames=75, paint=noisy, flags=flags, sound="aac")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    frames, error = read_until_error(media.open_source(path))
    assert 75 * share * 0.5 < len(frames) < 75
    assert [f.index for f in frames] == list(range(len(frames)))
    assert error is not None
    one_line(error, name, f"the {len(frames)} frames")
    copied_frames = copied_in_spite(media.open_source(path), tmp_path / "out.mp4")
    assert len(pictures_of(tmp_path / "out.mp4")) == copied_frames == len(frames)


def copied_in_spite(source: VideoFile, target: Path) -> int:
    """As the command line does: what was readable is written, and the file finished."""
    sink, count = media.open_sink(target, source, source.height, source.width), 0
    try:
        for frame in source:
            sink.write(frame)
            count += 1
    except SourceError:
        sink.close()
    return count


def test_a_file_cut_before_its_index_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "cut.mp4", paint=noisy)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(SourceError) as caught:
        media.open_source(path)
    one_line(caught.value, "cut off before its index")


@pytest.fixture(scope="module")
def whole_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    return make_clip(folder / "whole.mp4", paint=noisy, sound="aac")


@given(
    st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=40)), max_size=4),
    st.floats(0.2, 1),
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@example([], 0.9453125)  # Cut inside the description of the codec: a track without a decoder.
def test_damage_anywhere_is_a_picture_or_a_source_error(
    whole_clip: Path, tmp_path: Path, dents: list[tuple[float, bytes]], kept: float
) -> None:
    data = bytearray(whole_clip.read_bytes())
    for place, rubbish in dents:
        at = int(place * (len(data) - len(rubbish)))
        data[at : at + len(rubbish)] = rubbish
    path = tmp_path / "dented.mp4"
    path.write_bytes(data[: int(kept * len(data))])
    try:
        source = media.open_source(path)
    except SourceError as error:
        one_line(error)
        return
    frames, late = read_until_error(source)
    assert all(a.pts_s < b.pts_s for a, b in itertools.pairwise(frames))
    assert all(f.rgb.shape == (source.height, source.width, 3) for f in frames)
    if late is not None:
        one_line(late)


# Sinks


@pytest.mark.parametrize("ending", [".mp4", ".mov", ".mkv"])
def test_out_is_in_with_its_times_and_its_sound(tmp_path: Path, ending: str) -> None:
    clip = make_clip(tmp_path / "in.mp4", frames=30, sound="aac")
    target = tmp_path / f"out{ending}"
    frames = copied(media.open_source(clip), target)
    found = pictures_of(target)
    assert len(found) == len(frames) == 30
    # Matroska has no time before 0: there all begins a block of sound later.
    shift = found[0][0]
    assert shift < (0.03 if ending == ".mkv" else 1e-9)
    assert [t - shift for t, _ in found] == pytest.approx([f.pts_s for f in frames], abs=1e-3)
    for (_, picture), frame in zip(found, frames, strict=True):
        assert np.abs(picture.astype(int) - frame.rgb).mean() < 3
    before, after = sound_of(clip), sound_of(target)
    assert [data for _, data in after] == [data for _, data in before]
    assert [t - shift for t, _ in after] == pytest.approx([t for t, _ in before], abs=2e-3)
    with av.open(str(target)) as file:
        video = file.streams.video[0]
        assert video.average_rate == 25
        assert (video.codec_context.name, video.codec_context.pix_fmt) == ("h264", "yuv420p")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.mp4", f"out{ending}"]


@pytest.mark.parametrize("sound, ending", [("flac", ".mov"), ("adpcm_ms", ".mp4")])
def test_sound_that_the_container_does_not_take_is_encoded_again(
    tmp_path: Path, sound: str, ending: str
) -> None:
    origin = ".mkv" if sound == "flac" else ".avi"
    clip = make_clip(tmp_path / f"in{origin}", frames=30, sound=sound)
    source, target = media.open_source(clip), tmp_path / f"out{ending}"
    sink = media.open_sink(target, source, *SIZE)
    for frame in source:
        sink.write(frame)
    sink.close()
    (remark,) = sink.remarks
    assert "sound is written as AAC" in remark
    assert sound in remark
    before, after = loudness(clip), loudness(target)
    assert after.size == pytest.approx(before.size, abs=1024)
    assert after.mean() == pytest.approx(before.mean(), rel=0.1)


def loudness(path: Path) -> NDArray[np.float64]:
    """Magnitude of every sample of a file's sound."""
    with av.open(str(path)) as file:
        resampler = av.AudioResampler("flt", "mono", RATE)
        blocks = [b for f in file.decode(audio=0) for b in resampler.resample(f)]
        return np.abs(np.concatenate([b.to_ndarray().ravel() for b in blocks])).astype(np.float64)


def test_an_interrupted_stream_leaves_a_file_that_plays(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "in.mp4", frames=50, sound="aac")
    copied(media.open_source(clip), tmp_path / "out.mp4", stop=10)
    assert len(pictures_of(tmp_path / "out.mp4")) == 10
    assert sound_of(tmp_path / "out.mp4")[-1][0] < 10 / 25


def test_a_target_appears_when_it_is_whole(tmp_path: Path) -> None:
    source, target = media.moving_scene(32, 32, 16, 0.5), tmp_path / "out.mp4"
    target.write_bytes(b"what was there before")
    sink = media.open_sink(target, source, 32, 32)
    for frame in source:
        sink.write(frame)
    assert target.read_bytes() == b"what was there before"
    sink.close()
    sink.close()
    sink.abort()
    assert len(pictures_of(target)) == 8
    assert list(tmp_path.iterdir()) == [target]


def test_an_abort_leaves_nothing_new(tmp_path: Path) -> None:
    source, target = media.moving_scene(32, 32, 16, 0.5), tmp_path / "out.mp4"
    target.write_bytes(b"what was there before")
    sink = media.open_sink(target, source, 32, 32)
    sink.write(next(iter(source)))
    sink.abort()
    sink.abort()
    assert list(tmp_path.iterdir()) == [target]
    assert target.read_bytes() == b"what was there before"


def test_a_stream_without_one_frame_leaves_no_file(tmp_path: Path) -> None:
    sink = media.open_sink(tmp_path / "out.mp4", media.moving_scene(32, 32, 16, 0.5), 32, 32)
    sink.close()
    assert list(tmp_path.iterdir()) == []
    assert len(sink.remarks) == 1


@pytest.mark.parametrize("size", [(33, 47), (1, 1), (2, 17)])
def test_odd_sizes_gain_a_line(tmp_path: Path, size: tuple[int, int]) -> None:
    source = media.moving_scene(*size, fps=16, seconds=0.25)
    sink = media.open_sink(tmp_path / "out.mp4", source, *size)
    for frame in source:
        sink.write(frame)
    sink.close()
    even = tuple(side + side % 2 for side in size)
    assert [p.shape for _, p in pictures_of(tmp_path / "out.mp4")] == [(*even, 3)] * 4
    assert len(sink.remarks) == 1


def test_colours_come_back(tmp_path: Path) -> None:
    source = media.moving_scene(*SIZE, fps=16, seconds=0.25)
    sink = media.open_sink(tmp_path / "out.mp4", source, *SIZE)
    for frame in source:
        sink.write(dataclasses.replace(frame, rgb=corners(0)))
    sink.close()
    frame = next(iter(media.open_source(tmp_path / "out.mp4")))
    flat = np.array([frame.rgb[12, 16], frame.rgb[12, 48], frame.rgb[36, 16], frame.rgb[36, 48]])
    expected = [corners(0)[p] for p in ((12, 16), (12, 48), (36, 16), (36, 48))]
    assert np.abs(flat.astype(int) - np.array(expected)).max() <= 4


@pytest.mark.parametrize(
    "name, words",
    [
        ("nowhere/out.mp4", "no directory"),
        ("file.txt/out.mp4", "no directory"),
        ("folder.mp4", "is a directory"),
        ("out.txt", "'.txt'"),
        ("out", "names no container"),
    ],
)
def test_targets_that_cannot_be_are_refused_at_once(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "file.txt").write_text("a file")
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(SinkError) as caught:
        media.open_sink(tmp_path / name, media.moving_scene(32, 32), 32, 32)
    one_line(caught.value, Path(name).name, words)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file.txt", "folder.mp4"]


def test_a_place_without_the_right_to_write_is_refused() -> None:
    # Nobody may create a file there, root included.
    with pytest.raises(SinkError) as caught:
        media.open_sink(Path("/proc/out.mp4"), media.moving_scene(32, 32), 32, 32)
    one_line(caught.value, "out.mp4", "cannot be opened")


@pytest.mark.parametrize("sound", [None, "aac"])
def test_the_input_is_never_overwritten(tmp_path: Path, sound: str | None) -> None:
    clip = make_clip(tmp_path / "in.mp4", sound=sound)
    link = tmp_path / "same.mp4"
    link.symlink_to(clip)
    for name in (clip, link):
        with pytest.raises(SinkError) as caught:
            media.open_sink(name, media.open_source(clip), *SIZE)
        one_line(caught.value, "is the input itself")
    assert len(pictures_of(clip)) == 12


@pytest.mark.parametrize("seconds", [0.25, 20])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, seconds: float) -> None:
    """/dev/full takes the place of the temporary file: no space at the end, or in the middle."""
    target = tmp_path / "out.mp4"
    (tmp_path / "out.part.mp4").symlink_to("/dev/full")
    source = media.moving_scene(96, 96, 16, seconds)
    with pytest.raises(SinkError) as caught:  # noqa: PT012
        sink = media.open_sink(target, source, 96, 96)
        try:
            for frame in source:
                sink.write(frame)
            sink.close()
        except Error:
            sink.abort()
            raise
    one_line(caught.value, "out.mp4", "No space left")
    assert list(tmp_path.iterdir()) == []


# The made scene, and the demonstration's picture


def test_the_scene_is_the_same_every_time() -> None:
    scene = media.moving_scene(64, 96, fps=16, seconds=5)
    frames = list(scene)
    assert scene.frame_count == len(frames) == 80
    assert [f.index for f in frames] == list(range(80))
    assert [f.pts_s for f in frames] == [i / 16 for i in range(80)]
    again = list(media.moving_scene(64, 96, fps=16, seconds=5))
    assert all((a.rgb == b.rgb).all() for a, b in zip(frames, again, strict=True))
    assert scene.ended


def test_the_scene_moves_rests_and_flickers() -> None:
    pictures = [f.rgb.astype(float) for f in media.moving_scene(64, 96, fps=16, seconds=5)]
    change = np.array([np.abs(b - a).mean() for a, b in itertools.pairwise(pictures)])
    light = np.abs(np.diff([p.mean() for p in pictures]))
    assert (change[:31] > 0.5).all()
    assert (change[32:39] == 0).all()
    assert (change[41:] > 0.5).all()
    assert light[56:63].mean() > 5 * light[:31].mean()


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (3, 200), (255, 127)])
def test_the_scene_has_any_size(size: tuple[int, int]) -> None:
    frames = list(media.moving_scene(*size, fps=29.97, seconds=0.2))
    assert len(frames) == 6
    assert all(f.rgb.shape == (*size, 3) for f in frames)


@pytest.mark.parametrize("left", [SIZE, (96, 128), (30, 40), (100, 64), (48, 200), (1, 1)])
def test_side_by_side_keeps_the_right_and_fits_the_left(left: tuple[int, int]) -> None:
    right = corners(0)
    both = media.side_by_side(np.full((*left, 3), 90, np.uint8), right)
    assert both.shape == (SIZE[0], 2 * SIZE[1], 3)
    assert (both[:, SIZE[1] :] == right).all()
    assert np.abs(both[:, : SIZE[1]].astype(int) - 90).max() <= 1


def test_side_by_side_shows_the_middle_of_a_wide_picture() -> None:
    wide = np.zeros((48, 128, 3), np.uint8)
    wide[:, 32:96] = corners(0)
    assert (media.side_by_side(wide, corners(0))[:, :64] == corners(0)).all()
