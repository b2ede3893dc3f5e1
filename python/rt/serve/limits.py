"""What a server grants a client, and how a rate is counted. Pure: the clock is passed in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one server. Sizes in bytes, times in seconds, rates per second."""

    sessions: int = 1
    frame_bytes: int = 2_000_000
    frame_pixels: int = 4096 * 2160
    body_bytes: int = 64_000
    messages_per_s: float = 240.0
    idle_s: float = 30.0
    life_s: float = 4 * 3600.0
    drain_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Media:
    """What WebRTC sends from, and how much of it. `host` is an address, not a name."""

    host: str
    bits_per_s: int = 2_500_000


class MessageRate:
    """A bucket that holds one second's worth of messages and refills steadily."""

    def __init__(self, per_s: float, now_s: float) -> None:
        self._per_s = per_s
        self._left = per_s
        self._at_s = now_s

    def allows(self, now_s: float) -> bool:
        """Count one message at `now_s`; False if it is one too many."""
        self._left = min(self._per_s, self._left + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s
        if self._left < 1:
            return False
        self._left -= 1
        return True
