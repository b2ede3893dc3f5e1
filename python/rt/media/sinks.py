"""Where frames go: an H.264 file with the times of its source and the sound of its source.

A sink owns a temporary file beside its target and renames it when it is closed, so a target is
either whole or untouched. It refuses, when it is opened, whatever cannot be written; nothing but
`SinkError` leaves it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import Stream
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation
from av.video.stream import VideoStream
from numpy.typing import NDArray

from ..errors import SinkError
from ..frame import Frame
from .sources import Sound, VideoSource, said

CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
"""File name endings and libav's name of the container."""

ENCODER_THREADS = 1
"""The model has the processor while a stream runs; one thread keeps up with it many times over."""

ENCODER = {"preset": "veryfast", "crf": "18"}


def open_sink(path: Path, source: VideoSource, height: int, width: int) -> VideoSink:
    """A video file at `path` for pictures [height, width, 3], with times and sound of `source`.

    Raises `SinkError` for an ending that names no container, a directory that is missing or may not
    be written to, a target that is a directory or the source itself.
    """
    return VideoSink(Path(path), source, height, width)


class VideoSink:
    """An open output file. `remarks` says in sentences what could not be done as asked."""

    def __init__(self, path: Path, source: VideoSource, height: int, width: int) -> None:
        assert min(height, width) > 0
        self.path, self.height, self.width = path, height, width
        self.remarks: list[str] = []
        self._source = source
        self._part = path.with_name(f".{path.stem}.part{path.suffix}")
        self._last: int | None = None
        self._frame_ticks = max(1, round(1 / (source.rate * source.time_base)))
        container_name = check_target(path, source)
        # H.264 with 4:2:0 colour has even sides only.
        self._padding = (height % 2, width % 2)
        if any(self._padding):
            self.remarks.append(
                f"{width}x{height} is written as {width + width % 2}x{height + height % 2}: "
                "H.264 needs even sides; the last line is repeated"
            )
        self._out: OutputContainer | None = None
        self._sound: _Passage | None = None
        try:
            self._begin(container_name, source.sound)
        except BaseException:
            self.abort()
            raise

    def write(self, frame: Frame) -> None:
        """Append rgb uint8 [height, width, 3] at its `pts_s`. Raises `SinkError`."""
        assert self._out is not None, "the sink is closed"
        assert frame.rgb.shape == (self.height, self.width, 3), frame.rgb.shape
        assert frame.rgb.dtype == np.uint8, frame.rgb.dtype
        ticks = round(Fraction(frame.pts_s) / self._source.time_base)
        if self._last is not None:
            ticks = max(ticks, self._last + 1)
        with self._told("written"):
            self._mux(self._video.encode(self._picture(frame.rgb, ticks)))
        self._last = ticks

    def close(self) -> None:
        """Finish the file and give it its name. Harmless when repeated.

        Raises `SinkError`, and then leaves no file. Without one picture there is none either: no
        player would open it.
        """
        if self._out is None:
            return
        if self._last is None:
            self.remarks.append(f"no picture was written, so there is no {self.path.name}")
            self.abort()
            return
        try:
            with self._told("finished"):
                self._finish()
                self._part.replace(self.path)
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Drop all that was written; what was at the target stays. Harmless when repeated."""
        if self._sound is not None:
            self._sound.close()
            self._sound = None
        if self._out is not None:
            out, self._out = self._out, None
            # It is thrown away: what closing complains about no longer matters.
            with contextlib.suppress(av.FFmpegError, OSError, ValueError):
                out.close()
            self._part.unlink(missing_ok=True)

    def _finish(self) -> None:
        out = self._out
        assert out is not None
        self._mux(self._video.encode(None))
        if self._sound is not None:
            # An interrupted stream ends with its last picture; a whole one keeps all its sound.
            assert self._last is not None
            end = self._last + self._frame_ticks
            until = None if self._source.ended else end * self._source.time_base
            for packet in self._sound.until(until):
                out.mux_one(packet)
            self._sound.close()
            self._sound = None
        out.close()
        self._out = None

    def _mux(self, packets: list[Packet[Any]]) -> None:
        """Pictures with the sound that belongs before them: a player wants both together."""
        assert self._out is not None
        for packet in packets:
            if self._sound is not None and packet.pts is not None:
                for sound in self._sound.until(packet.pts * packet.time_base):
                    self._out.mux_one(sound)
            self._out.mux_one(packet)

    def _picture(self, rgb: NDArray[np.uint8], ticks: int) -> VideoFrame:
        if any(self._padding):
            rgb = np.pad(rgb, ((0, self._padding[0]), (0, self._padding[1]), (0, 0)), mode="edge")
        picture = VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24").reformat(
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            threads=1,
        )
        picture.colorspace, picture.color_range = Colorspace.ITU709, ColorRange.MPEG
        picture.pts, picture.time_base = ticks, self._source.time_base
        picture.duration = self._frame_ticks
        return picture

    def _begin(self, container_name: str, sound: Sound | None) -> None:
        """Open the file and write its head; without the sound if the container will not have it."""
        with self._told("opened"):
            self._out = av.open(str(self._part.absolute()), "w", format=container_name)
            self._video = self._add_video(self._out)
            if sound is not None:
                self._sound = _Passage(sound, self._out, self.remarks)
            try:
                self._out.start_encoding()
            except (av.FFmpegError, ValueError) as error:
                if not self._sound:
                    raise
                self.remarks.append(
                    f"the sound is left out: {self.path.suffix} does not take it ({said(error)})"
                )
                self._sound.close()
                self._sound = None
                # Its head was refused, so closing it writes nothing; the file is begun again.
                with contextlib.suppress(av.FFmpegError, OSError, ValueError):
                    self._out.close()
                self._out = av.open(str(self._part.absolute()), "w", format=container_name)
                self._video = self._add_video(self._out)
                self._out.start_encoding()

    def _add_video(self, out: OutputContainer) -> VideoStream:
        video = out.add_stream("libx264", rate=self._source.rate, options=dict(ENCODER))
        assert isinstance(video, VideoStream)
        video.height = self.height + self._padding[0]
        video.width = self.width + self._padding[1]
        video.pix_fmt = "yuv420p"
        context = video.codec_context
        context.time_base = self._source.time_base
        video.time_base = self._source.time_base
        context.thread_count = ENCODER_THREADS
        # No picture refers forward: packets are in the order of their times, without an edit list.
        context.max_b_frames = 0
        context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        return video

    @contextlib.contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        """libav's and the system's errors as one line."""
        try:
            yield
        except (av.FFmpegError, OSError, ValueError) as error:
            raise SinkError(
                f"{self.path}: cannot be {doing} ({said(error)}); expected a place with room and "
                "the right to write: free space or choose another output"
            ) from error


class _Passage:
    """The audio packets of a source on their way into `out`, unchanged and in order."""

    def __init__(self, sound: Sound, out: OutputContainer, remarks: list[str]) -> None:
        self._origin_s = sound.origin_s
        self._remarks = remarks
        self._out_streams: dict[int, Stream] = {}
        self._next: Packet[Any] | None = None
        self._packets: Iterator[Packet[Any]] = iter(())
        self._in: InputContainer | None = None
        try:
            self._in = av.open(str(sound.path.absolute()))
        except (av.FFmpegError, OSError) as error:
            remarks.append(f"the sound is left out: {sound.path} cannot be read ({said(error)})")
            return
        for stream in self._in.streams.audio:
            try:
                self._out_streams[stream.index] = out.add_stream_from_template(stream)
            except (av.FFmpegError, ValueError):
                remarks.append(
                    f"sound track {stream.index} is left out: {stream.codec_context.name} cannot "
                    f"be stored in {out.format.name}"
                )
        if self._out_streams:
            self._packets = self._in.demux([self._in.streams[i] for i in self._out_streams])

    def __bool__(self) -> bool:
        return bool(self._out_streams)

    def until(self, time_s: Fraction | None) -> Iterator[Packet[Any]]:
        """Packets that begin before `time_s` on the source's clock; all that are left for None."""
        while True:
            packet = self._next or self._read()
            self._next = packet
            if packet is None or packet.pts is None:
                return
            if time_s is not None and packet.pts * packet.time_base >= time_s:
                return
            self._next = None
            packet.stream = self._out_streams[packet.stream.index]
            yield packet

    def close(self) -> None:
        if self._in is not None:
            self._in.close()

    def _read(self) -> Packet[Any] | None:
        """The next packet with its time on the pictures' clock."""
        try:
            for packet in self._packets:
                if packet.pts is None and packet.dts is None:
                    continue
                shift = round(self._origin_s / packet.time_base)
                pts = packet.pts if packet.pts is not None else packet.dts
                dts = packet.dts if packet.dts is not None else packet.pts
                assert pts is not None
                assert dts is not None
                packet.pts, packet.dts = pts - shift, dts - shift
                return packet
        except av.FFmpegError as error:
            self._remarks.append(f"the sound ends early: the source is damaged ({said(error)})")
            self._packets = iter(())
        return None


def side_by_side(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`left` [h, w, 3], its middle cut out and resized to the size of `right` [H, W, 3], then
    `right`: uint8 [H, 2 W, 3].
    """
    height, width = right.shape[:2]
    both = np.empty((height, 2 * width, 3), np.uint8)
    both[:, :width] = _fitted(left, height, width)
    both[:, width:] = right
    return both


def _fitted(rgb: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    rows, columns = rgb.shape[:2]
    if rows * width > columns * height:
        rows = max(1, round(columns * height / width))
    else:
        columns = max(1, round(rows * width / height))
    top, left = (rgb.shape[0] - rows) // 2, (rgb.shape[1] - columns) // 2
    rgb = rgb[top : top + rows, left : left + columns]
    if (rows, columns) == (height, width):
        return rgb
    # Area weighting is free of moire when shrinking; when enlarging it would show blocks.
    way = Interpolation.AREA if rows >= height else Interpolation.BICUBIC
    way |= Interpolation.FULL_CHR_H_INP | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
    frame = VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
    resized: Any = frame.reformat(width=width, height=height, interpolation=int(way), threads=1)
    return np.asarray(resized.to_ndarray(), np.uint8)


def check_target(path: Path, source: VideoSource) -> str:
    """libav's name of the container, once nothing visible speaks against writing `path`.

    `open_sink` does this itself; it can be asked before anything slow begins. Raises `SinkError`.
    """
    name = CONTAINERS.get(path.suffix.lower())
    if name is None:
        raise SinkError(
            f"{path}: ending {path.suffix!r} names no container that is written here; "
            f"expected one of {', '.join(CONTAINERS)}: change the name"
        )
    parent = path.parent
    if not parent.exists():
        raise SinkError(f"{path}: there is no directory {parent}; create it or name another")
    if not parent.is_dir():
        raise SinkError(f"{path}: {parent} is no directory; name a file in a directory")
    if path.is_dir():
        raise SinkError(f"{path}: is a directory; expected a file name: name a file in it")
    if source.path is not None and path.exists() and path.samefile(source.path):
        raise SinkError(f"{path}: is the input itself; name another output")
    return name
