"""Real programs on the other side of a wire: Debian's ffmpeg, nginx with its RTMP module, and
GStreamer's RTSP server. `make network` installs them; tests skip where they are not.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

RTMP_MODULE = Path("/usr/lib/nginx/modules/ngx_rtmp_module.so")
GSTREAMER = Path("/usr/lib/x86_64-linux-gnu/girepository-1.0/GstRtspServer-1.0.typelib")

needs_ffmpeg = pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg is not installed")
needs_nginx = pytest.mark.skipif(
    not (shutil.which("nginx") and RTMP_MODULE.exists() and shutil.which("ffmpeg")),
    reason="nginx with its RTMP module, or ffmpeg, is not installed",
)
needs_gstreamer = pytest.mark.skipif(
    not (GSTREAMER.exists() and Path("/usr/bin/python3").exists() and shutil.which("ffmpeg")),
    reason="GStreamer's RTSP server, or ffmpeg, is not installed",
)


def free_port() -> int:
    """A port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[Any] | None = None) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        assert process is None or process.poll() is None, "the server ended"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise AssertionError(f"nobody listens on {port}")


@contextlib.contextmanager
def running(command: list[str], **more: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is dead afterwards."""
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, **more}
    with subprocess.Popen(command, **quiet) as process:
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def rtmp_server(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """nginx; streams are rtmp://127.0.0.1:PORT/live/NAME."""
    folder.mkdir(exist_ok=True)
    config = folder / "nginx.conf"
    config.write_text(
        f"load_module {RTMP_MODULE};\ndaemon off; master_process off; pid {folder}/pid;\n"
        f"error_log {folder}/error.log;\nevents {{}}\n"
        f"rtmp {{ server {{ listen 127.0.0.1:{port}; application live {{ live on; }} }} }}\n"
    )
    log = f"error_log {folder}/error.log;"
    with running(["nginx", "-c", str(config), "-p", str(folder), "-g", log]) as process:
        wait_for_port(port, process)
        yield process


RTSP = """
import sys
import gi
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
server, factory = GstRtspServer.RTSPServer(), GstRtspServer.RTSPMediaFactory()
server.set_address("127.0.0.1")
server.set_service(sys.argv[1])
factory.set_launch(
    f"( filesrc location={sys.argv[2]} ! qtdemux name=d "
    "d.video_0 ! queue ! h264parse ! rtph264pay name=pay0 pt=96 config-interval=1 "
    "d.audio_0 ! queue ! aacparse ! rtpmp4gpay name=pay1 pt=97 )"
)
server.get_mount_points().add_factory("/cam", factory)
server.attach(None)
GLib.MainLoop().run()
"""


@contextlib.contextmanager
def rtsp_server(film: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """GStreamer's RTSP server plays `film` (H.264, AAC) at rtsp://127.0.0.1:PORT/cam."""
    with running(["/usr/bin/python3", "-c", RTSP, str(port), str(film)]) as process:
        wait_for_port(port, process)
        yield process


def ffmpeg(*arguments: str) -> list[str]:
    return ["ffmpeg", "-nostdin", "-loglevel", "error", "-y", *arguments]


def probed(path: Path | str, *more: str) -> dict[str, Any]:
    """What ffprobe says of a film that it reads to its end; it must have no complaint."""
    command = ["ffprobe", "-v", "error", "-of", "json", "-count_frames", *more]
    show = [
        "-show_entries",
        "stream=codec_type,codec_name,width,height,nb_read_frames,r_frame_rate",
    ]
    done = subprocess.run(
        [*command, *show, str(path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    streams = json.loads(done.stdout)["streams"]
    return {stream["codec_type"]: stream for stream in streams}
