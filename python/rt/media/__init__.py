"""Pictures in and pictures out: files, folders of pictures, cameras, networks, pipes.

The only part of `rt` that imports PyAV, and imported only by the command lines: `import rt` needs
no video library.
"""

from .beside import side_by_side
from .clocks import Backoff, Turn
from .feed import Asked
from .opening import check_asked, check_target, open_sink, open_source
from .places import INPUTS, OUTPUTS, Place, inlet, outlet, size
from .scene import MovingScene, moving_scene
from .sinks import CONTAINERS, Sink, VideoSink
from .sources import VideoSource

__all__ = [
    "CONTAINERS",
    "INPUTS",
    "OUTPUTS",
    "Asked",
    "Backoff",
    "MovingScene",
    "Place",
    "Sink",
    "Turn",
    "VideoSink",
    "VideoSource",
    "check_asked",
    "check_target",
    "inlet",
    "moving_scene",
    "open_sink",
    "open_source",
    "outlet",
    "side_by_side",
    "size",
]
