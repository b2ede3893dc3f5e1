"""Frames over WebRTC: the session of a WebSocket, as VP8 video both ways, its status over a data
channel.

Newest wins on both ways: `Live` keeps one frame that waits, and `Restyled` one that is not yet
encoded. Nothing here has a clock of its own: the times of frames are the source's, and a frame is
sent when the session shows it.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction

import numpy as np
from aioice import ice
from aiortc import (
    InvalidAccessError,
    InvalidStateError,
    MediaStreamTrack,
    RTCConfiguration,
    RTCDataChannel,
    RTCPeerConnection,
    RTCRtpSender,
    RTCSessionDescription,
    RTCTransportStats,
)
from aiortc.codecs import vpx
from aiortc.exceptions import InternalError, OperationError
from aiortc.mediastreams import MediaStreamError
from av import VideoFrame
from numpy.typing import NDArray
from starlette.concurrency import run_in_threadpool

from ..errors import ConfigError, Error, SourceError
from ..frame import Frame
from .hub import Hub
from .limits import Media, MessageRate
from .live import Live
from .offer import UNREADABLE, checked
from .socket import STATUS_EVERY_S

TICKS_PER_S = 90_000
"""The clock of video in RTP."""
VANISHED_S = 5.0
"""A client that is connected says something about once a second, even if it has no picture."""
LAST_WORD_S = 0.1
"""How long the reason of an end has to leave before the connection closes."""


class Left(Exception):
    """The other side has gone."""


def settle(media: Media) -> None:
    """Where and how much to send: once per process, before the first offer.

    aiortc has no parameter for either, it reads them where they are defined. Its own rate begins
    at 0.5 Mbit/s, and its sockets listen on every address but loopback.
    """
    vpx.DEFAULT_BITRATE = vpx.MAX_BITRATE = media.bits_per_s
    vpx.MIN_BITRATE = media.bits_per_s // 4  # a slow network is told of by the receiver
    address = ipaddress.ip_address(media.host)
    if not address.is_unspecified:

        def addresses(use_ipv4: bool, use_ipv6: bool) -> list[str]:
            return [media.host] if (use_ipv4 if address.version == 4 else use_ipv6) else []

        ice.get_host_addresses = addresses
    logging.getLogger("aiortc").setLevel(logging.ERROR)  # a client's broken packets are no event


class Restyled(MediaStreamTrack):
    """The track that goes out, and the session's viewer: what is shown and not yet encoded is
    replaced by what is shown next.
    """

    kind = "video"

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.news = asyncio.Event()
        self.failure: Error | None = None
        self._home = loop
        self._shown = asyncio.Event()
        self._newest: Frame | None = None

    def show(self, frame: Frame, latency_ms: float, late: bool) -> None:  # noqa: ARG002
        def take() -> None:
            self._newest = frame
            self._shown.set()

        self._call(take)

    def fail(self, error: Error) -> None:
        def take() -> None:
            self.failure = error
            self.news.set()

        self._call(take)

    async def recv(self) -> VideoFrame:
        """The newest frame, once there is one that was not sent."""
        while self._newest is None:
            await self._shown.wait()
            self._shown.clear()
        frame, self._newest = self._newest, None
        picture = VideoFrame.from_ndarray(frame.rgb, format="rgb24")
        picture.pts, picture.time_base = round(frame.pts_s * TICKS_PER_S), Fraction(1, TICKS_PER_S)
        return picture

    def _call(self, change: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop has closed: nobody is left to see it
            self._home.call_soon_threadsafe(change)


class Calls:
    """The WebRTC connections of one server. Its methods run on the event loop."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._tasks: set[asyncio.Task[None]] = set()

    async def answer(self, live: Live, offer: str) -> str:
        """SDP that answers the SDP `offer`; the stream begins as soon as the client connects.
        Raises ConfigError for an offer that is none, or a session that has a stream.
        """
        wanted = checked(offer)
        restyled = Restyled(asyncio.get_running_loop())
        connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        try:
            await _agree(connection, restyled, wanted)
            answer = await connection.createAnswer()
            live.attach(restyled)
            await connection.setLocalDescription(answer)
        except Error:
            await connection.close()
            raise
        except (
            *UNREADABLE,
            InternalError,
            InvalidAccessError,
            InvalidStateError,
            OperationError,
        ) as error:  # what aiortc raises where it cannot go by a description
            await connection.close()
            raise ConfigError(
                f"sdp: cannot be answered ({type(error).__name__}); expected VP8 and a=rtcp-mux"
            ) from None
        call = Call(connection, self._hub, live, restyled)
        task = asyncio.create_task(call.serve())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return connection.localDescription.sdp

    async def close(self) -> None:
        """Wait for those whose sessions have ended."""
        await asyncio.gather(*self._tasks)


async def _agree(connection: RTCPeerConnection, restyled: Restyled, offer: str) -> None:
    """Take the offer with VP8 for the one codec: every browser has it, aiortc sets its rate."""
    connection.addTrack(restyled)
    codecs = RTCRtpSender.getCapabilities("video").codecs
    connection.getTransceivers()[0].setCodecPreferences(
        [codec for codec in codecs if codec.mimeType in ("video/VP8", "video/rtx")]
    )
    await connection.setRemoteDescription(RTCSessionDescription(offer, "offer"))


def _rgb(picture: VideoFrame) -> NDArray[np.uint8]:
    return picture.to_ndarray(format="rgb24").astype(np.uint8, copy=False)


class Call:
    """One connection, until either side ends; the session ends with it."""

    def __init__(
        self, connection: RTCPeerConnection, hub: Hub, live: Live, restyled: Restyled
    ) -> None:
        self._connection, self._hub, self._live = connection, hub, live
        self._restyled = restyled
        self._channel: RTCDataChannel | None = None
        self._meddled = False
        connection.on("datachannel", self._begin)
        connection.on("connectionstatechange", restyled.news.set)

    def _begin(self, channel: RTCDataChannel) -> None:
        self._channel = channel
        channel.on("message", self._meddle)
        self._restyled.news.set()

    def _meddle(self, _: str | bytes) -> None:
        self._meddled = True
        self._restyled.news.set()

    async def serve(self) -> None:
        reason = "client left"
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._receive())
                group.create_task(self._report())
        except* (Left, MediaStreamError):
            pass
        except* Error as errors:
            error = errors.exceptions[0]
            reason = "bad data" if isinstance(error, SourceError) else "failed"
            self._tell({"ended": str(error)})
            await asyncio.sleep(LAST_WORD_S)
        finally:
            await self._connection.close()
            await asyncio.shield(run_in_threadpool(self._hub.end, self._live, reason))

    async def _receive(self) -> None:
        limits = self._hub.limits
        rate = MessageRate(limits.messages_per_s, time.monotonic())
        last_pts_s = -1.0
        track = self._connection.getTransceivers()[0].receiver.track
        while True:
            picture = await track.recv()
            assert isinstance(picture, VideoFrame)
            if not rate.allows(time.monotonic()):
                raise SourceError(f"more than {limits.messages_per_s:g} frames/s; send fewer")
            if picture.width * picture.height > limits.frame_pixels:
                raise SourceError(
                    f"frame: got {picture.width}x{picture.height}, "
                    f"expected <= {limits.frame_pixels} pixels"
                )
            pts_s = (picture.pts or 0) / TICKS_PER_S
            if pts_s <= last_pts_s:
                raise SourceError(f"pts_s: got {pts_s}, expected above {last_pts_s}")
            last_pts_s = pts_s
            self._live.offer(functools.partial(_rgb, picture), pts_s)

    async def _report(self) -> None:
        news = self._restyled.news
        heard, heard_s = 0, time.monotonic()
        while True:
            if self._restyled.failure is not None:
                raise self._restyled.failure
            if self._meddled:
                raise SourceError("data channel: nothing is read from it; use REST")
            if self._live.ended:
                raise ConfigError("the server ended the session")
            if self._connection.connectionState in ("failed", "closed"):
                raise Left
            if self._channel is not None:
                so_far = await self._heard()
                if so_far > heard:
                    heard, heard_s = so_far, time.monotonic()
                elif time.monotonic() > heard_s + VANISHED_S:
                    raise Left
                status = await run_in_threadpool(self._live.status)
                self._tell(status.model_dump())
            news.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(STATUS_EVERY_S):
                    await news.wait()

    async def _heard(self) -> int:
        """Bytes that came so far."""
        stats = await self._connection.getStats()
        transports = (s for s in stats.values() if isinstance(s, RTCTransportStats))
        return sum(transport.bytesReceived for transport in transports)

    def _tell(self, content: dict[str, object]) -> None:
        channel = self._channel
        # What a client has not taken yet would be old by the time it does.
        if channel is not None and channel.readyState == "open" and not channel.bufferedAmount:
            channel.send(json.dumps(content))
