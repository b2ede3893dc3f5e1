"""Pictures out of an open libav container: upright, RGB, of square pixels, with their times.

What is damaged is told to `Health`, after all that could be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from ..errors import SourceError
from .sources import Picture
from .words import said

DECODER_THREADS = 2
"""The model has the processor while a stream runs; a decoder on every core would only delay it."""


@dataclass(slots=True)
class Health:
    """What reading has met so far: the first complaint, and how far the packets reach."""

    complaint: str | None = None
    reach_s: float = 0.0


def video_stream(container: InputContainer, name: object) -> VideoStream:
    for stream in container.streams.video:
        # The cover of a song is a still picture in a video track.
        if stream.disposition & Disposition.attached_pic:
            continue
        decoder: Any = stream.codec_context
        if decoder is None:  # PyAV's types know nothing of a stream without a decoder.
            container.close()
            raise SourceError(
                f"{name}: its video track is of a kind without a decoder here, or its header is "
                "damaged; expected H.264, HEVC, VP9, AV1, ...: convert or copy the file again"
            )
        decoder.thread_count = DECODER_THREADS
        return stream
    kinds = ", ".join(sorted({s.type for s in container.streams})) or "no track at all"
    container.close()
    raise SourceError(
        f"{name}: has no video track (found: {kinds}); expected one: choose another file"
    )


def decoded(
    container: InputContainer,
    stream: VideoStream,
    health: Health,
    aside: Callable[[Packet[Any]], None] | None = None,
) -> Iterator[tuple[VideoFrame, int | None]]:
    """Pictures and their times in ticks, None where the file has none. Errors go to `health`,
    packets of sound to `aside`.
    """
    started = False
    for packet in _packets(container, health):
        if packet.stream is not stream and packet.stream.index != stream.index:
            if aside is not None and packet.size and packet.stream.type == "audio":
                aside(packet)
            continue
        try:
            pictures = stream.codec_context.decode(packet if packet.size else None)
        except av.EOFError:
            continue
        except av.FFmpegError as error:
            # A stream that was joined in flight begins with packets that need an earlier picture.
            if started:
                health.complaint = health.complaint or f"a picture is damaged ({said(error)})"
            continue
        for picture in pictures:
            started = True
            yield picture, picture.pts if picture.pts is not None else picture.dts


def _packets(container: InputContainer, health: Health) -> Iterator[Packet[Any]]:
    packets = container.demux()
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.FFmpegError as error:
            health.complaint = f"the file ends or breaks in the middle ({said(error)})"
            # Empty packets flush what the decoders still hold.
            yield from (_flush(s) for s in container.streams.video)
            return
        if packet.is_corrupt:
            health.complaint = health.complaint or "the file ends in the middle of a picture"
        if packet.pts is not None:
            end = (packet.pts + (packet.duration or 0)) * packet.time_base
            health.reach_s = max(health.reach_s, float(end))
        yield packet


def _flush(stream: VideoStream) -> Packet[Any]:
    packet: Packet[Any] = Packet()
    packet.stream = stream
    return packet


def square(height: int, width: int, aspect: Fraction | None) -> tuple[int, int]:
    """Size [H, W] in square pixels: of pixels that are not, the shorter side is stretched."""
    if not aspect or aspect == 1:
        return height, width
    if aspect > 1:
        return height, max(1, round(width * aspect))
    return max(1, round(height / aspect)), width


def rgb_of(picture: VideoFrame, size: tuple[int, int], name: object) -> Picture:
    """Pixels as [H, W, 3]; a picture that changes its size in flight comes back to the first's."""
    height, width = size
    try:
        rgb: Any = picture.to_ndarray(format="rgb24", height=height, width=width)
    except (av.FFmpegError, ValueError) as error:
        raise SourceError(
            f"{name}: pixel format {picture.format.name} cannot be converted ({said(error)}); "
            "expected YUV or RGB: convert the file to H.264 first"
        ) from error
    return np.asarray(rgb, np.uint8)


def upright(rgb: Picture, picture: VideoFrame) -> Picture:
    """`rgb` as the display matrix of `picture` wants it seen: a view of it.

    That is one of four quarter turns, mirrored or not; other angles go to the nearest.
    """
    side: Any = picture.side_data
    data = side.get(SideDataType.DISPLAYMATRIX)
    if data is None:
        return rgb
    # 9 fixed-point numbers (ISO 14496-12, 6.2.2): x' = a x + c y, y' = b x + d y.
    a, b, _, c, d = (int(v) for v in np.frombuffer(bytes(data), "<i4", count=5))
    if abs(a) + abs(d) >= abs(b) + abs(c):
        flip_y, flip_x = d < 0, a < 0
    else:
        rgb = rgb.transpose(1, 0, 2)
        flip_y, flip_x = b < 0, c < 0
    return rgb[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
