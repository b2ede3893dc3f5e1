"""A real server in a process of its own, and clients whose protocol stack is not ours."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

ROOT = Path(__file__).parents[3]
CALM = {"prompt": "pencil sketch", "slo_ms": 60_000.0}
"""A session whose frames are in time on any machine."""
CUT = 1006
"""The code of a connection that ended without one."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Served:
    """A running server."""

    process: subprocess.Popen[str]
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Answer:
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers or {}, method=method)
        if data is not None:
            request.add_header("content-type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return Answer(answer.status, answer.read())
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.read())

    def opened(self, **options: Any) -> str:
        answer = self.ask("POST", "/api/sessions", {**CALM, **options})
        assert answer.status == 201, answer.body
        number: str = answer.json()["id"]
        return number

    def socket(self, number: str, token: str = "", **options: Any) -> ClientConnection:
        address = f"ws://127.0.0.1:{self.port}/api/sessions/{number}/stream?token={token}"
        return connect(address, proxy=None, **options)

    def all_free(self) -> None:
        """Wait until no session is open."""
        wait_until(lambda: "\nrt_sessions 0.0" in self.ask("GET", "/metrics").body.decode())


def wait_until(true: Any, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@contextlib.contextmanager
def serving(*options: str, port: int = 0) -> Iterator[Served]:
    """`python -m rt.serve` with engines/tiny: on any free port, once it is ready; on a `port` that
    is given, while it loads.
    """
    path = os.pathsep.join([str(ROOT / "python"), str(ROOT)])
    command = [sys.executable, "-m", "rt.serve", "--port", str(port), "--engines", "engines/tiny"]
    process = subprocess.Popen(
        [*command, *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line == "loading engines/tiny\n", process.stderr.read() if process.stderr else ""
        if not port:
            line = process.stdout.readline()
            assert line.startswith("ready: http"), process.stderr.read() if process.stderr else ""
            port = int(line.rsplit(":", 1)[1].split("/")[0])
        served = Served(process, port)
        yield served
    finally:
        process.kill()
        process.communicate()


def ended(served: Served, number: int = signal.SIGTERM) -> tuple[int, str]:
    """Exit code and standard error after a signal."""
    served.process.send_signal(number)
    _, errors = served.process.communicate(timeout=30)
    return served.process.returncode, errors


def jpeg(rgb: NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, "JPEG", quality=90)
    return out.getvalue()


def picture(n: int, size: int = 256) -> NDArray[np.uint8]:
    """A disc that moves over a slope."""
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    rgb = np.stack([x, y, 1 - x], -1)
    rgb[(x - 0.3 - 0.01 * (n % 40)) ** 2 + (y - 0.5) ** 2 < 0.03] = (0.9, 0.2, 0.1)
    return (rgb * 255).astype(np.uint8)


def frame(n: int, pts_s: float | None = None) -> bytes:
    pts = n / 16 if pts_s is None else pts_s
    packed: bytes = msgpack.packb({"pts_s": pts, "format": "jpeg", "data": jpeg(picture(n))})
    return packed


@dataclass(slots=True)
class Talk:
    """Sends at a rate, acknowledges, and remembers what came."""

    socket: ClientConnection
    sent: int = 0

    def until(self, frames: int, acknowledge: bool = True) -> list[dict[str, Any]]:
        """Send pictures until `frames` restyled ones are there."""
        got: list[dict[str, Any]] = []
        end = time.monotonic() + 60
        while len(got) < frames and time.monotonic() < end:
            self.socket.send(frame(self.sent))
            self.sent += 1
            with contextlib.suppress(TimeoutError):
                message = self.socket.recv(timeout=0.04)
                if isinstance(message, bytes):
                    got.append(msgpack.unpackb(message))
                    if acknowledge:
                        self.socket.send(msgpack.packb({"ack": got[-1]["index"]}))
        assert len(got) == frames, f"{len(got)} of {frames} frames came"
        return got


def unpacked(message: dict[str, Any]) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(message["data"])) as image:
        return np.asarray(image)


def closed(talk: Talk) -> tuple[int, str]:
    """Code and reason with which the server ended a stream."""
    try:
        while True:
            talk.socket.recv(timeout=20)
    except ConnectionClosed as end:
        received = end.rcvd
    return (CUT, "") if received is None else (received.code, received.reason)
