"""Glass to glass on loopback: a picture that carries its number, sent to a server and read from
the restyled picture, over WebRTC and over a WebSocket. Both glasses are this program's: neither a
camera nor a screen is in it.

    python -m bench.glass
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import msgpack
import numpy as np
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from av import VideoFrame
from numpy.typing import NDArray
from PIL import Image
from websockets.asyncio.client import connect

from bench.table import ROOT, Row, above, parser, publish
from rt.serve import rtc
from rt.serve.limits import Media

PAGE, BEGIN, END = (
    ROOT / "docs" / "live.md",
    "<!-- begin: python -m bench.glass -->\n",
    "<!-- end -->",
)
SIZE, BITS, FPS = 256, 8, 12.0
BLOCK = SIZE // BITS
WARM_S = 4.0
"""What is left out at the start: windows fill, rates settle."""

Rgb = NDArray[np.uint8]


def pattern(number: int) -> Rgb:
    """uint8 [256, 256, 3]: `number` modulo 256 as blocks of black and white, and their opposites
    below; from one number to the next a single block changes.
    """
    number %= 1 << BITS
    code = number ^ (number >> 1)
    bits = np.array([code >> i & 1 for i in range(BITS)], bool)
    rows = np.where(np.stack([bits, ~bits]), 255, 0).astype(np.uint8)
    tall = rows.repeat(SIZE // 2, 0).repeat(BLOCK, 1)
    return np.repeat(tall[..., None], 3, -1)


def number_of(rgb: Rgb) -> int | None:
    """What `pattern` was given, modulo 256; None where a block is not the opposite of its other."""
    grey = rgb.astype(float).mean(-1).reshape(2, SIZE // 2, BITS, BLOCK)[:, 32:-32, :, 8:-8]
    above, below = grey.mean((1, 3))
    if (np.abs(above - below) < 60).any():
        return None
    code = sum(1 << i for i in range(BITS) if above[i] > below[i])
    number = 0
    while code:
        number, code = number ^ code, code >> 1
    return number


@dataclass(slots=True)
class Watch:
    """When numbers were sent, and how long after they were seen."""

    sent_s: dict[int, float] = field(default_factory=dict)
    seen_ms: list[float] = field(default_factory=list)
    engine_ms: float = 0.0
    """Mean of what the server calls latency: from a frame's arrival to its emission."""
    unread: int = 0
    start_s: float = field(default_factory=time.perf_counter)

    def send(self, number: int) -> None:
        self.sent_s[number % (1 << BITS)] = time.perf_counter()

    def see(self, rgb: Rgb) -> None:
        now_s = time.perf_counter()
        if now_s - self.start_s < WARM_S:
            return
        number = number_of(rgb)
        if number is None or number not in self.sent_s:
            self.unread += 1
        else:
            self.seen_ms.append(1e3 * (now_s - self.sent_s[number]))

    async def ask_engine(self, url: str, seconds: float) -> None:
        """`engine_ms`, while frames are seen."""
        await asyncio.sleep(WARM_S)
        before = await asyncio.to_thread(latency_sum_and_count, url)
        await asyncio.sleep(seconds - 0.5)
        after = await asyncio.to_thread(latency_sum_and_count, url)
        self.engine_ms = 1e3 * (after[0] - before[0]) / (after[1] - before[1])


class Source(MediaStreamTrack):
    """Patterns, at their times."""

    kind = "video"

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch, self._number, self._start_s = watch, 0, time.perf_counter()

    async def recv(self) -> VideoFrame:
        pts_s = self._number / FPS
        await asyncio.sleep(max(0.0, self._start_s + pts_s - time.perf_counter()))
        picture = VideoFrame.from_ndarray(pattern(self._number), format="rgb24")
        picture.pts, picture.time_base = round(pts_s * 90_000), Fraction(1, 90_000)
        self._watch.send(self._number)
        self._number += 1
        return picture


def ask(url: str, content: dict[str, Any]) -> dict[str, Any]:
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(url, json.dumps(content).encode(), headers)
    with urllib.request.urlopen(request, timeout=20) as answer:
        got: dict[str, Any] = json.load(answer)
        return got


def latency_sum_and_count(url: str) -> tuple[float, float]:
    """Seconds and frames of the server's histogram of latency."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    total, count = (
        float(re.findall(rf"(?m)^rt_latency_seconds_{name} (\S+)", text)[0])
        for name in ("sum", "count")
    )
    return total, count


async def over_webrtc(url: str, number: str, seconds: float) -> Watch:
    watch = Watch()
    peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    peer.addTrack(Source(watch))
    peer.createDataChannel("status")
    await peer.setLocalDescription()
    offer = {"sdp": peer.localDescription.sdp}
    answer = await asyncio.to_thread(ask, f"{url}/api/sessions/{number}/offer", offer)
    await peer.setRemoteDescription(RTCSessionDescription(answer["sdp"], answer["type"]))
    asking = asyncio.create_task(watch.ask_engine(url, seconds))
    track = peer.getReceivers()[0].track
    end_s = time.perf_counter() + WARM_S + seconds
    while time.perf_counter() < end_s:
        picture = await track.recv()
        assert isinstance(picture, VideoFrame)
        watch.see(picture.to_ndarray(format="rgb24").astype(np.uint8))
    await asking
    await peer.close()
    return watch


async def over_websocket(url: str, number: str, seconds: float) -> Watch:
    watch = Watch()
    address = f"{url.replace('http', 'ws')}/api/sessions/{number}/stream"
    async with connect(address, proxy=None) as socket:

        async def send() -> None:
            start_s, n = time.perf_counter(), 0
            while True:
                await asyncio.sleep(max(0.0, start_s + n / FPS - time.perf_counter()))
                rgb, out = pattern(n), io.BytesIO()
                watch.send(n)
                Image.fromarray(rgb).save(out, "JPEG", quality=85)
                content = {"pts_s": n / FPS, "format": "jpeg", "data": out.getvalue()}
                await socket.send(msgpack.packb(content))
                n += 1

        sending = asyncio.create_task(send())
        asking = asyncio.create_task(watch.ask_engine(url, seconds))
        end_s = time.perf_counter() + WARM_S + seconds
        while time.perf_counter() < end_s:
            message = await socket.recv()
            if isinstance(message, str):
                continue  # its status
            frame = msgpack.unpackb(message)
            with Image.open(io.BytesIO(frame["data"])) as image:
                watch.see(np.asarray(image.convert("RGB")))
            await socket.send(msgpack.packb({"ack": frame["index"]}))
        await asking
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    return watch


def rows(name: str, watch: Watch) -> list[Row]:
    """p50, p99 and mean of one way, and what is left of the mean without the engine's."""
    seen, engine = np.array(watch.seen_ms), watch.engine_ms
    p50, p99, mean = *(float(np.percentile(seen, q)) for q in (50, 99)), float(seen.mean())
    note = f"{len(seen)} frames read, {watch.unread} not"
    return [
        Row(f"{name}: p50", p50, "ms", len(seen), note=note),
        Row(f"{name}: p99", p99, "ms", len(seen)),
        Row(f"{name}: mean", mean, "ms", len(seen)),
        Row(f"{name}: mean in the engine", engine, "ms", len(seen)),
        Row(f"{name}: mean without the engine", mean - engine, "ms", len(seen)),
    ]


def written(measured: dict[str, list[Row]]) -> str:
    """The table of the page."""
    lines = ["| ms | p50 | p99 | mean | engine | without it |", "|---|---|---|---|---|---|"]
    for name, of in measured.items():
        lines.append(f"| {name} | {' | '.join(f'{row.value:.0f}' for row in of)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    options = _parser().parse_args()
    command = [sys.executable, "-m", "rt.serve", "--port", "0", "--engines", "engines/tiny"]
    path = os.pathsep.join([str(ROOT / "python"), str(ROOT)])
    server = subprocess.Popen(
        [*command, "--log", "off"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    ways: dict[str, Callable[[str, str, float], Any]] = {
        "WebRTC": over_webrtc,
        "WebSocket": over_websocket,
    }
    measured: dict[str, list[Row]] = {}
    rtc.settle(Media("127.0.0.1"))  # this side as that side
    try:
        assert server.stdout.readline() == "loading engines/tiny\n"
        told, _, url = server.stdout.readline().rstrip("/\n").partition(" ")
        assert told == "ready:"
        url = url.replace("localhost", "127.0.0.1")
        for name, way in ways.items():
            asked = {"prompt": "realistic", "steps": 1, "slo_ms": 5000.0, "fps": FPS}
            number = ask(f"{url}/api/sessions", asked)["id"]
            measured[name] = rows(name, asyncio.run(way(url, number, options.seconds)))
            time.sleep(2)  # the only seat is given back
    finally:
        server.terminate()
        server.wait()
    publish("glass to glass", [row for of in measured.values() for row in of], options.json)
    if options.write:
        text = re.sub(f"(?s)({BEGIN}).*?({END})", rf"\1{written(measured)}\2", PAGE.read_text())
        PAGE.write_text(text)


def _parser() -> argparse.ArgumentParser:
    p = parser(__doc__, "glass")
    p.add_argument("--seconds", type=above(0), default=20.0, help="of each way")
    p.add_argument("--write", action="store_true", help="the table into docs/live.md")
    return p


if __name__ == "__main__":
    main()
