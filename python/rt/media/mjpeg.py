"""MJPEG over HTTP: a small server that shows the newest frame to whoever asks.

A picture is encoded once, and only while somebody watches; a slow viewer sees fewer pictures and
delays nobody. It answers GET alone and reads nothing of a request but that.
"""

from __future__ import annotations

import threading
from fractions import Fraction
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import numpy as np
from av.codec.context import CodecContext
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace

from ..errors import SinkError
from ..frame import Frame
from .places import Place
from .sinks import Sink
from .sources import Picture
from .words import said

VIEWERS = 16
"""At once; more are refused with 503."""

STALLED_S = 10.0
"""A viewer that takes nothing for so long is let go."""

BOUNDARY = "frame"


class Newest:
    """The newest JPEG, and who waits for it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._jpeg = b""
        self._number = 0
        self._over = False
        self._viewers = 0

    @property
    def watched(self) -> bool:
        """Whether anybody would see a picture."""
        return self._viewers > 0

    def enter(self) -> bool:
        """One viewer more; False where there are too many."""
        with self._changed:
            if self._viewers >= VIEWERS or self._over:
                return False
            self._viewers += 1
            return True

    def leave(self) -> None:
        """One viewer less."""
        with self._changed:
            self._viewers -= 1

    def show(self, jpeg: bytes) -> None:
        """The next picture."""
        with self._changed:
            self._jpeg, self._number = jpeg, self._number + 1
            self._changed.notify_all()

    def end(self) -> None:
        """There is no further one."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def after(self, number: int) -> tuple[int, bytes] | None:
        """Number and picture once there is one newer than `number`; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or self._number > number)
            return None if self._over else (self._number, self._jpeg)


class MjpegSink(Sink):
    """Serves frames at http://HOST:PORT/. Port 0 is any free one: see `address`."""

    live = True

    def __init__(self, place: Place, height: int, width: int) -> None:
        super().__init__(str(place), height, width)
        self._newest = newest = Newest()
        parts = urlsplit(place.url)

        class Viewer(BaseHTTPRequestHandler):
            timeout = STALLED_S

            def do_GET(self) -> None:
                _serve(self, newest)

            def log_message(self, *_: object) -> None:
                """Who watches is nobody's business."""

        try:
            self._server = _Server((parts.hostname or "127.0.0.1", parts.port or 80), Viewer)
        except (OSError, OverflowError, ValueError) as error:
            raise SinkError(
                f"{place}: cannot be served ({said(error)}); expected a free port of an address of "
                "this machine: http://127.0.0.1:8090/"
            ) from error
        host, port = self._server.server_address[:2]
        self.address = f"http://{host!s}:{port}/"
        if not str(host).startswith("127."):
            self.remarks.append(f"whoever reaches {self.address} could watch")
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def write(self, frame: Frame) -> None:
        self.check(frame)
        if self._newest.watched:
            self._newest.show(jpeg(frame.rgb))

    def close(self) -> None:
        """Viewers are told that it is over."""
        self._newest.end()
        self._server.shutdown()
        self._server.server_close()

    def abort(self) -> None:
        self.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        """A viewer that left in the middle is no error."""


def _serve(viewer: BaseHTTPRequestHandler, newest: Newest) -> None:
    if not newest.enter():
        viewer.send_error(HTTPStatus.SERVICE_UNAVAILABLE, "too many viewers")
        return
    try:
        viewer.send_response(HTTPStatus.OK)
        viewer.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={BOUNDARY}")
        viewer.send_header("Cache-Control", "no-store")
        viewer.end_headers()
        shown = 0
        while (news := newest.after(shown)) is not None:
            shown, picture = news
            head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}"
            viewer.wfile.write(head.encode() + b"\r\n\r\n" + picture + b"\r\n")
        viewer.wfile.write(f"--{BOUNDARY}--\r\n".encode())
    finally:
        newest.leave()


def jpeg(rgb: Picture) -> bytes:
    """uint8 [H, W, 3] as a JPEG file."""
    encoder = CodecContext.create("mjpeg", "w")
    assert isinstance(encoder, VideoCodecContext)
    encoder.height, encoder.width = rgb.shape[:2]
    encoder.pix_fmt, encoder.time_base = "yuvj420p", Fraction(1, 25)
    encoder.thread_count = 1
    encoder.options = {"qmin": "3", "qmax": "3"}
    picture = VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24").reformat(
        format="yuvj420p",
        dst_colorspace=Colorspace.ITU601,
        dst_color_range=ColorRange.JPEG,
        threads=1,
    )
    return b"".join(bytes(p) for p in [*encoder.encode(picture), *encoder.encode(None)])
