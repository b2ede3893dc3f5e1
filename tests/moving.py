"""Pictures that move, and what a pipeline makes of them. Needs no torch: a process of its own that
only streams starts at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import rt

SIZE = 64
"""Height and width in pixels: 4x4 tokens per latent frame."""

Pictures = list[NDArray[np.uint8]]
PROMPT = "a pencil sketch"


def scene(count: int, seed: int = 0) -> Pictures:
    """A texture that slides, with a jump in the middle: motion, then a new scene."""
    rng = np.random.default_rng(seed)
    texture = rng.integers(0, 255, (SIZE, 4 * SIZE, 3), dtype=np.uint8)
    return [
        np.roll(texture, (-3 * i, 7 * (i > count // 2)), (1, 0))[:, :SIZE].copy()
        for i in range(count)
    ]


def shaken(count: int) -> Pictures:
    """A smooth picture that moves a little, by another amount each time: scores between 0 and 1."""
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    rng = np.random.default_rng(1)
    offsets = np.cumsum(rng.uniform(0, 0.05, count))
    waves = [np.sin(2 * np.pi * (x + o))[..., None] * [60, 40, 20] for o in offsets]
    return [np.clip(128 + wave + 30 * y[..., None], 0, 255).astype(np.uint8) for wave in waves]


def restyle(pipeline: rt.Pipeline, pictures: Sequence[Any], **options: Any) -> Pictures:
    with pipeline.session(prompt=PROMPT, **options) as session:
        return [frame.rgb for frame in session.stream(pictures)]


def equal(a: Pictures, b: Pictures) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
