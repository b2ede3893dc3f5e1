"""`python -m rt.stream`: what it writes and says; no mistake leaves anything behind."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.audio.stream import AudioStream
from av.video.stream import VideoStream
from micro_engine import SIZE

from rt import manifest, options, stream
from rt.media import MovingScene
from rt.media.files import VideoFile
from rt.stage import Stage

FPS = 16
FRAMES = 14
TICK = Fraction(1, 1000)


def make_clip(
    path: Path,
    frames: int = FRAMES,
    size: tuple[int, int] = (48, 64),
    ticks: Sequence[int] | None = None,
    **flags: str,
) -> Path:
    """A clip of noise, so that a cut of the file hits pictures. `ticks` are times in ms."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w", options=flags) as out:
        video = out.add_stream("libx264", rate=FPS, options={"g": "4"})
        assert isinstance(video, VideoStream)
        # Colour at full size, so that sides may be odd.
        video.height, video.width, video.pix_fmt = *size, "yuv444p"
        video.codec_context.time_base = TICK
        for index in range(frames):
            pixels = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
            picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            picture.pts = ticks[index] if ticks else round(1000 * index / FPS)
            picture.time_base = TICK
            out.mux(video.encode(picture))
        out.mux(video.encode(None))
    return path


def make_song(path: Path) -> Path:
    with av.open(str(path), "w") as out:
        audio = out.add_stream("aac", rate=44_100, layout="mono")
        assert isinstance(audio, AudioStream)
        block = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.int16), "s16", "mono")
        block.sample_rate = 44_100
        out.mux(audio.encode(block))
        out.mux(audio.encode(None))
    return path


def make_empty(path: Path) -> Path:
    """A video track that declares itself and holds no frame."""
    data = make_clip(path, movflags="empty_moov+frag_keyframe").read_bytes()
    path.write_bytes(data[: data.index(b"moof") - 4])
    return path


def make_text(path: Path) -> Path:
    path.write_text("This is no video at all.\n" * 200)
    return path


def times(path: Path) -> list[float]:
    """Times of all pictures of a file, in seconds."""
    with av.open(str(path)) as container:
        return [float(frame.time) for frame in container.decode(video=0)]


def size_of(path: Path) -> tuple[int, int]:
    with av.open(str(path)) as container:
        return container.streams.video[0].height, container.streams.video[0].width


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("in") / "clip.mp4")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The output directory: whatever a run leaves is in it."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def arguments(engines: Path, source: Path, target: Path, *more: str) -> list[str]:
    names = ["--input", str(source), "--output", str(target), "--engines", str(engines)]
    return [*names, *([] if "--prompt" in more else ["--prompt", "sketch"]), *more]


def one_error(text: str, *words: str) -> None:
    assert text.startswith("error: "), text
    assert text.count("\n") == 1, text
    assert all(word in text for word in words), text


# What comes out


def test_as_many_frames_out_as_in_and_a_report(tiny_engine: Path, clip: Path, out: Path) -> None:
    report, target = out / "r.json", out / "o.mp4"
    assert stream.main(arguments(tiny_engine, clip, target, "--report", str(report))) == 0
    assert np.allclose(times(target), times(clip))
    assert size_of(target) == (SIZE, SIZE)
    told = json.loads(report.read_text())
    assert (told["outcome"], told["error"]) == ("done", None)
    assert told["frames_written"] == told["frames_in"] == told["frames_emitted"] == FRAMES
    assert told["frames_late"] == told["frames_dropped"] == told["frames_in_flight"] == 0
    assert told["drop_share"] == told["miss_share"] == 0
    assert told["ttff_s"] > 0
    for name in ("latency_ms", "jitter_ms"):
        assert 0 <= told[name]["p50"] <= told[name]["p90"] <= told[name]["p99"]
    assert told["fps"] is None, "the window never filled, so there is no steady state"
    assert [c["index"] for c in told["chunks"]] == list(range(5))
    assert all(0.69 <= c["noise_scale"] <= 0.81 and c["motion_score"] >= 0 for c in told["chunks"])
    assert told["pipeline"]["backend"] == "onnxruntime"
    assert [s["device"] for s in told["pipeline"]["placement"]] == ["cpu:0"]
    assert any("64x48" in remark for remark in told["remarks"])
    assert {path.name for path in out.iterdir()} == {"r.json", "o.mp4"}


@pytest.mark.parametrize("motion", ["flow", "difference", "off"])
def test_a_plot_of_motion_and_noise(tiny_engine: Path, clip: Path, out: Path, motion: str) -> None:
    more = ("--plot", str(out / "p.png"), "--motion", motion)
    assert stream.main(arguments(tiny_engine, clip, out / "o.mp4", *more)) == 0
    assert (out / "p.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in out.iterdir()} == {"p.png", "o.mp4"}


def test_a_plot_without_matplotlib_says_what_to_install(
    tiny_engine: Path,
    clip: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    given = arguments(tiny_engine, clip, out / "o.mp4", "--plot", str(out / "p.png"))
    assert stream.main(given) == 2
    one_error(capsys.readouterr().err, "plot", "pip install matplotlib")
    assert not list(out.iterdir())


def test_a_longer_clip_has_a_rate(tiny_engine: Path, tmp_path: Path, out: Path) -> None:
    source, report = make_clip(tmp_path / "long.mp4", 40), out / "r.json"
    begin = time.perf_counter()
    more = ("--report", str(report), "--steps", "1")
    assert stream.main(arguments(tiny_engine, source, out / "o.mp4", *more)) == 0
    told = json.loads(report.read_text())
    assert told["fps"] >= (40 - told["fps_warmup_frames"]) / (time.perf_counter() - begin)
    assert told["steps"] == 1


def test_the_same_bytes_twice_and_on_two_devices(tiny_engine: Path, clip: Path, out: Path) -> None:
    for name, more in (("a", ()), ("b", ()), ("c", ("--devices", "cpu:0,cpu:1"))):
        given = arguments(tiny_engine, clip, out / f"{name}.mp4", "--devices", "cpu", *more)
        assert stream.main(given) == 0
    first = (out / "a.mp4").read_bytes()
    assert first == (out / "b.mp4").read_bytes() == (out / "c.mp4").read_bytes()
    assert stream.main(arguments(tiny_engine, clip, out / "d.mp4", "--seed", "1")) == 0
    assert first != (out / "d.mp4").read_bytes()


def test_side_by_side_and_the_made_scene(
    tiny_engine: Path, clip: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stream.main(arguments(tiny_engine, clip, out / "o.mp4", "--side-by-side")) == 0
    assert size_of(out / "o.mp4") == (SIZE, 2 * SIZE)
    assert len(times(out / "o.mp4")) == FRAMES
    scene = MovingScene(SIZE, SIZE, 16.0, 0.5)
    monkeypatch.setattr(stream.media, "moving_scene", lambda: scene)
    given = ["--scene", "--prompt", "x", "--engines", str(tiny_engine)]
    assert stream.main([*given, "--output", str(out / "s.mp4")]) == 0
    assert len(times(out / "s.mp4")) == 8


def test_realtime_takes_its_time_and_counts_late_and_dropped_frames(
    tiny_engine: Path, clip: Path, out: Path
) -> None:
    more = ("--realtime", "--slo-ms", "0.001", "--report", str(out / "r.json"))
    begin = time.perf_counter()
    assert stream.main(arguments(tiny_engine, clip, out / "o.mp4", *more)) == 0
    assert time.perf_counter() - begin >= times(clip)[-1]
    told = json.loads((out / "r.json").read_text())
    assert told["frames_late"] == told["frames_emitted"] == len(times(out / "o.mp4")) > 0
    assert told["frames_emitted"] + told["frames_dropped"] == FRAMES
    assert told["frames_dropped"] > 0, "what cannot come in time is not worth its encoding"


@pytest.mark.parametrize("size", [(1, 1), (35, 131), (130, 36)], ids=["dot", "odd", "portrait"])
def test_other_sizes_and_long_prompts_are_noted(
    tiny_engine: Path,
    tmp_path: Path,
    out: Path,
    capsys: pytest.CaptureFixture[str],
    size: tuple[int, int],
) -> None:
    source = make_clip(tmp_path / "odd.mp4", 3, size)
    given = arguments(tiny_engine, source, out / "o.mp4", "--prompt", "word " * 600)
    assert stream.main(given) == 0
    told = capsys.readouterr()
    assert f"note: the input is {size[1]}x{size[0]}" in told.out
    assert "tokens, this model reads 8: the rest was cut\n" in told.out
    assert told.err == ""
    assert len(times(out / "o.mp4")) == 3
    assert size_of(out / "o.mp4") == (SIZE, SIZE)


def test_times_of_a_variable_rate_are_kept(tiny_engine: Path, tmp_path: Path, out: Path) -> None:
    source = make_clip(tmp_path / "vfr.mp4", 8, ticks=[0, 20, 90, 100, 400, 410, 550, 900])
    assert stream.main(arguments(tiny_engine, source, out / "o.mp4")) == 0
    assert np.allclose(times(out / "o.mp4"), times(source), atol=1e-3)


def test_any_name_of_a_file_can_be_told(tiny_engine: Path, clip: Path, out: Path) -> None:
    """Brackets are markup to the table; bytes may be no text at all."""
    (out / "a[").mkdir()
    for name in ("a[/b].mp4", os.fsdecode(b"\xff.mp4")):
        command = [sys.executable, "-m", "rt.stream"]
        given = arguments(tiny_engine, clip, out / name)
        done = subprocess.run([*command, *given], capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
        assert len(times(out / name)) == FRAMES


def test_a_reader_of_the_table_may_leave(tiny_engine: Path, clip: Path, out: Path) -> None:
    given = [sys.executable, "-m", "rt.stream", *arguments(tiny_engine, clip, out / "o.mp4")]
    with subprocess.Popen(given, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0
    assert len(times(out / "o.mp4")) == FRAMES


# Mistakes


@pytest.mark.parametrize(
    "more, code, words",
    [
        (["--prompt", "  "], 2, ["prompt", "words"]),
        (["--prompt", os.fsdecode(b"a \xff b")], 2, ["prompt"]),
        (["--gpus", "0"], 2, ["gpus", "at least 1"]),
        (["--gpus", "two"], 2, ["--gpus", "'two'", "--help"]),
        (["--devices", "cuda:99"], 2, ["cuda:99", "--devices cpu"]),
        (["--devices", "tpu"], 2, ["tpu", "cpu:N"]),
        (["--devices", ""], 2, ["devices", "cpu:N"]),
        (["--devices", ",".join(["cpu"] * 99)], 2, ["99", "at most"]),
        (["--devices", "cpu", "--gpus", "1"], 2, ["--gpus", "not allowed with"]),
        (["--steps", "9"], 2, ["9", "1 to 4"]),
        (["--steps", "0"], 2, ["steps"]),
        (["--seed", "-1"], 2, ["seed", "-1"]),
        (["--slo-ms", "0"], 2, ["slo", "0"]),
        (["--slo-ms", "nan"], 2, ["slo", "nan"]),
        (["--motion", "none"], 2, ["--motion", "'none'", "flow", "--help"]),
        (["--fit", "pad"], 2, ["--fit", "'pad'"]),
        (["--frobnicate"], 2, ["--frobnicate"]),
        (["--side"], 2, ["--side"]),
        (["--scene"], 2, ["--scene", "not allowed with"]),
        (["--plot", "motion.txt"], 2, ["plot", ".png"]),
        (["--plot", "nowhere/p.png"], 2, ["plot", "nowhere"]),
        (["--report", "p.png", "--plot", "p.png"], 2, ["plot", "the report"]),
        (["--report", "nowhere/r.json"], 2, ["report", "nowhere"]),
        (["--report", "."], 2, ["report", "directory"]),
        (["--report", "o.mp4"], 2, ["report", "o.mp4"]),
        (["--engines", "nowhere"], 1, ["nowhere", "build-engines"]),
        (["--input", ""], 2, ["input", "an empty text", "expected a file"]),
        (["--output", ""], 2, ["output", "an empty text", "expected a file"]),
        (["--input", "missing.mp4"], 1, ["missing.mp4", "no such file"]),
        (["--input", "."], 1, ["directory"]),
        (["--input", "x" * 300], 1, ["x" * 300, "too long"]),
        (["--output", "nowhere/o.mp4"], 1, ["nowhere", "no directory"]),
        (["--output", "o.gif"], 1, [".gif", ".mp4, .m4v, .mov, .mkv"]),
        (["--output", "o"], 1, [".mp4"]),
        (["--input", "raw:"], 2, ["--input-size", "--input-fps"]),
        (["--input-size", "64x64"], 2, ["clip.mp4", "size of its own"]),
        (["--input", "raw:", "--input-size", "64"], 2, ["'64'", "WIDTHxHEIGHT"]),
        (["--patience-s", "nan"], 2, ["patience-s", "nan"]),
        (["--input", "ftp://host/x"], 1, ["ftp://host/x", "rtsp://HOST"]),
        (["--input", "rtsp://u:secret@127.0.0.1:1/x"], 1, ["rtsp://127.0.0.1:1/x", "refused"]),
        (["--input", "/dev/video77"], 1, ["/dev/video77", "no such device"]),
        (["--output", "rtmp://127.0.0.1:1/a/b"], 1, ["refused", "RTMP"]),
        (["--output", "/dev/video77"], 1, ["/dev/video77", "v4l2loopback"]),
        (["--output", "nowhere/l.m3u8"], 1, ["nowhere", "no directory"]),
        (["--output", "f%d.jpg"], 1, ["f%d.jpg", "PNG"]),
        (["--output", "http://192.0.2.1:9/"], 1, ["192.0.2.1", "cannot be served"]),
    ],
    ids=lambda value: "-".join(value)[:24] if isinstance(value, list) else None,
)
def test_mistakes_are_one_line_and_leave_nothing(
    tiny_engine: Path,
    clip: Path,
    out: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    more: list[str],
    code: int,
    words: list[str],
) -> None:
    monkeypatch.chdir(out)
    assert stream.main(arguments(tiny_engine, clip, Path("o.mp4"), *more)) == code
    one_error(capsys.readouterr().err, *words)
    assert list(out.iterdir()) == []


def test_more_gpus_than_there_are(
    tiny_engine: Path,
    clip: Path,
    out: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os.path, "exists", lambda _: False)
    assert stream.main(arguments(tiny_engine, clip, out / "o.mp4", "--gpus", "4")) == 2
    one_error(capsys.readouterr().err, "got 4", "no NVIDIA driver", "0 GPUs", "--devices cpu")
    assert list(out.iterdir()) == []


def test_the_input_is_never_written_to(
    tiny_engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_clip(tmp_path / "clip.mp4", 2)
    whole = source.read_bytes()
    assert stream.main(arguments(tiny_engine, source, source)) == 1
    one_error(capsys.readouterr().err, "is the input itself")
    given = arguments(tiny_engine, source, tmp_path / "o.mp4", "--report", str(source))
    assert stream.main(given) == 2
    one_error(capsys.readouterr().err, "report", "clip.mp4")
    assert source.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize(
    "make, words",
    [(make_text, "is no video"), (make_song, "no video track"), (make_empty, "no readable frame")],
)
def test_what_is_no_video_is_refused(
    tiny_engine: Path,
    tmp_path: Path,
    out: Path,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], Path],
    words: str,
) -> None:
    older = out / "o.mp4"
    older.write_bytes(b"older")
    assert stream.main(arguments(tiny_engine, make(tmp_path / "in.mp4"), older)) == 1
    one_error(capsys.readouterr().err, "in.mp4", words)
    assert older.read_bytes() == b"older"
    assert list(out.iterdir()) == [older]


def test_a_file_is_no_place_for_an_output(
    tiny_engine: Path, clip: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (out / "file").write_text("x")
    assert stream.main(arguments(tiny_engine, clip, out / "file" / "o.mp4")) == 1
    one_error(capsys.readouterr().err, "file", "is no directory")
    given = arguments(tiny_engine, clip, out / "o.mp4", "--report", str(out / "file" / "r.json"))
    assert stream.main(given) == 2
    one_error(capsys.readouterr().err, "report", "no directory")
    assert [path.name for path in out.iterdir()] == ["file"]


# Engines that do not fit


@pytest.fixture(autouse=True)
def _ctrl_c_is_heard() -> Iterator[None]:
    """A test run in the background of a shell starts with SIGINT ignored, and hands that on."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def engine(tiny_engine: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_engine, tmp_path / "engine"))


def edit(engine: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = engine / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    "name", ["block_0.onnx", "encode_0.first.onnx", "weights.safetensors", "tokenizer.json"]
)
def test_a_flipped_byte_in_an_engine_is_named(
    engine: Path, clip: Path, out: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    data = bytearray((engine / name).read_bytes())
    data[len(data) // 2] ^= 1
    (engine / name).write_bytes(data)
    assert stream.main(arguments(engine, clip, out / "o.mp4")) == 1
    one_error(capsys.readouterr().err, name, "python -m export build-engines --model micro")
    assert list(out.iterdir()) == []


def other_geometry(told: dict[str, Any]) -> None:
    told["geometry"].update(height=2 * SIZE, width=2 * SIZE)


def other_shapes(told: dict[str, Any]) -> None:
    other_geometry(told)
    for unit in told["chain"]:
        for plan in unit["plans"].values():
            for binding in plan["inputs"] + plan["outputs"]:
                binding["shape"] = [2 * d if d == SIZE else d for d in binding["shape"]]


def other_window(told: dict[str, Any]) -> None:
    told["window"]["frames"] += 1


def other_latent(told: dict[str, Any]) -> None:
    told["geometry"]["latent_height"] += 1


@pytest.mark.parametrize("change", [other_geometry, other_shapes, other_window, other_latent])
def test_plans_of_another_geometry_are_refused(
    engine: Path,
    clip: Path,
    out: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[dict[str, Any]], None],
) -> None:
    edit(engine, change)
    manifest.sign(engine)
    assert stream.main(arguments(engine, clip, out / "o.mp4")) == 1
    one_error(capsys.readouterr().err, ".onnx", "the manifest needs", "build-engines")
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.999])
def test_a_cut_manifest_is_refused(
    engine: Path, clip: Path, out: Path, capsys: pytest.CaptureFixture[str], keep: float
) -> None:
    path = engine / "manifest.json"
    text = path.read_text()
    path.write_text(text[: int(len(text) * keep)])
    assert stream.main(arguments(engine, clip, out / "o.mp4")) == 1
    one_error(capsys.readouterr().err, "manifest.json", "build the engine again")
    assert list(out.iterdir()) == []


# Failures on the way


def test_a_cut_input_is_delivered_and_then_told(
    tiny_engine: Path, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = make_clip(tmp_path / "cut.mp4", 24, movflags="faststart")
    data = cut.read_bytes()
    cut.write_bytes(data[: len(data) * 2 // 3])
    report, target = out / "r.json", out / "o.mp4"
    assert stream.main(arguments(tiny_engine, cut, target, "--report", str(report))) == 1
    said = capsys.readouterr()
    delivered = len(times(target))
    assert 0 < delivered < 24
    one_error(said.err, "cut.mp4", f"the {delivered} frames that could be read were delivered")
    assert f"{delivered} / {delivered} / 0" in said.out
    told = json.loads(report.read_text())
    assert told["outcome"] == "failed"
    assert told["error"] in said.err
    assert told["frames_written"] == told["frames_emitted"] == told["frames_in"] == delivered


def test_a_full_disk_keeps_the_older_file(tiny_engine: Path, clip: Path, out: Path) -> None:
    """The disk is full when frames have come out: what fits is the report alone.

    In a process of its own: the limit also counts for a file that pytest's own output goes to.
    """
    target, report = out / "o.mp4", out / "r.json"
    target.write_bytes(b"older")
    given = arguments(tiny_engine, clip, target, "--report", str(report))
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192)); "
    command = limited + "from rt import stream; sys.exit(stream.main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", command, *given], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    one_error(done.stderr, "o.mp4", "File too large", "free space")
    assert target.read_bytes() == b"older"
    told = json.loads(report.read_text())
    assert (told["outcome"], told["frames_written"]) == ("failed", 0)
    assert told["frames_emitted"] > 0
    assert {path.name for path in out.iterdir()} == {"o.mp4", "r.json"}


def test_a_disk_that_is_full_from_the_start(
    tiny_engine: Path, clip: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """/dev/full takes the place of the temporary file."""
    (out / "o.part.mp4").symlink_to("/dev/full")
    assert stream.main(arguments(tiny_engine, clip, out / "o.mp4")) == 1
    one_error(capsys.readouterr().err, "o.mp4", "No space left", "free space")
    assert list(out.iterdir()) == []


def test_no_room_for_the_report(
    tiny_engine: Path, clip: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, report = out / "o.mp4", out / "r.json"
    (out / ".r.json.part").symlink_to("/dev/full")
    assert stream.main(arguments(tiny_engine, clip, target, "--report", str(report))) == 1
    one_error(capsys.readouterr().err, "r.json", "No space left")
    assert list(out.iterdir()) == [target], "the video was finished before"
    assert len(times(target)) == FRAMES


def test_a_stage_that_fails_leaves_no_output(
    tiny_engine: Path,
    clip: Path,
    out: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Stage.run

    def failing(self: Stage, task: Any, works: Any) -> Any:
        if task.jobs[0].chunk == 2:
            raise RuntimeError("out of memory")
        return run(self, task, works)

    monkeypatch.setattr(Stage, "run", failing)
    given = arguments(tiny_engine, clip, out / "o.mp4", "--report", str(out / "r.json"))
    assert stream.main(given) == 1
    one_error(capsys.readouterr().err, "stage 0 on cpu:0 failed at chunk 2", "out of memory")
    told = json.loads((out / "r.json").read_text())
    assert (told["outcome"], told["frames_written"]) == ("failed", 0)
    assert told["frames_in"] == told["frames_emitted"] + told["frames_dropped"]
    assert [path.name for path in out.iterdir()] == ["r.json"]


# Ctrl-C


def test_ctrl_c_ends_after_the_frame_that_is_written(
    tiny_engine: Path,
    clip: Path,
    out: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write, written = stream.media.VideoSink.write, 0

    def pressing(sink: Any, frame: Any) -> None:
        nonlocal written
        written += 1
        if written == 6:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        write(sink, frame)

    monkeypatch.setattr(stream.media.VideoSink, "write", pressing)
    given = arguments(tiny_engine, clip, out / "o.mp4", "--report", str(out / "r.json"))
    assert stream.main(given) == 130
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert capsys.readouterr().err == f"interrupted: 6 frames are in {out / 'o.mp4'}\n"
    assert times(out / "o.mp4") == times(clip)[:6]
    told = json.loads((out / "r.json").read_text())
    assert told["outcome"] == "interrupted"
    assert told["frames_written"] == told["frames_emitted"] == 6
    assert told["frames_in"] == told["frames_emitted"] + told["frames_dropped"]


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_in_mid_stream(tiny_engine: Path, tmp_path: Path, out: Path, presses: int) -> None:
    source, target = make_clip(tmp_path / "long.mp4", 200, (16, 16)), out / "o.mp4"
    given = arguments(tiny_engine, source, target, "--realtime")
    with subprocess.Popen(
        [sys.executable, "-m", "rt.stream", *given], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        wait_until(lambda: any(out.iterdir()) or process.poll() is not None)
        time.sleep(0.3)
        for _ in range(presses):
            process.send_signal(signal.SIGINT)
            time.sleep(0.02)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    frames = len(times(target))
    assert errors.decode() == f"interrupted: {frames} frames are in {target}\n"
    assert 0 < frames < 200
    assert list(out.iterdir()) == [target]


def test_a_second_ctrl_c_ends_a_source_that_stalls(
    tiny_engine: Path,
    clip: Path,
    out: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four frames, then none for a minute: nobody reads the flag, the second press counts."""

    def stalling(source: Any) -> Iterator[Any]:
        yield from itertools.islice(frames(source), 5)
        for press in (0.1, stream.PATIENCE_S + 0.3):
            threading.Timer(press, os.kill, (os.getpid(), signal.SIGINT)).start()
        time.sleep(60)

    frames = VideoFile.__iter__
    monkeypatch.setattr(VideoFile, "__iter__", stalling)
    start = time.monotonic()
    assert stream.main(arguments(tiny_engine, clip, out / "o.mp4")) == 130
    assert time.monotonic() - start < 45
    assert capsys.readouterr().err == f"interrupted: 5 frames are in {out / 'o.mp4'}\n"
    assert times(out / "o.mp4") == times(clip)[:5]


SLOW_LOAD = """
import sys, time
from rt import stream
class Slow:
    def load(*_, **__):
        print("loading", flush=True)
        time.sleep(60)
stream.Pipeline = Slow
sys.exit(stream.main(sys.argv[1:], stream.Interrupt(for_good=True)))
"""


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_while_the_engine_loads(
    tiny_engine: Path, clip: Path, out: Path, presses: int
) -> None:
    given = [sys.executable, "-c", SLOW_LOAD, *arguments(tiny_engine, clip, out / "o.mp4")]
    with subprocess.Popen(given, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"loading\n"
        for _ in range(presses):
            process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, b"interrupted: no frame was written\n")
    assert list(out.iterdir()) == []


def wait_until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# Help


def test_help_tells_every_default(capsys: pytest.CaptureFixture[str]) -> None:
    for action in options.parser()._actions:
        name = action.option_strings[-1]
        assert name == name.lower()
        assert "_" not in name
        required = action.required or name in ("--input", "--scene")
        if not required and name not in ("--help", "--version"):
            assert "(default: " in str(action.help), name
    with pytest.raises(SystemExit) as ended:
        stream.main(["--help"])
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "engine directory (default: engines/tiny)" in shown
    assert "130 interrupted" in shown


def test_version() -> None:
    given = [sys.executable, "-m", "rt.stream", "--version"]
    done = subprocess.run(given, capture_output=True, text=True, check=True)
    assert done.stdout == f"streamdiffusion-rt {stream.VERSION}\n"
