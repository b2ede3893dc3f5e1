"""Live sources and sinks against real peers: Debian's ffmpeg, nginx's RTMP module, GStreamer's RTSP
server. Peers die and come back; ffprobe reads what arrives.
"""

from __future__ import annotations

import dataclasses
import http.server
import itertools
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from claps import clap, flashes_and_claps
from network_peers import (
    ffmpeg,
    free_port,
    needs_ffmpeg,
    needs_gstreamer,
    needs_nginx,
    probed,
    rtmp_server,
    rtsp_server,
    running,
    wait_for_port,
)

from rt import media
from rt.errors import SinkError, SourceError
from rt.frame import Frame

SIZE = (96, 128)
SHORT = media.Backoff(first_s=0.1, most_s=0.5, patience_s=20)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 s: a picture for every second of 16 frames, and a tone."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    pictures = "testsrc2=size=128x96:rate=16"
    given = ["-f", "lavfi", "-i", pictures, "-f", "lavfi", "-i", "sine=440", "-t", "20"]
    codec = ["-c:v", "libx264", "-preset", "ultrafast", "-g", "8", "-bf", "0"]
    rest = ["-pix_fmt", "yuv420p", "-c:a", "aac", "-movflags", "faststart", str(path)]
    subprocess.run(ffmpeg(*given, *codec, *rest), check=True)
    return path


def rising(frames: list[Frame]) -> bool:
    return all(a.pts_s < b.pts_s for a, b in itertools.pairwise(frames))


def taken(source: media.VideoSource, count: int) -> list[Frame]:
    return list(itertools.islice(source, count))


@needs_nginx
def test_an_rtmp_source_that_dies_is_picked_up_again(film: Path, tmp_path: Path) -> None:
    """The server dies, and its publisher with it."""
    port = free_port()
    url = f"rtmp://127.0.0.1:{port}/live/a"
    publisher = ffmpeg("-re", "-i", str(film), "-c", "copy", "-f", "flv", url)
    nginx = tmp_path / "nginx"
    with (
        rtmp_server(nginx, port) as server,
        running(publisher),
        media.open_source(url, backoff=SHORT) as source,
    ):
        assert source.live
        assert (source.height, source.width) == SIZE
        assert source.sound is not None
        passage = source.sound.begin([])
        frames = iter(source)
        seen = taken(frames, 20)
        server.kill()
        server.wait()
        with rtmp_server(nginx, port), running(publisher):
            seen += taken_when_back(source, frames, 20)
            sounds = [float(p.pts * p.time_base) for _, p in passage.until(None) if p.pts]
    assert rising(seen)
    assert [f.index for f in seen] == list(range(len(seen)))
    # The time that passed lies between the last old and the first new picture.
    old, new = seen[-22], seen[-20]
    passed_s = (new.captured_ns - old.captured_ns) * 1e-9
    assert passed_s > 0.2
    assert new.pts_s - old.pts_s == pytest.approx(passed_s, abs=0.2)
    (remark,) = source.remarks
    assert "was gone for" in remark
    assert sounds == sorted(sounds)
    assert max(sounds) > seen[-20].pts_s, "the sound went on as well"


@needs_gstreamer
def test_an_rtsp_source_that_dies_is_picked_up_again(film: Path) -> None:
    port = free_port()
    url = f"rtsp://user:secret@127.0.0.1:{port}/cam"
    with rtsp_server(film, port) as server:
        source = media.open_source(url, backoff=SHORT)
        frames = iter(source)
        before = taken(frames, 20)
        server.kill()
        server.wait()
    with rtsp_server(film, port):
        after = taken_when_back(source, frames, 20)
    source.close()
    assert rising(before + after)
    assert any("was gone for" in remark and "secret" not in remark for remark in source.remarks)
    assert source.sound is not None
    assert all(f.rgb.shape == (*SIZE, 3) for f in before + after)


@needs_gstreamer
def test_a_source_that_stays_away_is_given_up(film: Path) -> None:
    port = free_port()
    with rtsp_server(film, port):
        policy = dataclasses.replace(SHORT, patience_s=0.5)
        source = media.open_source(f"rtsp://user:secret@127.0.0.1:{port}/cam", backoff=policy)
        frames = iter(source)
        taken(frames, 3)
    with pytest.raises(SourceError) as caught:
        taken(frames, 10_000)
    words = str(caught.value)
    assert "\n" not in words
    assert "secret" not in words
    assert "--patience-s" in words
    source.close()


@pytest.mark.parametrize("scheme", ["rtmp", "rtsp", "http"])
def test_nobody_there_is_one_line(scheme: str) -> None:
    url = f"{scheme}://name:secret@127.0.0.1:{free_port()}/x"
    with pytest.raises(SourceError, match="Connection refused") as caught:
        media.open_source(url)
    assert "secret" not in str(caught.value)
    if scheme != "http":
        with pytest.raises(SinkError, match="Connection refused") as refused:
            media.open_sink(url, media.moving_scene(*SIZE), *SIZE)
        assert "secret" not in str(refused.value)


def taken_when_back(source: media.VideoSource, frames: Iterator[Frame], count: int) -> list[Frame]:
    """What the first connection still held, and `count` frames of the second."""
    found = []
    while not source.remarks:
        found.append(next(frames))
    return found + taken(frames, count)


# Sinks


def played(source: media.VideoSource, sink: media.Sink, stop: int | None = None) -> None:
    """As the command line does with a film and a place that is watched."""
    turn = media.Turn()
    for frame in itertools.islice(source, stop):
        time.sleep(turn.pause_s(frame.pts_s, time.monotonic()))
        sink.write(frame)
    sink.close()


@needs_nginx
def test_an_rtmp_push_survives_its_server(film: Path, tmp_path: Path) -> None:
    """Recorded before and after the server dies: films that ffprobe reads to the end."""
    port = free_port()
    url = f"rtmp://127.0.0.1:{port}/live/b"

    def record(name: str) -> list[str]:
        return ffmpeg("-rw_timeout", "15000000", "-i", url, "-frames:v", "10", "-c", "copy", name)

    first, second = str(tmp_path / "1.mp4"), str(tmp_path / "2.mp4")
    source = media.open_source(film)
    frames, turn = iter(source), media.Turn()

    def push_while(process: subprocess.Popen[bytes]) -> None:
        while process.poll() is None:
            frame = next(frames)
            time.sleep(turn.pause_s(frame.pts_s, time.monotonic()))
            sink.write(frame)

    with rtmp_server(tmp_path / "nginx", port) as server:
        sink = media.open_sink(url, source, *SIZE, backoff=SHORT)
        with running(record(first)) as recorder:
            push_while(recorder)
            assert recorder.returncode == 0
        server.kill()
        server.wait()
        for frame in itertools.islice(frames, 8):
            sink.write(frame)
        with rtmp_server(tmp_path / "nginx", port), running(record(second)) as recorder:
            push_while(recorder)
            assert recorder.returncode == 0
            sink.close()
    for name in (first, second):
        streams = probed(name)
        assert int(streams["video"]["nb_read_frames"]) >= 8
        assert streams["audio"]["codec_name"] == "aac"
    assert any("was away for" in remark for remark in sink.remarks)
    assert any("frames were lost" in remark for remark in sink.remarks)


@needs_ffmpeg
def test_an_rtsp_push(film: Path, tmp_path: Path) -> None:
    port = free_port()
    url, target = f"rtsp://127.0.0.1:{port}/x", tmp_path / "got.mp4"
    listening = ffmpeg("-rtsp_flags", "listen", "-i", url, "-c", "copy", str(target))
    with media.open_source(film) as source, running(listening) as recorder:
        for _ in range(100):
            try:
                sink = media.open_sink(url, source, *SIZE)
                break
            except SinkError:
                time.sleep(0.1)
        played(source, sink, 24)
        assert recorder.wait(20) == 0
    streams = probed(target)
    assert int(streams["video"]["nb_read_frames"]) == 24
    assert streams["audio"]["codec_name"] == "aac"


@needs_nginx
def test_a_push_that_nobody_takes_any_more_ends(film: Path, tmp_path: Path) -> None:
    port = free_port()
    policy = dataclasses.replace(SHORT, patience_s=0.5)
    with rtmp_server(tmp_path / "nginx", port):
        source = media.open_source(film)
        url = f"rtmp://127.0.0.1:{port}/live/c"
        sink = media.open_sink(url, source, *SIZE, backoff=policy)
    with pytest.raises(SinkError, match="cannot be reached after"):
        played(source, sink)
    sink.abort()


@needs_nginx
def test_what_is_pushed_is_read_in_sync(tmp_path: Path) -> None:
    """A film, a server, a film: claps stay on their flashes."""
    port, out = free_port(), tmp_path / "o.mp4"
    url = f"rtmp://127.0.0.1:{port}/live/d"

    def read() -> None:
        with media.open_source(url) as far:
            target = media.open_sink(out, far, far.height, far.width)
            for frame in far:
                target.write(frame)
                if frame.pts_s > 2.5:
                    break
            target.close()

    reader = threading.Thread(target=read)
    with (
        rtmp_server(tmp_path / "nginx", port),
        media.open_source(clap(tmp_path / "a.mp4", 4, "aac")) as source,
    ):
        sink = media.open_sink(url, source, source.height, source.width)
        reader.start()
        played(source, sink)
        reader.join(20)
    assert sink.remarks == []
    seen, heard = flashes_and_claps(out)
    pairs = [(s, h) for s in seen for h in heard if abs(s - h) < 0.3]
    assert len(pairs) >= 2
    assert max(abs(s - h) for s, h in pairs) <= 0.04


@needs_ffmpeg
@pytest.mark.parametrize("live", [False, True])
def test_hls_is_a_playlist_that_ffprobe_reads(film: Path, tmp_path: Path, live: bool) -> None:
    source = media.open_source(film)
    source.live = live
    sink = media.open_sink(str(tmp_path / "show.m3u8"), source, *SIZE)
    for count, frame in enumerate(source):
        sink.write(frame)
        if count == 80:
            assert "#EXTINF" in (tmp_path / "show.m3u8").read_text(), "it can be watched already"
    sink.close()
    playlist = (tmp_path / "show.m3u8").read_text()
    assert playlist.rstrip().endswith("#EXT-X-ENDLIST")
    segments = len(list(tmp_path.glob("show*.ts")))
    streams = probed(tmp_path / "show.m3u8")
    if live:
        assert playlist.count("#EXTINF") == 6
        assert segments <= 8, "old ones are removed"
    else:
        assert segments == playlist.count("#EXTINF") == 10
        assert int(streams["video"]["nb_read_frames"]) == 320
    assert streams["audio"]["codec_name"] == "aac"


@needs_ffmpeg
def test_mjpeg_over_http_shows_the_newest_frame(tmp_path: Path) -> None:
    """ffmpeg records it; a viewer that never reads delays nobody."""
    scene = media.moving_scene(*SIZE, seconds=60)
    sink = media.open_sink("http://127.0.0.1:0/", scene, *SIZE)
    address = sink.address  # type: ignore[attr-defined]
    target = tmp_path / "got.mkv"
    record = ffmpeg("-f", "mpjpeg", "-i", address, "-frames:v", "20", "-c", "copy", str(target))
    port = int(address.rstrip("/").rpartition(":")[2])
    wait_for_port(port)
    longest = 0.0
    with running(record) as recorder:
        for frame in scene:
            begin = time.perf_counter()
            sink.write(frame)
            longest = max(longest, time.perf_counter() - begin)
            time.sleep(0.02)
            if recorder.poll() is not None:
                break
        assert recorder.returncode == 0
    assert probed(target)["video"]["nb_read_frames"] == "20"
    sink.close()
    sink.abort()
    again = media.open_sink(address, scene, *SIZE)
    with pytest.raises(SinkError, match="cannot be served"):
        media.open_sink(address, scene, *SIZE)
    again.close()


# HTTP


@pytest.fixture
def web(film: Path) -> Iterator[str]:
    """The folder of the film, over HTTP."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *given: object) -> None:
            super().__init__(*given, directory=str(film.parent))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None: ...

        def handle(self) -> None:
            try:
                super().handle()
            except ConnectionError:
                return  # libav closes when it has seen enough

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@needs_ffmpeg
def test_a_film_over_http_is_the_film(film: Path, web: str) -> None:
    with media.open_source(f"{web}/film.mp4") as far, media.open_source(film) as near:
        assert not far.live, "a film on a server waits as one on a disk does"
        for a, b in itertools.zip_longest(far, near):
            assert a.pts_s == pytest.approx(b.pts_s, abs=1e-4)
            assert (a.rgb == b.rgb).all()
        assert far.ended
    with pytest.raises(SourceError, match="404"):
        media.open_source(f"{web}/nothing.mp4")
