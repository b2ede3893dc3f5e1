"""The cheap rival of a style: colours to the second power and a 3x3 filter, fitted on training
clips. A structural style that is no better than this has learned no structure.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from bench.quality.clips import Clip
from export.tiny.data import clip
from export.tiny.denoiser import CLIPS_FROM
from export.tiny.styles import STYLES, Picture

Fit = NDArray[np.float64]
"""Features -> RGB, [features, 3]."""

CLIPS = 40


def fitted(size: int) -> dict[str, Fit]:
    """For each style the least squares over one frame of each of the first training clips."""
    pictures = [clip(0, CLIPS_FROM + i, 1, size)[0] for i in range(CLIPS)]
    features = [_features(picture) for picture in pictures]
    square = sum(f.T @ f for f in features)
    fits = {}
    for style, apply in STYLES.items():
        wanted = sum(
            f.T @ (apply(p).reshape(-1, 3) / 255.0) for f, p in zip(features, pictures, strict=True)
        )
        fits[style] = np.linalg.solve(square + 1e-6 * np.eye(len(square)), wanted)
    return fits


def applied(fit: Fit, source: Clip) -> Clip:
    """A clip through a fit, frame by frame."""
    made = [_features(picture) @ fit for picture in source]
    levels = np.clip(np.stack(made), 0, 1).reshape(source.shape) * 255
    return np.rint(levels).astype(np.uint8)


def _features(picture: Picture) -> NDArray[np.float64]:
    """Per pixel 1, the products of its colours, and the colours of 3x3 pixels: [H * W, 34]."""
    colour = picture.astype(np.float64) / 255
    padded = cv2.copyMakeBorder(colour, 1, 1, 1, 1, cv2.BORDER_REFLECT_101)
    height, width = picture.shape[:2]
    around = [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]
    red, green, blue = (colour[..., i : i + 1] for i in range(3))
    products = [red * red, green * green, blue * blue, red * green, red * blue, green * blue]
    parts = [np.ones_like(red), *products, *around]
    return np.concatenate(parts, axis=-1).reshape(height * width, -1)
