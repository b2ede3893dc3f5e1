"""What a session makes of pictures before they are a chunk: anything that is one becomes a `Frame`,
in the model's aspect ratio. It refuses what is no picture, and a change of size.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .config import SessionConfig
from .errors import SourceError
from .frame import Array, Frame
from .manifest import Geometry

DEFAULT_FPS = 16.0
"""Rate at which plain arrays are taken to follow each other when neither pts nor an SLO says so."""


class Intake:
    """Owns the count and the size of a session's frames."""

    def __init__(self, config: SessionConfig, geometry: Geometry) -> None:
        self.count = 0
        self._config = config
        self._geometry = geometry
        self._shape: tuple[int, ...] | None = None

    def frame(self, frame: Frame | Any) -> Frame:
        """A picture as the next frame; `counted` says that it was taken. Raises SourceError."""
        rgb: Array = frame.rgb if isinstance(frame, Frame) else _copied(frame)
        if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape:
            raise SourceError(
                f"frame {self.count}: got {rgb.dtype} {list(rgb.shape)}, expected uint8 [H, W, 3]"
            )
        if self._shape not in (None, rgb.shape):
            raise SourceError(
                f"frame {self.count}: got {list(rgb.shape)}, "
                f"expected {list(self._shape or ())} as before; open another session"
            )
        self._shape = rgb.shape
        if isinstance(frame, Frame):
            return frame
        slo = self._config.slo
        fps = slo.fps if slo is not None and slo.fps is not None else DEFAULT_FPS
        return Frame(rgb, self.count, self.count / fps, time.perf_counter_ns())

    def counted(self) -> None:
        """The last frame was taken."""
        self.count += 1

    def crop(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The centre of a picture, in the model's aspect ratio: a view."""
        if self._config.fit == "stretch":
            return rgb
        g = self._geometry
        height, width = rgb.shape[:2]
        kept_width = min(width, max(1, round(height * g.width / g.height)))
        kept_height = min(height, max(1, round(width * g.height / g.width)))
        top, left = (height - kept_height) // 2, (width - kept_width) // 2
        return rgb[top : top + kept_height, left : left + kept_width]

    def remark(self) -> list[str]:
        """What the user should know of the size, in a line."""
        g, (height, width, _) = self._geometry, self._shape or (0, 0, 0)
        if (height, width) == (g.height, g.width):
            return []
        how = "cropped and resized" if self._config.fit == "crop" else "stretched"
        size = f"{how} to {g.width}x{g.height}, the engine's size"
        return [f"the input is {width}x{height}: {size}"]


_HOST = (1, 3)
"""How DLPack calls memory that NumPy reads, pageable and pinned; not all can be asked for it."""


def _copied(picture: Any) -> Array:
    """Anything that NumPy can read, or that speaks DLPack, as an array of its own."""
    try:
        if hasattr(picture, "__dlpack__") and not isinstance(picture, np.ndarray):
            if picture.__dlpack_device__()[0] in _HOST:
                return np.from_dlpack(picture).copy()
            return np.from_dlpack(picture, device="cpu").copy()
        return np.array(picture)
    except (ValueError, TypeError, BufferError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise SourceError(
            f"frame: got {type(picture).__name__} ({reason}), expected uint8 [H, W, 3]"
        ) from None
