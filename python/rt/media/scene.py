"""A source that needs no file: a moving scene, computed, for demonstrations and tests."""

from __future__ import annotations

import time
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from ..frame import Frame
from .sources import Picture, VideoSource


def moving_scene(
    height: int = 256, width: int = 256, fps: float = 16.0, seconds: float = 10.0
) -> MovingScene:
    """A made video, the same on every machine: see `MovingScene`."""
    return MovingScene(height, width, fps, seconds)


class MovingScene(VideoSource):
    """Coloured balls over a landscape of soft waves, computed from the frame number alone.

    The camera pans; from 40 % to 50 % of the length all stands still; from 70 % to 80 % the light
    flickers and nothing else changes its way. So motion, rest and a change that is no motion can
    all be seen.
    """

    PAUSE = (0.4, 0.5)
    FLICKER = (0.7, 0.8)

    def __init__(self, height: int, width: int, fps: float, seconds: float) -> None:
        assert min(height, width, fps, seconds) > 0
        self.height, self.width = height, width
        self.remarks = []
        self.rate = Fraction(fps).limit_denominator(1001)
        self.time_base = 1 / self.rate
        self.frame_count: int = max(1, round(seconds * fps))
        self._ground = _ground(2 * height, 2 * width)
        short = min(height, width)
        self._balls = [
            _ball(max(3, round(short * share)), colour)
            for share, colour in (
                (0.30, (235, 94, 40)),
                (0.20, (72, 149, 239)),
                (0.14, (250, 210, 70)),
            )
        ]

    def __iter__(self) -> Iterator[Frame]:
        for index in range(self.frame_count):
            pts_s = float(index * self.time_base)
            yield Frame(self.picture(index), index, pts_s, time.perf_counter_ns())
        self.ended = True

    def picture(self, index: int) -> Picture:
        """Frame `index`, uint8 [H, W, 3]."""
        at = index / self.frame_count
        begin, end = self.PAUSE
        stands = np.floor(end * self.frame_count) - np.ceil(begin * self.frame_count)
        if at < begin:
            moved = index
        elif at < end:
            moved = int(np.ceil(begin * self.frame_count))
        else:
            moved = index - int(max(0, stands))
        clock_s = moved / float(self.rate)
        rgb = self._pan(clock_s)
        for number, (ball, mask) in enumerate(self._balls):
            self._place(rgb, ball, mask, number, clock_s)
        if self.FLICKER[0] <= at < self.FLICKER[1]:
            # Up to +-12 %, in steps that no period of the frames hides.
            gain = 256 + round(31 * np.sin(2.4 * index))
            rgb = np.minimum(rgb.astype(np.uint16) * np.uint16(gain) >> 8, 255).astype(np.uint8)
        return rgb

    def _pan(self, clock_s: float) -> Picture:
        """A window of the ground that wanders without leaving it: the ground is twice as large."""
        y = round(self.height * (0.5 + 0.45 * np.sin(0.31 * clock_s)))
        x = round(self.width * (0.5 + 0.48 * np.sin(0.47 * clock_s + 0.6)))
        return self._ground[y : y + self.height, x : x + self.width].copy()

    def _place(
        self, rgb: Picture, ball: Picture, mask: NDArray[np.bool_], number: int, clock_s: float
    ) -> None:
        size = ball.shape[0]
        sway = np.sin((0.9 + 0.35 * number) * clock_s + 2.1 * number)
        hop = abs(np.cos((1.3 + 0.25 * number) * clock_s + number))
        x = round((self.width - size) * (0.5 + 0.5 * sway))
        y = round((self.height - size) * (1 - 0.85 * hop))
        view = rgb[max(y, 0) : y + size, max(x, 0) : x + size]
        rows, columns = view.shape[:2]
        np.copyto(view, ball[:rows, :columns], where=mask[:rows, :columns, None])


def _ground(height: int, width: int) -> Picture:
    """Hills of several wavelengths in three colours with a fine grain, uint8 [height, width, 3]."""
    rng = np.random.Generator(np.random.Philox(7))
    y, x = np.mgrid[0:height, 0:width] * (512 / max(height, width))
    hills = np.zeros((height, width))
    for octave in range(6):
        fy, fx = rng.normal(size=2) * 2.0**octave * 0.012
        hills += np.sin(fy * y + fx * x + rng.uniform(0, 6.283)) * 0.75**octave
    checks = np.sign(np.sin(x * 0.098) * np.sin(y * 0.098)) * 0.22
    level = 0.5 + 0.16 * hills + 0.5 * checks
    grain = rng.normal(0, 5, size=(height, width, 1))
    dark, light = np.array([24.0, 60.0, 78.0]), np.array([214.0, 222.0, 178.0])
    rgb: NDArray[np.float64] = dark + (light - dark) * np.clip(level, 0, 1)[..., None] + grain
    return np.clip(rgb, 0, 255).astype(np.uint8)


def _ball(size: int, colour: tuple[int, int, int]) -> tuple[Picture, NDArray[np.bool_]]:
    """A lit ball with stripes, uint8 [size, size, 3], and where it is, [size, size]."""
    y, x = (np.mgrid[0:size, 0:size] + 0.5) * (2 / size) - 1
    depth = np.sqrt(np.clip(1 - x * x - y * y, 0, None))
    light = np.clip(0.25 + 0.75 * (0.55 * depth - 0.5 * x - 0.6 * y), 0.12, 1.0)
    stripes = np.where(np.sin(7 * (x + 0.6 * y)) > 0.35, 0.62, 1.0)
    rgb = np.array(colour) * (light * stripes)[..., None]
    return rgb.astype(np.uint8), depth > 0
