"""Where frames come from: a video file, or a scene that is computed.

A source owns its reading position and nothing else; each iteration starts again at the first frame.
It gives upright RGB pictures with strictly rising times. It refuses, when it is opened, everything
that can be known to be no video by then; what turns out later is told after the last good frame.
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
"""The model has the processor while a stream runs; a decoder that took every core would only delay it."""

DEFAULT_RATE = Fraction(25)
"""For a stream that names no rate and has too few frames to tell."""


@dataclass(frozen=True, slots=True)
class Sound:
    """Where a sink finds the sound that belongs to a source: a file, and what its pictures' times were shifted by."""

    path: Path
    origin_s: Fraction


class VideoSource(ABC):
    """An iterable of `Frame`, and what has to be known of it to write it again. A context manager."""

    height: int
    """Rows of every picture, after rotation."""
    width: int
    """Columns of every picture, after rotation."""
    rate: Fraction
    """Frames per second; the mean where the rate varies."""
    time_base: Fraction
    """Seconds per tick: every `pts_s` is a whole number of these."""
    frame_count: int | None
    """What the container declares; a damaged or an edited file may hold another number."""
    sound: Sound | None = None
    """Where the sound is, if there is any."""
    ended: bool = False
    """True once an iteration has come to the end: the sound after the last picture belongs to it."""

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

    Raises `SourceError` for a missing file, a directory, a file without video or without one picture.
    """
    return VideoFile(Path(path))


class VideoFile(VideoSource):
    """A video file, read by libav. See `open_source`."""

    def __init__(self, path: Path) -> None:
        self.path = path
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
            self._size = (first.height, first.width)
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
    """What reading has met so far: the first complaint, and how far the packets of any track reach."""

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
            f"{path}: is no video{cut} ({_said(error)}); expected a file that libav can read "
            "(mp4, mov, mkv, webm, avi, ...): choose another file"
        ) from error


def _video_stream(container: InputContainer, path: Path) -> VideoStream:
    for stream in container.streams.video:
        # The cover of a song is a still picture in a video track.
        if not stream.disposition & Disposition.attached_pic:
            stream.codec_context.thread_count = DECODER_THREADS
            return stream
    kinds = ", ".join(sorted({s.type for s in container.streams})) or "no track at all"
    container.close()
    raise SourceError(
        f"{path}: has no video track (found: {kinds}); expected one: choose another file"
    )


def _origin(container: InputContainer, time_base: Fraction) -> int:
    """Ticks to take off every time. Broadcast streams start their clock anywhere; a video starts at 0."""
    start_s = Fraction(container.start_time or 0, av.time_base)
    return round(start_s / time_base) if start_s > 0 else 0


def _decoded(
    container: InputContainer, stream: VideoStream, health: Health
) -> Iterator[tuple[VideoFrame, int | None]]:
    """Pictures and their times in ticks, None where the file has none. Errors end up in `health`."""
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
                health.complaint = health.complaint or f"a picture is damaged ({_said(error)})"
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
            health.complaint = f"the file ends or breaks in the middle ({_said(error)})"
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


def _rgb(picture: VideoFrame, size: tuple[int, int], path: Path) -> Picture:
    """Pixels as [H, W, 3]; a picture that changed its size in flight comes back to the first one's."""
    height, width = size
    try:
        rgb: Any = picture.to_ndarray(format="rgb24", height=height, width=width)
    except (av.FFmpegError, ValueError) as error:
        raise SourceError(
            f"{path}: pixel format {picture.format.name} cannot be converted ({_said(error)}); "
            "expected YUV or RGB: convert the file to H.264 first"
        ) from error
    return np.asarray(rgb, np.uint8)


def upright(rgb: Picture, picture: VideoFrame) -> Picture:
    """`rgb` as the display matrix of `picture` wants it seen: 4 quarter turns, each mirrored or not. A view."""
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
    """Why the file must once have been longer, if it was. libav takes some cuts for a regular end."""
    if "mp4" in container.format.name:
        return "the file is cut short" if top_boxes_cut(path) else None
    # These declare a length when they are finished. Elsewhere libav guesses it from the bit rate.
    if container.duration and container.format.name in ("matroska,webm", "avi", "flv"):
        declared = ((container.start_time or 0) + container.duration) / av.time_base
        if health.reach_s < declared - 0.5:
            return f"the file is cut short ({health.reach_s:.1f} s of {declared:.1f} s)"
    return None


def top_boxes_cut(path: Path) -> bool:
    """Whether a box of an ISO media file (mp4, mov) reaches beyond its end. False for other files."""
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


def _said(error: Exception) -> str:
    """libav's own words in one line."""
    words = error.strerror if isinstance(error, OSError | av.FFmpegError) else str(error)
    return " ".join(str(words or type(error).__name__).split())


def moving_scene(
    height: int = 256, width: int = 256, fps: float = 16.0, seconds: float = 10.0
) -> MovingScene:
    """A made video, the same on every machine: see `MovingScene`."""
    return MovingScene(height, width, fps, seconds)


class MovingScene(VideoSource):
    """Coloured balls over a landscape of soft waves, computed from the frame number alone.

    The camera pans; from 40 % to 50 % of the length all stands still; from 70 % to 80 % the light flickers and
    nothing else changes its way. So motion, rest and a change that is no motion can all be seen.
    """

    PAUSE = (0.4, 0.5)
    FLICKER = (0.7, 0.8)

    def __init__(self, height: int, width: int, fps: float, seconds: float) -> None:
        assert height > 0 and width > 0 and fps > 0 and seconds > 0
        self.height, self.width = height, width
        self.rate = Fraction(fps).limit_denominator(1001)
        self.time_base = 1 / self.rate
        self.frame_count: int = max(1, round(seconds * fps))
        self._ground = _ground(2 * height, 2 * width)
        short = min(height, width)
        self._balls = [
            _ball(max(3, round(short * share)), colour)
            for share, colour in (
                (0.30, (235, 94, 40)),
                (0.20, (72, 149, 239)),
                (0.14, (250, 210, 70)),
            )
        ]

    def __iter__(self) -> Iterator[Frame]:
        for index in range(self.frame_count):
            pts_s = float(index * self.time_base)
            yield Frame(self.picture(index), index, pts_s, time.perf_counter_ns())
        self.ended = True

    def picture(self, index: int) -> Picture:
        """Frame `index`, uint8 [H, W, 3]."""
        at = index / self.frame_count
        begin, end = self.PAUSE
        stands = np.floor(end * self.frame_count) - np.ceil(begin * self.frame_count)
        if at < begin:
            moved = index
        elif at < end:
            moved = int(np.ceil(begin * self.frame_count))
        else:
            moved = index - int(max(0, stands))
        clock_s = moved / float(self.rate)
        rgb = self._pan(clock_s)
        for number, (ball, mask) in enumerate(self._balls):
            self._place(rgb, ball, mask, number, clock_s)
        if self.FLICKER[0] <= at < self.FLICKER[1]:
            # Up to +-12 %, in steps that no period of the frames hides.
            gain = 256 + round(31 * np.sin(2.4 * index))
            rgb = np.minimum(rgb.astype(np.uint16) * np.uint16(gain) >> 8, 255).astype(np.uint8)
        return rgb

    def _pan(self, clock_s: float) -> Picture:
        """A window of the ground that wanders without leaving it: the ground is twice as large."""
        y = round(self.height * (0.5 + 0.45 * np.sin(0.31 * clock_s)))
        x = round(self.width * (0.5 + 0.48 * np.sin(0.47 * clock_s + 0.6)))
        return self._ground[y : y + self.height, x : x + self.width].copy()

    def _place(
        self, rgb: Picture, ball: Picture, mask: NDArray[np.bool_], number: int, clock_s: float
    ) -> None:
        size = ball.shape[0]
        sway = np.sin((0.9 + 0.35 * number) * clock_s + 2.1 * number)
        hop = abs(np.cos((1.3 + 0.25 * number) * clock_s + number))
        x = round((self.width - size) * (0.5 + 0.5 * sway))
        y = round((self.height - size) * (1 - 0.85 * hop))
        view = rgb[max(y, 0) : y + size, max(x, 0) : x + size]
        rows, columns = view.shape[:2]
        np.copyto(view, ball[:rows, :columns], where=mask[:rows, :columns, None])


def _ground(height: int, width: int) -> Picture:
    """Hills of several wavelengths in three colours with a fine grain, uint8 [height, width, 3]."""
    rng = np.random.Generator(np.random.Philox(7))
    y, x = np.mgrid[0:height, 0:width] * (512 / max(height, width))
    hills = np.zeros((height, width))
    for octave in range(6):
        fy, fx = rng.normal(size=2) * 2.0**octave * 0.012
        hills += np.sin(fy * y + fx * x + rng.uniform(0, 6.283)) * 0.75**octave
    checks = np.sign(np.sin(x * 0.098) * np.sin(y * 0.098)) * 0.22
    level = 0.5 + 0.16 * hills + 0.5 * checks
    grain = rng.normal(0, 5, size=(height, width, 1))
    dark, light = np.array([24.0, 60.0, 78.0]), np.array([214.0, 222.0, 178.0])
    rgb = dark + (light - dark) * np.clip(level, 0, 1)[..., None] + grain
    return np.clip(rgb, 0, 255).astype(np.uint8)


def _ball(size: int, colour: tuple[int, int, int]) -> tuple[Picture, NDArray[np.bool_]]:
    """A lit ball with stripes, uint8 [size, size, 3], and where it is, [size, size]."""
    y, x = (np.mgrid[0:size, 0:size] + 0.5) * (2 / size) - 1
    depth = np.sqrt(np.clip(1 - x * x - y * y, 0, None))
    light = np.clip(0.25 + 0.75 * (0.55 * depth - 0.5 * x - 0.6 * y), 0.12, 1.0)
    stripes = np.where(np.sin(7 * (x + 0.6 * y)) > 0.35, 0.62, 1.0)
    rgb = np.array(colour) * (light * stripes)[..., None]
    return rgb.astype(np.uint8), depth > 0
