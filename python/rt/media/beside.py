"""Two pictures beside each other: the input at the size of the output, then the output."""

from __future__ import annotations

from typing import Any

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation
from numpy.typing import NDArray


def side_by_side(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`left` [h, w, 3], its middle cut out and resized to the size of `right` [H, W, 3], then
    `right`: uint8 [H, 2 W, 3].
    """
    height, width = right.shape[:2]
    both = np.empty((height, 2 * width, 3), np.uint8)
    both[:, :width] = _fitted(left, height, width)
    both[:, width:] = right
    return both


def _fitted(rgb: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    rows, columns = rgb.shape[:2]
    if rows * width > columns * height:
        rows = max(1, round(columns * height / width))
    else:
        columns = max(1, round(rows * width / height))
    top, left = (rgb.shape[0] - rows) // 2, (rgb.shape[1] - columns) // 2
    rgb = rgb[top : top + rows, left : left + columns]
    if (rows, columns) == (height, width):
        return rgb
    # Area weighting is free of moire when shrinking; when enlarging it would show blocks.
    way = Interpolation.AREA if rows >= height else Interpolation.BICUBIC
    way |= Interpolation.FULL_CHR_H_INP | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
    frame = VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
    resized: Any = frame.reformat(width=width, height=height, interpolation=int(way), threads=1)
    return np.asarray(resized.to_ndarray(), np.uint8)
