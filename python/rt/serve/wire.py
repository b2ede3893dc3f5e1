"""Messages of the WebSocket: one msgpack map each. Strict: an unknown key or type is refused.

In: {"pts_s": float, "format": "jpeg", "data": bytes}, or "format": "raw" with "height" and "width"
(uint8, rows of RGB), or {"ack": index}. Out: {"index", "pts_s", "latency_ms", "late", "format",
"data"}. Status goes out as JSON text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from ..errors import SourceError
from .limits import Limits
from .pictures import decode_jpeg

_FRAME = {"pts_s", "format", "data"}
_RAW = _FRAME | {"height", "width"}


@dataclass(frozen=True, slots=True)
class Picture:
    """A frame as it arrived: decoded only if it is taken. `height` and `width` are None in JPEG."""

    pts_s: float
    data: bytes
    height: int | None
    width: int | None

    def rgb(self, limits: Limits) -> NDArray[np.uint8]:
        """uint8 [H, W, 3]. Raises SourceError for broken data."""
        if self.height is None or self.width is None:
            return decode_jpeg(self.data, limits.frame_pixels)
        return np.frombuffer(self.data, np.uint8).reshape(self.height, self.width, 3)


@dataclass(frozen=True, slots=True)
class Ack:
    """The client has shown every frame up to `index`."""

    index: int


def read(message: bytes, limits: Limits) -> Picture | Ack:
    """What a client sent. Raises SourceError for everything that is not exactly one message."""
    if len(message) > limits.frame_bytes:
        raise SourceError(f"message: got {len(message)} bytes, expected <= {limits.frame_bytes}")
    try:
        content = msgpack.unpackb(message, raw=False)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise SourceError(
            f"message: {len(message)} bytes are no msgpack value ({type(error).__name__}); "
            "expected one map"
        ) from None
    keys = set(content) if isinstance(content, dict) else set()
    if keys == {"ack"} and _is_index(content["ack"]):
        return Ack(content["ack"])
    if keys == _FRAME and content["format"] == "jpeg":
        return _picture(content, None, None)
    if keys == _RAW and content["format"] == "raw":
        height, width = content["height"], content["width"]
        if not (_is_index(height) and _is_index(width) and height * width > 0):
            raise SourceError("height, width: expected whole numbers above 0")
        if height * width > limits.frame_pixels:
            raise SourceError(f"frame: got {width}x{height}, expected <= {limits.frame_pixels}")
        return _picture(content, height, width)
    names = sorted(str(key)[:20] for key in keys)[:8]
    raise SourceError(
        f"message: got the keys {names}, expected pts_s, format, data (jpeg), these with height "
        "and width (raw), or ack"
    )


def _picture(content: dict[str, Any], height: int | None, width: int | None) -> Picture:
    pts_s, data = content["pts_s"], content["data"]
    if not isinstance(pts_s, float) or not math.isfinite(pts_s) or not 0 <= pts_s < 1e9:
        raise SourceError(f"pts_s: got {str(pts_s)[:20]}, expected seconds, a float from 0 to 1e9")
    if not isinstance(data, bytes):
        raise SourceError(f"data: got {type(data).__name__}, expected bytes")
    if height is not None and width is not None and len(data) != height * width * 3:
        raise SourceError(f"data: got {len(data)} bytes, expected {width}x{height}x3")
    return Picture(pts_s, data, height, width)


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 40


def restyled(index: int, pts_s: float, latency_ms: float, late: bool, jpeg: bytes) -> bytes:
    """A frame on its way out."""
    message = {
        "index": index,
        "pts_s": pts_s,
        "latency_ms": latency_ms,
        "late": late,
        "format": "jpeg",
        "data": jpeg,
    }
    packed: bytes = msgpack.packb(message)
    return packed
