"""Pictures as they are: Y4M or RGB on standard output, a virtual camera. Without sound."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream

from ..frame import Frame
from .film import FAULTS
from .places import Place
from .sinks import Sink
from .sources import VideoSource

FORMATS = {
    "y4m": ("yuv4mpegpipe", "wrapped_avframe", "yuv420p"),
    "raw": ("rawvideo", "rawvideo", "rgb24"),
    "camera": ("v4l2", "rawvideo", "yuyv422"),
}
"""Kind of place -> libav's container, codec and pixels."""


class RawSink(Sink):
    """Pictures through libav without compression. Y4M has no times: they lie in its rate."""

    def __init__(self, place: Place, source: VideoSource, height: int, width: int) -> None:
        super().__init__(str(place), height, width)
        self.live = place.live
        container, codec, self._pixels = FORMATS[place.kind]
        if source.sound is not None:
            self.remarks.append(f"the sound is left out: {place} takes pictures alone")
        self._out: OutputContainer | None = None
        self._count = 0
        with self.told("opened"):
            self._out = av.open(place.url, "w", format=container, options={"flush_packets": "1"})
            video = self._out.add_stream(codec, rate=source.rate)
            assert isinstance(video, VideoStream)
            video.height, video.width, video.pix_fmt = height, width, self._pixels
            video.codec_context.thread_count = 1
            self._time_base = Fraction(1 / source.rate)
            self._video = video
            self._out.start_encoding()

    def write(self, frame: Frame) -> None:
        assert self._out is not None, "the sink is closed"
        self.check(frame)
        picture = VideoFrame.from_ndarray(np.ascontiguousarray(frame.rgb), format="rgb24")
        if self._pixels != "rgb24":
            picture = picture.reformat(
                format=self._pixels,
                dst_colorspace=Colorspace.ITU601,
                dst_color_range=ColorRange.MPEG,
                threads=1,
            )
        picture.pts, picture.time_base = self._count, self._time_base
        self._count += 1
        with self.told("written"):
            for packet in self._video.encode(picture):
                self._out.mux_one(packet)

    def close(self) -> None:
        if self._out is not None:
            out, self._out = self._out, None
            with self.told("finished"):
                out.close()

    def abort(self) -> None:
        """What was written is gone."""
        if self._out is not None:
            out, self._out = self._out, None
            try:
                out.close()
            except FAULTS:
                return
