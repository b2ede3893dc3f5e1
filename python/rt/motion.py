"""From the motion of a chunk to the strength of its noise (paper section 4.1, motion-aware noise
controller).

`s = lambda (s_max - (s_max - s_min) d) + (1 - lambda) s_previous`, d = clip(max over the chunk /
reference, 0, 1): fast motion gets less noise, so that it does not tear; a still picture gets more,
so that it is restyled freely. lambda 0.9 and s_max - s_min = 0.1 are the released code's; they
stand in the manifest, because they belong to the weights. `flow` measures displacement: the 90th
percentile in a frame, against a share of the picture's diagonal, so that the score does not depend
on resolution. `difference` is the reference's measure: RMS of the frame difference in [-1, 1].
"""

from __future__ import annotations

import math

from .config import Motion

DIFFERENCE_REFERENCE = 0.2
"""RMS difference that counts as full motion (released code)."""

FLOW_REFERENCE = 0.01
"""Displacement per frame that counts as full motion, as a share of the diagonal: 9.6 px at 480x832,
a pan over the width in 5 s at 16 fps. On data (docs/motion.md): panned photos reach full motion of
`difference` at 3 to 19 px, one never; noise of sigma 8 before a still camera stays under 0.8 px.
"""


def reference_of(motion: Motion, height: int, width: int) -> float:
    """The score that counts as full motion, in the unit of the score: pixels for flow, RMS for
    difference.
    """
    return (
        DIFFERENCE_REFERENCE
        if motion == "difference"
        else FLOW_REFERENCE * math.hypot(height, width)
    )


def noise_scale(
    score: float,
    previous: float | None,
    *,
    reference: float,
    s_max: float,
    s_min: float,
    smoothing: float,
) -> float:
    """Noise scale of a chunk from its largest score, between s_min and s_max when `previous` is.

    `previous` is the chunk's before, None = it continues nothing; then the score is not read. A
    score that is no number counts as 0.
    """
    if previous is None:
        return s_max
    d = min(max(0.0, score / reference), 1.0)  # in this order NaN counts as 0, as in the op
    return smoothing * (s_max - (s_max - s_min) * d) + (1 - smoothing) * previous
