"""Time of what is live: when to try again, how a broken clock goes on, when a frame leaves.

Pure: time is passed in.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

JUMP_S = 5.0
"""A time this far from what the wall clock says is another clock: a sender that began again. More
than the group of pictures that servers send at once to whoever comes."""

TICK = Fraction(1, 90_000)
"""Of every live source, as in RTP and MPEG transport streams."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """When to try again to reach what went away: after `first_s`, then twice as long each time up
    to `most_s`, and no more after `patience_s`.
    """

    first_s: float = 0.25
    most_s: float = 8.0
    patience_s: float = 60.0

    def pause_s(self, attempt: int, gone_s: float, draw: float) -> float | None:
        """Before attempt 0, 1, ...; None to give up.

        `draw` in [0, 1) takes up to half of it away, so that many who lost the same peer do not
        come back in one moment. The last attempt is at the end of the patience.
        """
        left = self.patience_s - gone_s
        if left <= 0:
            return None
        longest = min(self.most_s, self.first_s * 2.0 ** min(attempt, 60))
        return min(left, longest * (1 - 0.5 * draw))


class Timeline:
    """Times of a live stream as seconds that rise from 0, through breaks and jumps of its clock."""

    def __init__(self, step_s: Fraction, jump_s: float = JUMP_S) -> None:
        self.offset_s = Fraction(0)
        """What is taken off the stream's own times."""
        self._step_s = step_s
        self._jump_s = jump_s
        self._last: tuple[Fraction, float] | None = None
        self._broken = False

    def broke(self) -> None:
        """The stream is another one from here on; its clock says nothing about the old one."""
        self._broken = True

    def place(self, stream_s: Fraction | None, now_s: float) -> Fraction:
        """Time of a picture that says `stream_s` of itself (None: nothing) and came at `now_s`."""
        if self._last is None:
            self.offset_s = stream_s or Fraction(0)
            return self._placed(Fraction(0), now_s)
        last_s, last_now_s = self._last
        next_s = last_s + self._step_s
        if stream_s is None:
            return self._placed(next_s, now_s)
        expected_s = last_s + max(Fraction(0), Fraction(now_s - last_now_s))
        time_s = stream_s - self.offset_s
        if self._broken or abs(time_s - expected_s) > self._jump_s:
            self._broken = False
            time_s = max(expected_s, next_s)
            self.offset_s = stream_s - time_s
        return self._placed(max(time_s, last_s + TICK), now_s)

    def _placed(self, time_s: Fraction, now_s: float) -> Fraction:
        time_s = round(time_s / TICK) * TICK
        self._last = time_s, now_s
        return time_s


class Turn:
    """When the frames of a stream leave for a place that plays them as they come: at their pts
    after the first. What is late moves all that follows; nothing is hurried.
    """

    def __init__(self) -> None:
        self._start_s: float | None = None

    def pause_s(self, pts_s: float, now_s: float) -> float:
        """How long to hold a frame."""
        if self._start_s is None or now_s > self._start_s + pts_s:
            self._start_s = now_s - pts_s
        return max(0.0, self._start_s + pts_s - now_s)
