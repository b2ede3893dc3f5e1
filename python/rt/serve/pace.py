"""How often a live source is sampled when the pipeline is slower than it. Pure.

Frames taken evenly restyle to even motion; bursts of neighbours with gaps between them do not.
"""

from __future__ import annotations

SLOWER = 0.5
"""Share of the time that a frame waited which is added to the spacing, spread over its chunk."""

FASTER = 0.97
"""What the spacing shrinks by with every frame that did not wait."""

WAITED_S = 0.003
"""Less than this is no waiting."""

DROPPED = 1.25
"""What the spacing grows by when the pipeline dropped frames instead of letting them wait."""

SLACK = 0.9
"""Share of a frame time after which the next frame may come: clocks of cameras tremble."""

SMALLEST_S, LARGEST_S = 0.001, 1.0


def next_spacing(spacing_s: float, waited_s: float, dropped: int, frames_per_chunk: int) -> float:
    """Seconds between two frames to take, after one that waited `waited_s` for room and during
    which `dropped` frames were given up.
    """
    if dropped:
        return min(LARGEST_S, max(spacing_s, 0.02) * DROPPED)
    if waited_s < WAITED_S:
        return max(SMALLEST_S, spacing_s * FASTER)
    return min(LARGEST_S, spacing_s + SLOWER * waited_s / frames_per_chunk)


def takes(pts_s: float, last_pts_s: float | None, spacing_s: float) -> bool:
    """Whether a frame is far enough behind the last one that was taken."""
    return last_pts_s is None or pts_s - last_pts_s >= spacing_s or pts_s < last_pts_s
