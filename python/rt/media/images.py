"""Numbered pictures in a folder: as a source, and as a sink that writes PNG."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.codec.context import CodecContext
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from ..errors import SinkError, SourceError
from ..frame import Frame
from .decode import Health, decoded, rgb_of, upright, video_stream
from .places import counted
from .sinks import Sink, check_folder
from .sources import DEFAULT_RATE, Picture, VideoSource
from .words import said


class Images(VideoSource):
    """Pictures that a pattern names, by number (or by name for `*`), one every 1/fps seconds.

    All come at the size of the first. Raises `SourceError` where no name fits.
    """

    def __init__(self, pattern: Path, fps: float | None) -> None:
        self._pattern = pattern
        self.remarks = []
        self.rate = DEFAULT_RATE if fps is None else Fraction(fps).limit_denominator(1001)
        self.time_base = 1 / self.rate
        self._paths = named(pattern)
        if not self._paths:
            raise SourceError(
                f"{pattern}: no file has such a name; expected pictures numbered as in "
                "frames/%04d.png: check the folder and the number of digits"
            )
        self.frame_count = len(self._paths)
        self.height, self.width = _read(self._paths[0], None).shape[:2]

    def __iter__(self) -> Iterator[Frame]:
        for index, path in enumerate(self._paths):
            rgb = _read(path, (self.height, self.width))
            yield Frame(rgb, index, float(index * self.time_base), time.perf_counter_ns())
        self.ended = True


def named(pattern: Path) -> list[Path]:
    """The files that `pattern` names, in order."""
    if not pattern.parent.is_dir():
        return []
    fits = counted(pattern)
    found = [(m, path) for path in pattern.parent.iterdir() if (m := fits.fullmatch(path.name))]
    return [path for _, path in sorted(found, key=lambda pair: (_number(pair[0][1]), pair[1].name))]


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def _read(path: Path, size: tuple[int, int] | None) -> Picture:
    try:
        with av.open(str(path.absolute())) as container:
            stream = video_stream(container, path)
            for picture, _ in decoded(container, stream, Health()):
                shape = size or (picture.height, picture.width)
                return np.ascontiguousarray(upright(rgb_of(picture, shape, path), picture))
    except (av.FFmpegError, OSError, ValueError) as error:
        raise SourceError(
            f"{path}: is no picture ({said(error)}); expected PNG, JPEG, ...: remove or replace it"
        ) from error
    raise SourceError(f"{path}: holds no readable picture; expected one: remove or replace it")


class PngFrames(Sink):
    """One PNG per frame, numbered by the frame's index: lossless, and there as soon as written.

    A number that is missing is a frame that was dropped. What was written stays.
    """

    def __init__(self, pattern: Path, height: int, width: int) -> None:
        super().__init__(str(pattern), height, width)
        check_pictures(pattern)
        self._pattern = pattern

    def write(self, frame: Frame) -> None:
        self.check(frame)
        path = self._pattern.with_name(self._pattern.name % frame.index)
        part = path.with_name(f".{path.name}.part")
        with self.told("written"):
            try:
                part.write_bytes(png(frame.rgb))
                part.replace(path)
            except OSError:
                with contextlib.suppress(OSError):
                    part.unlink()
                raise

    def close(self) -> None:
        """Every picture is whole already."""

    def abort(self) -> None:
        """What was written stays."""


def check_pictures(pattern: Path) -> None:
    """Raises `SinkError` for a pattern that PNG files cannot be written by."""
    check_folder(pattern)
    if pattern.suffix.lower() != ".png" or "*" in pattern.name:
        raise SinkError(
            f"{pattern}: pictures are written as PNG; expected a name like frames/%06d.png"
        )
    if named(pattern):
        raise SinkError(
            f"{pattern}: such pictures are there already; expected a folder without: "
            "remove them or name another"
        )


def png(rgb: Picture) -> bytes:
    """uint8 [H, W, 3] as a PNG file."""
    encoder = CodecContext.create("png", "w")
    assert isinstance(encoder, VideoCodecContext)
    encoder.height, encoder.width = rgb.shape[:2]
    encoder.pix_fmt, encoder.time_base = "rgb24", Fraction(1, 25)
    picture = VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
    return b"".join(bytes(p) for p in [*encoder.encode(picture), *encoder.encode(None)])
