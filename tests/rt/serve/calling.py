"""A WebRTC client whose stack runs in this process: pictures out, restyled ones back."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
from aioice import ice
from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCPeerConnection,
    RTCSessionDescription,
)
from av import VideoFrame
from numpy.typing import NDArray
from served import Served

Rgb = NDArray[np.uint8]


def only_loopback() -> None:
    """A machine may have no other network."""
    ice.get_host_addresses = lambda use_ipv4, use_ipv6: ["127.0.0.1"] * (use_ipv4 or use_ipv6)


class Source(MediaStreamTrack):
    """`draw(n)` as often as `fps` says."""

    kind = "video"

    def __init__(self, draw: Callable[[int], Rgb], fps: float) -> None:
        super().__init__()
        self._draw, self._fps, self._sent = draw, fps, 0
        self._start_s = time.monotonic()

    async def recv(self) -> VideoFrame:
        pts_s = self._sent / self._fps
        await asyncio.sleep(max(0.0, self._start_s + pts_s - time.monotonic()))
        picture = VideoFrame.from_ndarray(self._draw(self._sent), format="rgb24")
        picture.pts, picture.time_base = round(pts_s * 90_000), Fraction(1, 90_000)
        self._sent += 1
        return picture


class Caller:
    """One call: `pictures` holds what came back, `said` what the data channel said."""

    def __init__(self, draw: Callable[[int], Rgb], fps: float = 16.0) -> None:
        self.connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.source = Source(draw, fps)
        self.connection.addTrack(self.source)
        self.channel = self.connection.createDataChannel("status")
        self.pictures: list[Rgb] = []
        self.times: list[float] = []
        self.said: list[dict[str, Any]] = []
        self.news = asyncio.Event()
        self.channel.on("message", self._hear)
        self.connection.on("track", self._watch)
        self._watching: asyncio.Task[None] | None = None

    def _hear(self, message: str) -> None:
        self.said.append(json.loads(message))
        self.news.set()

    def _watch(self, track: MediaStreamTrack) -> None:
        self._watching = asyncio.create_task(self._keep(track))

    async def _keep(self, track: MediaStreamTrack) -> None:
        while True:
            picture = await track.recv()
            assert isinstance(picture, VideoFrame)
            self.pictures.append(picture.to_ndarray(format="rgb24"))
            self.times.append((picture.pts or 0) / 90_000)
            self.news.set()

    async def offer(self) -> str:
        await self.connection.setLocalDescription(await self.connection.createOffer())
        return str(self.connection.localDescription.sdp)

    async def call(self, served: Served, number: str) -> None:
        path = f"/api/sessions/{number}/offer"
        answer = await asyncio.to_thread(served.ask, "POST", path, {"sdp": await self.offer()})
        assert answer.status == 200, answer.body
        content = answer.json()
        await self.connection.setRemoteDescription(
            RTCSessionDescription(content["sdp"], content["type"])
        )

    async def until(self, true: Callable[[], bool], seconds: float = 60.0) -> None:
        async with asyncio.timeout(seconds):
            while not true():
                self.news.clear()
                await self.news.wait()

    async def more(self, count: int) -> list[Rgb]:
        """The next `count` pictures."""
        first = len(self.pictures)
        await self.until(lambda: len(self.pictures) >= first + count)
        return self.pictures[first : first + count]

    async def close(self) -> None:
        await self.connection.close()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
