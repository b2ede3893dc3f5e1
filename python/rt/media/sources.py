"""What any source offers: frames in order, and what a sink has to know of them.

A source gives upright RGB pictures of square pixels, all of one size, with strictly rising times.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ..frame import Frame
from .sound import Sound

Picture = NDArray[np.uint8]
"""uint8 [H, W, 3], red green blue."""

DEFAULT_RATE = Fraction(25)
"""For a stream that names no rate and has too few frames to tell."""


class VideoSource(ABC):
    """An iterable of `Frame`, and what a sink has to know of it. A context manager."""

    height: int
    """Rows of every picture, after rotation."""
    width: int
    """Columns of every picture, after rotation."""
    rate: Fraction
    """Frames per second; the mean where the rate varies."""
    time_base: Fraction
    """Seconds per tick: every `pts_s` is a whole number of these."""
    path: Path | None = None
    """The file that is read, if it is one."""
    frame_count: int | None = None
    """What the container declares; a damaged or an edited file may hold another number."""
    sound: Sound | None = None
    """Where the sound is, if there is any."""
    live: bool = False
    """Whether frames come at their own times, and are lost where nobody takes them."""
    ended: bool = False
    """True once an iteration reached the end: sound after the last picture then belongs to it."""
    remarks: list[str]
    """What happened to it, in sentences."""

    @abstractmethod
    def __iter__(self) -> Iterator[Frame]: ...

    def close(self) -> None:  # noqa: B027 - most sources hold nothing
        """Release what is open. Harmless when repeated."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
