"""Pictures in and pictures out: a video file or a made scene as a source, a video file as a sink.

The only part of `rt` that imports PyAV, and imported only by the command lines: `import rt` needs
no video library. Refuses live devices and networks: those belong to the server.
"""

from .scene import MovingScene, moving_scene
from .sinks import CONTAINERS, VideoSink, check_target, open_sink, side_by_side
from .sources import VideoFile, VideoSource, open_source

__all__ = [
    "CONTAINERS",
    "MovingScene",
    "VideoFile",
    "VideoSink",
    "VideoSource",
    "check_target",
    "moving_scene",
    "open_sink",
    "open_source",
    "side_by_side",
]
