"""Sources that are read once, as they come: networks, cameras, standard input.

What is live and goes away is tried again with growing pauses, and its frames go on at the time that
has passed meanwhile; a size that changes on the way comes back to the first one. It refuses, when
it is opened, what cannot be reached then.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame

from ..errors import SourceError
from ..frame import Frame
from .clocks import TICK, Backoff, Timeline
from .decode import Health, decoded, rgb_of, square, upright, video_stream
from .places import Place
from .sound import LiveSound
from .sources import DEFAULT_RATE, VideoSource
from .words import said

OPEN_S = 10.0
"""How long a server may take to begin."""

SILENT_S = 5.0
"""A live source without a byte for so long is gone."""

Options = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a source is to be told that it does not say itself; None: its own choice."""

    size: tuple[int, int] | None = None
    fps: float | None = None


def libav_options(place: Place, asked: Asked) -> tuple[str | None, Options]:
    """libav's name of the format, where it is not found out, and its options."""
    size = {} if asked.size is None else {"video_size": f"{asked.size[1]}x{asked.size[0]}"}
    fps = {} if asked.fps is None else {"framerate": f"{asked.fps:g}"}
    match place.kind:
        case "camera":
            return "v4l2", {**size, **fps}
        case "raw":
            return "rawvideo", {"pixel_format": "rgb24", **size, **fps}
        case "y4m":
            return "yuv4mpegpipe", {}
        case "rtsp":
            return None, {"rtsp_transport": "tcp"}
        case "rtmp":
            return None, {"rtmp_live": "live"}
        case _:
            return None, {"reconnect": "1", "reconnect_delay_max": "4"}


class Link:
    """One connection: an open container, its first picture, and all that follow."""

    def __init__(self, place: Place, asked: Asked) -> None:
        self.health = Health()
        self.sounds: deque[Packet[Any]] = deque(maxlen=1000)
        """Packets of sound since the last picture."""
        self.container = _opened(place, asked)
        try:
            self.stream = video_stream(self.container, place)
            self.audio: list[AudioStream] = list(self.container.streams.audio)
            self._pictures = decoded(self.container, self.stream, self.health, self.sounds.append)
            self.first = next(self._pictures, None)
        except BaseException:
            self.container.close()
            raise
        if self.first is None:
            self.container.close()
            raise SourceError(
                f"{place}: gave no readable picture ({self.health.complaint or 'it ended'}); "
                "at least 1 is needed: check what is sent there"
            )

    def pictures(self) -> Iterator[tuple[VideoFrame, Fraction | None]]:
        """Pictures with their times in seconds, from the first on. Read once."""
        assert self.first is not None
        base = self.stream.time_base or TICK
        picture, ticks = self.first
        yield picture, None if ticks is None else ticks * base
        for picture, ticks in self._pictures:
            yield picture, None if ticks is None else ticks * base


def _opened(place: Place, asked: Asked) -> InputContainer:
    if place.path is not None and not place.path.exists():
        raise SourceError(
            f"{place}: there is no such device; expected a camera: see ls /dev/video*"
        )
    name, options = libav_options(place, asked)
    # A pipe may be slow without being gone.
    timeout = None if place.kind in ("y4m", "raw") else (OPEN_S, SILENT_S)
    try:
        return av.open(place.url, format=name, options=dict(options), timeout=timeout)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise SourceError(
            f"{place}: cannot be opened ({said(error)}); expected "
            f"{_EXPECTED.get(place.kind, 'a stream that runs')}: check the address and the sender"
        ) from error


_EXPECTED = {
    "camera": "a camera that nobody else has open",
    "raw": "RGB pictures, 3 bytes per pixel, of the size that --input-size says",
    "y4m": "a YUV4MPEG2 stream",
}


class Feed(VideoSource):
    """A source that can be iterated once. See the module."""

    time_base = TICK

    def __init__(self, place: Place, asked: Asked, backoff: Backoff) -> None:
        self._place, self._asked, self._backoff = place, asked, backoff
        self.remarks = []
        self._stop = threading.Event()
        self._reading = False
        self._first = self._link = link = Link(place, asked)
        # What has a length and a server that can seek is a film that somebody keeps.
        self.live = place.live or (place.kind == "http" and not link.container.duration)
        rate = link.stream.average_rate or link.stream.guessed_rate or DEFAULT_RATE
        self.rate = rate if 1 <= rate <= 240 else DEFAULT_RATE
        assert link.first is not None
        picture = link.first[0]
        aspect = link.stream.sample_aspect_ratio
        self._size = square(picture.height, picture.width, aspect)
        self.height, self.width = upright(rgb_of(picture, self._size, place), picture).shape[:2]
        self._timeline = Timeline(1 / self.rate)
        self._sound = LiveSound(link.audio[:1])
        if link.audio:
            self.sound = self._sound

    def __iter__(self) -> Iterator[Frame]:
        """Frames as they come.

        Raises `SourceError` when what is live stays away for longer than the patience, and after
        the last readable frame of what is damaged.
        """
        assert not self._reading, f"{self._place} can be read once"
        self._reading = True
        index = 0
        try:
            while not self._stop.is_set():
                for picture, time_s in self._link.pictures():
                    if self._stop.is_set():
                        return
                    yield self._frame(picture, time_s, index)
                    index += 1
                if not self.live:
                    self._end(index)
                    return
                self._again()
        finally:
            self._reading = False
            if self._stop.is_set():
                self._release()

    def close(self) -> None:
        """Let go of the connection: now, or when the thread that reads comes by."""
        self._stop.set()
        if not self._reading:
            self._release()

    def _frame(self, picture: VideoFrame, time_s: Fraction | None, index: int) -> Frame:
        now_ns = time.perf_counter_ns()
        pts_s = self._timeline.place(time_s, now_ns * 1e-9)
        while self._link.sounds:
            self._sound.add(0, self._link.sounds.popleft(), self._timeline.offset_s)
        rgb = upright(rgb_of(picture, self._size, self._place), picture)
        return Frame(np.ascontiguousarray(rgb), index, float(pts_s), now_ns)

    def _end(self, count: int) -> None:
        if (complaint := self._link.health.complaint) is not None:
            raise SourceError(
                f"{self._place}: {complaint}; the {count} frames that could be read were "
                "delivered: check the sender"
            )
        self.ended = True

    def _again(self) -> None:
        """Reach the sender again. Raises `SourceError` when the patience is at its end."""
        since = time.monotonic()
        if self._link is not self._first:
            self._link.container.close()
        attempt, words = 0, self._link.health.complaint or "the sender ended"
        while not self._stop.is_set():
            gone_s = time.monotonic() - since
            pause_s = self._backoff.pause_s(attempt, gone_s, random.random())
            if pause_s is None:
                raise SourceError(
                    f"{self._place}: gone for {gone_s:.0f} s after {attempt} attempts ({words}); "
                    "expected it to come back: start it again, or wait longer with --patience-s"
                )
            if self._stop.wait(pause_s):
                return
            attempt += 1
            try:
                self._link = Link(self._place, self._asked)
            except SourceError as error:
                words = str(error).partition("(")[2].partition(")")[0] or "no picture"
                continue
            self._timeline.broke()
            self._match_sound()
            gone_s = time.monotonic() - since
            self.remarks.append(f"{self._place} was gone for {gone_s:.1f} s")
            return

    def _match_sound(self) -> None:
        """A sink's tracks were made for the first sound: another kind of it is left out."""
        if not self._sound.streams:
            self._link.sounds.clear()
            return
        before = self._sound.streams[0].codec_context
        now = self._link.audio[0].codec_context if self._link.audio else None
        if now is None or (now.name, now.sample_rate) != (before.name, before.sample_rate):
            self.remarks.append("the sound changed its kind on the way and is left out from there")
            self._sound.stop()

    def _release(self) -> None:
        self._link.container.close()
        # The sink's tracks were made from the streams of this one.
        self._first.container.close()
