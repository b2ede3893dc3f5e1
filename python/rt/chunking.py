"""Groups frames into chunks: 1 frame, then 4 and 4 and 4, because Wan's first latent frame encodes
one picture.
"""

from __future__ import annotations

import itertools

from .config import Start
from .frame import Chunk, Frame, Phase

FRAMES_PER_CHUNK = 4
GAP_S = 1.0
"""A pause in the source after which the picture before is no predecessor (DESIGN section 4)."""


class Chunker:
    """Owns the frames of one session that are not yet a chunk. Every frame ends in exactly one
    chunk, in order.

    start "fast": the first chunk as soon as there is one frame. "full": when there are five, with
    the second chunk.
    """

    def __init__(self, session: int, start: Start) -> None:
        self._session = session
        self._full = start == "full"
        self._frames: list[Frame] = []
        self._next = 0
        self._last_pts_s: float | None = None
        self._before_pts_s: float | None = None

    @property
    def completes(self) -> bool:
        """Whether the next frame completes a chunk."""
        if self._next == 0:
            return not self._full or len(self._frames) == FRAMES_PER_CHUNK
        return len(self._frames) + 1 == FRAMES_PER_CHUNK

    def push(self, frame: Frame) -> list[Chunk]:
        """The chunks that are complete with this frame: none, one, or two at the end of a full
        start.
        """
        complete = self.completes
        self._frames.append(frame)
        return self._take(complete=True) if complete else []

    def flush(self) -> list[Chunk]:
        """The source ended or paused: what is left, the last chunk perhaps with fewer frames."""
        return self._take(complete=False)

    def discard(self) -> int:
        """Give up the frames that are not yet a chunk. Returns how many they were."""
        count = len(self._frames)
        self._frames.clear()
        return count

    def forget(self, chunk: Chunk) -> None:
        """The newest chunk was dropped: the next one takes its index, and continues what this one
        continued.
        """
        assert chunk.index == self._next - 1
        self._next = chunk.index
        self._last_pts_s = self._before_pts_s

    def _take(self, *, complete: bool) -> list[Chunk]:
        chunks = []
        while self._frames:
            size = 1 if self._next == 0 else FRAMES_PER_CHUNK
            if complete and len(self._frames) < size:
                break
            chunks.append(self._chunk(tuple(self._frames[:size])))
            del self._frames[:size]
        return chunks

    def _chunk(self, frames: tuple[Frame, ...]) -> Chunk:
        """A chunk continues its predecessor unless pts jump, forwards by more than a gap or
        backwards, to or in it.
        """
        times = [t for t in (self._last_pts_s, *(f.pts_s for f in frames)) if t is not None]
        smooth = all(0 <= b - a <= GAP_S for a, b in itertools.pairwise(times))
        index = self._next
        self._next += 1
        self._before_pts_s, self._last_pts_s = self._last_pts_s, frames[-1].pts_s
        phase: Phase = "first" if index == 0 else "step"
        return Chunk(self._session, index, phase, frames, continues=index > 0 and smooth)
