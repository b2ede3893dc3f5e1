"""One open libav container that pictures are encoded into as H.264, with the sound beside them.

It knows nothing of what lies behind the container: a file, a server, a folder. Its errors are
libav's own; whoever owns it says them in words.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.container import OutputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from av.video.stream import VideoStream
from numpy.typing import NDArray

from .sound import Passage, Tracks
from .sources import VideoSource

ENCODER_THREADS = 1
"""The model has the processor while a stream runs; one thread keeps up with it many times over."""

FAULTS = (av.FFmpegError, OSError, ValueError)
"""What a container raises when the world behind it fails."""


class Film:
    """Pictures [height, width, 3] at ticks of the source's time base.

    `opened` gives the container: it is asked twice where the container refuses the sound as it is.
    What became of the sound is said in `remarks`.
    """

    def __init__(
        self,
        opened: Callable[[], OutputContainer],
        source: VideoSource,
        height: int,
        width: int,
        encoder: Mapping[str, str],
        sound: Passage | None,
        remarks: list[str],
    ) -> None:
        self._source, self._height, self._width = source, height, width
        self._encoder, self._remarks = encoder, remarks
        self._frame_ticks = max(1, round(1 / (source.rate * source.time_base)))
        self._last: int | None = None
        # H.264 with 4:2:0 colour has even sides only.
        self._padding = (height % 2, width % 2)
        self._sound: Tracks | None = None
        self._out = opened()
        try:
            self._begin(opened, sound)
        except BaseException:
            self.drop()
            raise

    @property
    def empty(self) -> bool:
        """Whether no picture was written."""
        return self._last is None

    def write(self, rgb: NDArray[np.uint8], pts_s: float) -> None:
        """Append uint8 [height, width, 3]."""
        ticks = round(Fraction(pts_s) / self._source.time_base)
        if self._last is not None:
            ticks = max(ticks, self._last + 1)
        self._mux(self._video.encode(self._picture(rgb, ticks)))
        self._last = ticks

    def finish(self) -> None:
        """Write what is still held, and the end."""
        self._mux(self._video.encode(None))
        if self._sound is not None:
            # An interrupted stream ends with its last picture; a whole one keeps all its sound.
            end = (self._last or 0) + self._frame_ticks
            until = None if self._source.ended else end * self._source.time_base
            for packet in self._sound.until(until):
                self._out.mux_one(packet)
            for packet in self._sound.rest():
                self._out.mux_one(packet)
        self._out.close()

    def drop(self) -> None:
        """Let go of the container. What closing complains about no longer matters."""
        with contextlib.suppress(*FAULTS):
            self._out.close()

    def _begin(self, opened: Callable[[], OutputContainer], sound: Passage | None) -> None:
        self._video = self._add_video()
        if sound is not None:
            self._sound = Tracks(sound, self._out, self._remarks) or None
        try:
            self._out.start_encoding()
        except FAULTS:
            if self._sound is None or sound is None:
                raise
            # Its head was refused, so closing it writes nothing; it is begun again.
            self.drop()
            self._out = opened()
            self._video = self._add_video()
            self._sound = Tracks(sound, self._out, self._remarks, copied=False)
            self._out.start_encoding()

    def _add_video(self) -> VideoStream:
        video = self._out.add_stream("libx264", rate=self._source.rate, options=dict(self._encoder))
        assert isinstance(video, VideoStream)
        video.height = self._height + self._padding[0]
        video.width = self._width + self._padding[1]
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

    def _mux(self, packets: list[Packet[Any]]) -> None:
        """Pictures with the sound that belongs before them: a player wants both together."""
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


def padding_remark(height: int, width: int) -> list[str]:
    """What is to be said of odd sides."""
    if height % 2 == 0 and width % 2 == 0:
        return []
    return [
        f"{width}x{height} is written as {width + width % 2}x{height + height % 2}: "
        "H.264 needs even sides; the last line is repeated"
    ]
