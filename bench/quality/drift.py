"""A stream at length: does its last minute look like its first?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bench.quality.clips import Clip, looping
from bench.quality.measures import filtered, psnr
from bench.quality.report import Line, Section
from rt import Pipeline

PERIOD, MINUTE = 64, 15 * 64
"""Frames of a round, and of a minute at 16 FPS: whole rounds, so that both minutes show the same.
"""


def measure(pipeline: Pipeline, styles: tuple[str, ...], frames: int) -> Section:
    """A round camera path for `frames` frames, rounded up to whole rounds."""
    size = pipeline.manifest.geometry.height
    total = -(-frames // PERIOD) * PERIOD
    minute = min(MINUTE, total // 2 // PERIOD * PERIOD)
    once = looping(PERIOD, size)
    lines = []
    for style in styles:
        truth = np.concatenate([filtered(once, style)] * (minute // PERIOD))
        first, last = _ends(pipeline, once, style, total, minute)
        lines += _compared(f"{style}, {total} frames", truth, first, last)
    return Section("drift", lines)


def _ends(pipeline: Pipeline, once: Clip, style: str, total: int, minute: int) -> tuple[Clip, Clip]:
    """The first and the last minute of a stream, without keeping what lies between."""
    first: list[NDArray[np.uint8]] = []
    last: list[NDArray[np.uint8]] = []
    with pipeline.session(prompt=style) as session:
        source = (once[i % len(once)] for i in range(total))
        for number, frame in enumerate(session.stream(source)):
            if number < minute:
                first.append(frame.rgb)
            if number >= total - minute:
                last.append(frame.rgb)
    return np.stack(first), np.stack(last)


def _compared(name: str, truth: Clip, first: Clip, last: Clip) -> list[Line]:
    before, after = _moments(first), _moments(last)
    mean, deviation = (100 * np.abs(after / np.maximum(before, 1) - 1)).max(axis=1)
    earlier, later = psnr(first, truth), psnr(last, truth)
    note = f"{earlier:.2f} dB, then {later:.2f} dB"
    return [
        Line(f"{name}: mean of a channel", float(mean), "% moved", most=2.0),
        Line(f"{name}: standard deviation of a channel", float(deviation), "% moved", most=2.0),
        Line(f"{name}: PSNR to the filter", abs(later - earlier), "dB moved", most=0.5, note=note),
    ]


def _moments(pictures: Clip) -> NDArray[np.float64]:
    """Mean and standard deviation of each channel, [2, 3]; frame by frame, to save memory."""
    means = np.mean([p.mean(axis=(0, 1)) for p in pictures], axis=0)
    squares = np.mean([(p.astype(np.float64) ** 2).mean(axis=(0, 1)) for p in pictures], axis=0)
    return np.stack([means, np.sqrt(squares - means**2)])
