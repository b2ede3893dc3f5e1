"""From a place to its source or sink: the only list of which kind is which class."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import ConfigError, SinkError
from .clocks import Backoff
from .feed import Asked, Feed
from .files import VideoFile
from .images import Images, PngFrames, check_pictures
from .mjpeg import MjpegSink
from .places import Place, inlet, outlet
from .push import HlsSink, PushSink
from .raw import RawSink
from .sinks import Sink, VideoSink, check_file, check_folder
from .sources import VideoSource

ASKED = Asked()
BACKOFF = Backoff()


def open_source(
    given: str | Path | Place, asked: Asked = ASKED, backoff: Backoff = BACKOFF
) -> VideoSource:
    """The source that `given` names, see docs/run.md; a `Path` is a file, whatever its name.

    `backoff` says how long a live source may stay away. Raises `SourceError` for what cannot be
    reached, is no video or has no picture.
    """
    place = given if isinstance(given, Place) else inlet(given)
    check_asked(place, asked)
    if place.kind == "file":
        assert place.path is not None
        return VideoFile(place.path)
    if place.kind == "images":
        assert place.path is not None
        return Images(place.path, asked.fps)
    return Feed(place, asked, backoff)


def open_sink(
    given: str | Path | Place,
    source: VideoSource,
    height: int,
    width: int,
    backoff: Backoff = BACKOFF,
) -> Sink:
    """The sink that `given` names for pictures [height, width, 3], with times and sound of
    `source`; see docs/run.md. A `Path` is a file, whatever its name.

    Raises `SinkError` for whatever cannot be written.
    """
    place = given if isinstance(given, Place) else outlet(given)
    check_target(place, source)
    match place.kind:
        case "images":
            assert place.path is not None
            return PngFrames(place.path, height, width)
        case "rtmp" | "rtsp":
            return PushSink(place, source, height, width, backoff)
        case "hls":
            return HlsSink(place, source, height, width)
        case "mjpeg":
            return MjpegSink(place, height, width)
        case "y4m" | "raw" | "camera":
            return RawSink(place, source, height, width)
    assert place.path is not None
    return VideoSink(place.path, source, height, width)


def check_asked(place: Place, asked: Asked) -> None:
    """Raises ConfigError for a size or a rate that a source would not heed, or lacks."""
    if place.kind == "raw" and (asked.size is None or asked.fps is None):
        raise ConfigError(
            "input: raw pictures say nothing of themselves; give --input-size 640x480 "
            "and --input-fps 25"
        )
    if asked.size is not None and place.kind not in ("raw", "camera"):
        raise ConfigError(f"input-size: is for raw: and cameras; {place} has a size of its own")
    if asked.fps is not None and place.kind not in ("raw", "camera", "images"):
        raise ConfigError(
            f"input-fps: is for raw:, cameras and pictures; {place} has a rate of its own"
        )
    if asked.fps is not None and not 0 < asked.fps <= 1000:
        raise ConfigError(f"input-fps: got {asked.fps}, expected above 0 and at most 1000")


def check_target(given: str | Path | Place, source: VideoSource) -> None:
    """Raises `SinkError` where something visible speaks against writing there.

    `open_sink` does this itself; it can be asked before anything slow begins.
    """
    place = given if isinstance(given, Place) else outlet(given)
    if place.path is None:
        return
    if place.kind == "images":
        check_pictures(place.path)
    elif place.kind == "hls":
        check_folder(place.path)
    elif place.kind == "file":
        check_file(place.path, source)
    elif not os.access(place.path, os.W_OK):
        raise SinkError(
            f"{place}: is no device that can be written; expected a virtual camera: "
            "modprobe v4l2loopback makes one"
        )
