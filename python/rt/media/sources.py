"""Where frames come from: what any source offers, and video files.

A source owns its reading position and nothing else; each iteration starts again at the first frame.
It gives upright RGB pictures of square pixels with strictly rising times. It refuses, when it is
opened, everything that can be known to be no video by then; what turns out later is told after the
last good frame.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from ..errors import SourceError
from ..frame import Frame

Picture = NDArray[np.uint8]
"""uint8 [H, W, 3], red green blue."""

DECODER_THREADS = 2
"""The model has the processor while a stream runs; a decoder on every core would only delay it."""

DEFAULT_RATE = Fraction(25)
"""For a stream that names no rate and has too few frames to tell."""


@dataclass(frozen=True, slots=True)
class Sound:
    """Where a sink finds the sound of a source: a file, and what was taken off its times."""

    path: Path
    origin_s: Fraction


class VideoSource(ABC):
    """An iterable of `Frame`, and what a sink has to know of it. A context manager."""

    height: int
    """Rows of every picture, after rotation."""
    width: int
    """Columns of every picture, after rotation."""
    rate: Fraction
    """Frames per second; the mean where the rate varies."""
    time_base: Fraction
    """Seconds per tick: every `pts_s` is a whole number of these."""
    path: Path | None = None
    """The file that is read, if it is one."""
    frame_count: int | None
    """What the container declares; a damaged or an edited file may hold another number."""
    sound: Sound | None = None
    """Where the sound is, if there is any."""
    ended: bool = False
    """True once an iteration reached the end: sound after the last picture then belongs to it."""

    @abstractmethod
    def __iter__(self) -> Iterator[Frame]: ...

    def close(self) -> None:  # noqa: B027 - most sources hold nothing
        """Release what is open. Harmless when repeated."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_source(path: Path) -> VideoFile:
    """The video file at `path`.

    Raises `SourceError` for a missing file, a directory, a file without video or without a picture.
    """
    return VideoFile(Path(path))


class VideoFile(VideoSource):
    """A video file, read by libav. See `open_source`."""

    def __init__(self, path: Path) -> None:
        self.path: Path = path
        self._open: list[InputContainer] = []
        with _container(path) as container:
            stream = _video_stream(container, path)
            self.time_base = stream.time_base or Fraction(1, 90_000)
            self.rate = stream.average_rate or stream.guessed_rate or DEFAULT_RATE
            self.frame_count = stream.frames or None
            self._origin = _origin(container, self.time_base)
            first = next((f for f, _ in _decoded(container, stream, Health())), None)
            if first is None:
                raise SourceError(
                    f"{path}: its video track holds no readable frame; at least 1 is needed: "
                    "check that the recording was finished, or choose another file"
                )
            self._size = _square(first.height, first.width, stream.sample_aspect_ratio)
            self.height, self.width = upright(_rgb(first, self._size, path), first).shape[:2]
            if container.streams.audio:
                self.sound = Sound(path, self._origin * self.time_base)

    def __iter__(self) -> Iterator[Frame]:
        """Frames in order of their times.

        Raises `SourceError` after the last readable frame if the file is cut short or damaged.
        """
        container = _container(self.path)
        self._open.append(container)
        health = Health()
        index = 0
        try:
            stream = _video_stream(container, self.path)
            step = max(1, round(1 / (self.rate * self.time_base)))
            last: int | None = None
            for picture, pts in _decoded(container, stream, health):
                due = 0 if last is None else last + step
                ticks = due if pts is None else pts - self._origin
                # A player, and the muxer behind a sink, need times that rise.
                ticks = ticks if last is None else max(ticks, last + 1)
                last = ticks
                rgb = np.ascontiguousarray(upright(_rgb(picture, self._size, self.path), picture))
                yield Frame(rgb, index, float(ticks * self.time_base), time.perf_counter_ns())
                index += 1
            self.ended = True
            complaint = health.complaint or _cut_short(self.path, container, health)
        finally:
            self._release(container)
        if complaint:
            raise SourceError(
                f"{self.path}: {complaint}; the {index} frames that could be read were delivered: "
                "copy the file again, or repair it"
            )

    def close(self) -> None:
        """Close what an unfinished iteration left open."""
        while self._open:
            self._open.pop().close()

    def _release(self, container: InputContainer) -> None:
        if container in self._open:
            self._open.remove(container)
            container.close()


@dataclass(slots=True)
class Health:
    """What reading has met so far: the first complaint, and how far the packets reach."""

    complaint: str | None = None
    reach_s: float = 0.0


def _container(path: Path) -> InputContainer:
    if not path.exists():
        raise SourceError(f"{path}: there is no such file; expected a video file: check the path")
    if not path.is_file():
        what = "a directory" if path.is_dir() else "no regular file"
        raise SourceError(f"{path}: is {what}; expected a video file: name a file")
    try:
        # Absolute, so that a name with a colon is not taken for a protocol.
        return av.open(str(path.absolute()))
    except PermissionError as error:
        raise SourceError(
            f"{path}: permission denied; expected a readable file: change its mode"
        ) from error
    except (av.FFmpegError, OSError, ValueError) as error:
        cut = " or was cut off before its index" if top_boxes_cut(path) else ""
        raise SourceError(
            f"{path}: is no video{cut} ({said(error)}); expected a file that libav can read "
            "(mp4, mov, mkv, webm, avi, ...): choose another file"
        ) from error


def _video_stream(container: InputContainer, path: Path) -> VideoStream:
    for stream in container.streams.video:
        # The cover of a song is a still picture in a video track.
        if stream.disposition & Disposition.attached_pic:
            continue
        decoder: Any = stream.codec_context
        if decoder is None:  # PyAV's types know nothing of a stream without a decoder.
            container.close()
            raise SourceError(
                f"{path}: its video track is of a kind without a decoder here, or its header is "
                "damaged; expected H.264, HEVC, VP9, AV1, ...: convert or copy the file again"
            )
        decoder.thread_count = DECODER_THREADS
        return stream
    kinds = ", ".join(sorted({s.type for s in container.streams})) or "no track at all"
    container.close()
    raise SourceError(
        f"{path}: has no video track (found: {kinds}); expected one: choose another file"
    )


def _origin(container: InputContainer, time_base: Fraction) -> int:
    """Ticks to take off every time: a broadcast starts its clock anywhere, a video at 0."""
    start_s = Fraction(container.start_time or 0, av.time_base)
    return round(start_s / time_base) if start_s > 0 else 0


def _decoded(
    container: InputContainer, stream: VideoStream, health: Health
) -> Iterator[tuple[VideoFrame, int | None]]:
    """Pictures and their times in ticks, None where the file has none. Errors go to `health`."""
    started = False
    for packet in _packets(container, health):
        if packet.stream is not stream and packet.stream.index != stream.index:
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


def _square(height: int, width: int, aspect: Fraction | None) -> tuple[int, int]:
    """Size [H, W] in square pixels: of pixels that are not, the shorter side is stretched."""
    if not aspect or aspect == 1:
        return height, width
    if aspect > 1:
        return height, max(1, round(width * aspect))
    return max(1, round(height / aspect)), width


def _rgb(picture: VideoFrame, size: tuple[int, int], path: Path) -> Picture:
    """Pixels as [H, W, 3]; a picture that changes its size in flight comes back to the first's."""
    height, width = size
    try:
        rgb: Any = picture.to_ndarray(format="rgb24", height=height, width=width)
    except (av.FFmpegError, ValueError) as error:
        raise SourceError(
            f"{path}: pixel format {picture.format.name} cannot be converted ({said(error)}); "
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


def _cut_short(path: Path, container: InputContainer, health: Health) -> str | None:
    """Why the file must once have been longer, if it was: libav takes some cuts for its end."""
    if "mp4" in container.format.name:
        return "the file is cut short" if top_boxes_cut(path) else None
    # These declare a length when they are finished. Elsewhere libav guesses it from the bit rate.
    if container.duration and container.format.name in ("matroska,webm", "avi", "flv"):
        declared = ((container.start_time or 0) + container.duration) / av.time_base
        if health.reach_s < declared - 0.5:
            return f"the file is cut short ({health.reach_s:.1f} s of {declared:.1f} s)"
    return None


def top_boxes_cut(path: Path) -> bool:
    """Whether a box of an ISO media file (mp4, mov) reaches beyond its end. Else False."""
    size = path.stat().st_size
    with path.open("rb") as file:
        at = 0
        while at + 8 <= size:
            file.seek(at)
            head = file.read(16)
            kind, length = head[4:8], int.from_bytes(head[:4], "big")
            if length == 1:
                length = int.from_bytes(head[8:16], "big")
            # 0 means "to the end"; an unknown kind may be rubbish that a camera left behind.
            if length < 8 or kind not in _BOXES:
                return False
            at += length
    return at > size


_BOXES = {b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"sidx", b"mfra", b"free", b"skip", b"wide"}
_BOXES |= {b"uuid", b"udta", b"meta", b"prft", b"emsg"}


def said(error: Exception) -> str:
    """libav's own words in one line."""
    words = error.strerror if isinstance(error, OSError | av.FFmpegError) else str(error)
    return " ".join(str(words or type(error).__name__).split())
