"""Video files as sources.

Each iteration starts again at the first frame. It refuses, when it is opened, everything that can
be known to be no video by then; what turns out later is told after the last good frame.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer

from ..errors import SourceError
from ..frame import Frame
from .decode import Health, decoded, rgb_of, square, upright, video_stream
from .sound import FileSound
from .sources import DEFAULT_RATE, VideoSource
from .words import said


class VideoFile(VideoSource):
    """A video file, read by libav. See `open_source`."""

    def __init__(self, path: Path) -> None:
        self.path: Path = path
        self.remarks = []
        self._open: list[InputContainer] = []
        with _container(path) as container:
            stream = video_stream(container, path)
            self.time_base = stream.time_base or Fraction(1, 90_000)
            self.rate = stream.average_rate or stream.guessed_rate or DEFAULT_RATE
            self.frame_count = stream.frames or None
            self._origin = _origin(container, self.time_base)
            first = next((f for f, _ in decoded(container, stream, Health())), None)
            if first is None:
                raise SourceError(
                    f"{path}: its video track holds no readable frame; at least 1 is needed: "
                    "check that the recording was finished, or choose another file"
                )
            self._size = square(first.height, first.width, stream.sample_aspect_ratio)
            self.height, self.width = upright(rgb_of(first, self._size, path), first).shape[:2]
            if container.streams.audio:
                self.sound = FileSound(path, self._origin * self.time_base)

    def __iter__(self) -> Iterator[Frame]:
        """Frames in order of their times.

        Raises `SourceError` after the last readable frame if the file is cut short or damaged.
        """
        container = _container(self.path)
        self._open.append(container)
        health = Health()
        index = 0
        try:
            stream = video_stream(container, self.path)
            step = max(1, round(1 / (self.rate * self.time_base)))
            last: int | None = None
            for picture, pts in decoded(container, stream, health):
                due = 0 if last is None else last + step
                ticks = due if pts is None else pts - self._origin
                # A player, and the muxer behind a sink, need times that rise.
                ticks = ticks if last is None else max(ticks, last + 1)
                last = ticks
                rgb = np.ascontiguousarray(upright(rgb_of(picture, self._size, self.path), picture))
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


def _origin(container: InputContainer, time_base: Fraction) -> int:
    """Ticks to take off every time: a broadcast starts its clock anywhere, a video at 0."""
    start_s = Fraction(container.start_time or 0, av.time_base)
    return round(start_s / time_base) if start_s > 0 else 0


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
