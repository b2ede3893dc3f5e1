"""The command line from any source to any sink: what comes out is whole, in sync, and what other
programs (ffprobe, OpenCV) read. Killed at any moment, a film plays.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from claps import FLASHES_S, clap, flashes_and_claps
from micro_engine import SIZE
from network_peers import ffmpeg, free_port, needs_ffmpeg, needs_nginx, probed, rtmp_server, running

from rt import media, stream
from rt.errors import SinkError, SourceError


def restyle(engine: Path, source: str | Path, target: str | Path, *more: str) -> int:
    places = ["--input", str(source), "--output", str(target)]
    return stream.main([*places, "--prompt", "x", "--engines", str(engine), *more])


@pytest.mark.parametrize(
    "origin, sound, target",
    [
        ("a.mp4", "aac", "o.mp4"),
        ("a.mkv", "pcm_s16le", "o.mp4"),
        ("a.mp4", "aac", "o.mkv"),
        ("a.mp4", "aac", "o.m3u8"),
    ],
)
def test_claps_stay_on_their_flashes(
    tiny_engine: Path, tmp_path: Path, origin: str, sound: str, target: str
) -> None:
    clip, out = clap(tmp_path / origin, 3, sound), tmp_path / target
    seen, heard = flashes_and_claps(clip)
    assert np.allclose(seen, FLASHES_S, atol=0.03)
    assert np.allclose(heard, FLASHES_S, atol=0.03), "the test can see and hear"
    more = ("--side-by-side", "--steps", "1")
    assert restyle(tiny_engine, clip, out, *more) == 0
    seen, heard = flashes_and_claps(out)
    assert len(seen) == len(heard) == 3
    assert np.abs(np.subtract(seen, heard)).max() <= 0.04


def press_after(interrupt: stream.Interrupt, part: Path) -> None:
    """Ctrl-C, 4 s after the output was begun."""
    for _ in range(600):
        if part.exists():
            break
        time.sleep(0.1)
    time.sleep(4)
    interrupt.pressed = True


@needs_nginx
def test_claps_stay_on_their_flashes_live(tiny_engine: Path, tmp_path: Path) -> None:
    """RTMP in, as a camera sends it; drops and all."""
    clip, port = clap(tmp_path / "a.mp4", 30, "aac"), free_port()
    url, out = f"rtmp://127.0.0.1:{port}/live/clap", tmp_path / "o.mp4"
    publisher = ffmpeg("-re", "-i", str(clip), "-c", "copy", "-f", "flv", url)
    interrupt = stream.Interrupt()
    given = ["--input", url, "--output", str(out), "--prompt", "x", "--engines", str(tiny_engine)]
    with rtmp_server(tmp_path / "nginx", port), running(publisher):
        threading.Thread(target=press_after, args=(interrupt, tmp_path / "o.part.mp4")).start()
        code = stream.main([*given, "--side-by-side", "--steps", "1"], interrupt)
    assert code == stream.INTERRUPTED
    seen, heard = flashes_and_claps(out)
    # A flash may have been dropped, a clap never is.
    pairs = [(s, h) for s in seen for h in heard if abs(s - h) < 0.3]
    assert len(pairs) >= 2
    assert max(abs(s - h) for s, h in pairs) <= 0.04


# A crash

WRITES = """
import sys
from pathlib import Path
from rt import media
scene = media.moving_scene(64, 96, 16, 1000)
sink = media.open_sink(Path(sys.argv[1]), scene, 64, 96)
for frame in scene:
    sink.write(frame)
    print(frame.index, flush=True)
"""


@pytest.mark.parametrize("ending", [".mp4", ".mov", ".mkv"])
def test_a_killed_process_leaves_a_film_that_plays(tmp_path: Path, ending: str) -> None:
    """kill -9: all is there but what encoder and container hold back, at most 6 frames; and the
    next run does not write over it.
    """
    target = tmp_path / f"o{ending}"
    command = [sys.executable, "-c", WRITES, str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        written = next(int(line) for line in process.stdout if int(line) >= 40) + 1
        process.send_signal(signal.SIGKILL)
        written = max([written, *(int(line) + 1 for line in process.stdout)])
    (left,) = tmp_path.iterdir()
    assert left.name == f"o.part{ending}"
    scene = media.moving_scene(64, 96, 16, 1)
    sink = media.open_sink(target, scene, 64, 96)
    kept = tmp_path / f"o.1{ending}"
    assert any(kept.name in remark for remark in sink.remarks)
    for frame in scene:
        sink.write(frame)
    sink.close()
    with av.open(str(kept)) as file:
        times = [float(f.time) for f in file.decode(video=0)]
    assert written - 6 <= len(times) <= written
    assert np.allclose(times, np.arange(len(times)) / 16, atol=2e-3)
    assert {p.name for p in tmp_path.iterdir()} == {target.name, kept.name}


@needs_ffmpeg
def test_what_is_left_is_accepted_by_ffprobe(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITES, str(tmp_path / "o.mp4")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if int(line) >= 20)
        process.kill()
    assert int(probed(tmp_path / "o.part.mp4")["video"]["nb_read_frames"]) >= 15


# Pictures and pipes


def command_line(engine: Path, *more: str) -> list[str]:
    common = ["--prompt", "x", "--engines", str(engine), "--steps", "1", "--seed", "3"]
    return [sys.executable, "-m", "rt.stream", *common, *more]


def piped(command: Sequence[str], data: bytes = b"") -> tuple[bytes, str]:
    """Standard output of a program and what it said; it must end well."""
    done = subprocess.run(command, input=data, capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout, done.stderr.decode()


def test_pictures_in_and_out_and_raw_pipes_agree(tiny_engine: Path, tmp_path: Path) -> None:
    """The same nine pictures as PNG files and as raw bytes give the same pictures, as PNG files and
    as raw bytes; OpenCV reads and writes the files.
    """
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (9, SIZE, SIZE, 3), np.uint8)
    for index, picture in enumerate(pictures):
        assert cv2.imwrite(str(tmp_path / "in" / f"p{7 + index}.png"), picture[:, :, ::-1])
    places = ["--input", str(tmp_path / "in" / "p%d.png"), "--input-fps", "16"]
    to_files = ["--output", str(tmp_path / "out" / "q%04d.png")]
    piped(command_line(tiny_engine, *places, *to_files))
    found = [cv2.imread(str(p))[:, :, ::-1] for p in sorted((tmp_path / "out").glob("q*.png"))]
    assert len(found) == 9
    raw = ["--input", "raw:", "--input-size", f"{SIZE}x{SIZE}", "--input-fps", "16"]
    data, told = piped(command_line(tiny_engine, *raw, "--output", "raw:"), pictures.tobytes())
    assert np.array_equal(np.frombuffer(data, np.uint8).reshape(9, SIZE, SIZE, 3), found)
    assert "frames in / out / dropped" in told, "the table goes where no picture goes"
    with pytest.raises(SinkError, match="such pictures are there already"):
        media.open_sink(str(tmp_path / "out" / "q%04d.png"), media.moving_scene(8, 8), 8, 8)
    (tmp_path / "in" / "p9.png").write_bytes(b"no picture")
    with pytest.raises(SourceError, match=r"p9\.png"):
        list(media.open_source(str(tmp_path / "in" / "p*.png")))


@needs_ffmpeg
def test_y4m_from_and_to_ffmpeg(tiny_engine: Path, tmp_path: Path) -> None:
    """ffmpeg | rt.stream | ffprobe, as in a shell."""
    make = ffmpeg("-f", "lavfi", "-i", "testsrc2=size=96x80:rate=16", "-frames:v", "14")
    data, _ = piped([*make, "-pix_fmt", "yuv420p", "-f", "yuv4mpegpipe", "-"])
    out, told = piped(command_line(tiny_engine, "--input", "-", "--output", "-"), data)
    assert out.startswith(b"YUV4MPEG2 ")
    (tmp_path / "o.y4m").write_bytes(out)
    video = probed(tmp_path / "o.y4m")["video"]
    assert (video["nb_read_frames"], video["r_frame_rate"]) == ("14", "16/1")
    assert (video["width"], video["height"]) == (SIZE, SIZE)
    assert "14 / 14 / 0" in told


def test_a_pipe_that_breaks_is_told(tiny_engine: Path) -> None:
    """The reader leaves: one line, no traceback."""
    read, write = os.pipe()
    os.close(read)
    command = command_line(tiny_engine, "--scene", "--output", "raw:")
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False, timeout=120)
    os.close(write)
    assert done.returncode == 1
    last = done.stderr.decode().splitlines()[-1]
    assert last.startswith("error: standard input or output: cannot be written")
    assert "Traceback" not in done.stderr.decode()
