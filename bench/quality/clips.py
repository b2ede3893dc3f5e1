"""What the model is shown: a file, generated clips of unseen seeds, and scenes made for one
question.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from matplotlib import cbook
from numpy.typing import NDArray

from export.tiny.data import clip
from rt.media import open_source

Clip = NDArray[np.uint8]
"""uint8 [T, H, W, 3], RGB."""

UNSEEN = 9_000_000
"""Index of the generated clips, from which no training draws."""


def of_file(path: Path, count: int, height: int, width: int) -> Clip:
    """The first `count` frames of a file, its centre cropped to the aspect of the engine."""
    made = []
    for frame in islice(open_source(path), count):
        rgb = frame.rgb
        scale = max(height / rgb.shape[0], width / rgb.shape[1])
        size = (round(rgb.shape[1] * scale), round(rgb.shape[0] * scale))
        shrunk = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
        top, left = (size[1] - height) // 2, (size[0] - width) // 2
        made.append(shrunk[top : top + height, left : left + width])
    if len(made) < count:
        raise SystemExit(f"error: {path}: got {len(made)} frames, expected at least {count}")
    return np.stack(made)


def generated(number: int, frames: int, size: int) -> Clip:
    """One of the generated clips that nothing was trained on."""
    return clip(0, UNSEEN + number, frames, size)


def looping(frames: int, size: int, period: int = 64) -> Clip:
    """A camera that goes round over a photo and is back after `period` frames, to the bit."""
    steps = np.arange(min(frames, period)) * (2 * np.pi / period)
    once = np.stack([_view(24 * np.cos(a), 16 * np.sin(2 * a), size) for a in steps])
    return once[np.arange(frames) % len(once)]


def panned(pixels: float, frames: int, size: int) -> Clip:
    """A camera that goes to and fro over a photo, `pixels` in a frame."""
    reach = 60.0
    path = np.arange(frames) * pixels
    offset = np.abs((path + reach) % (4 * reach) - 2 * reach) - reach
    return np.stack([_view(float(x), 0.0, size) for x in offset])


def flickering(frames: int, size: int) -> Clip:
    """A camera at rest; the light goes up and down by a fifth from frame to frame."""
    rng = np.random.default_rng(11)
    still = _view(0.0, 0.0, size).astype(np.float32)
    gains = 1 + 0.2 * rng.uniform(-1, 1, frames)
    return np.stack([np.clip(still * gain, 0, 255).astype(np.uint8) for gain in gains])


def cut(frames: int, size: int) -> Clip:
    """A slow pan, and from the middle on another scene."""
    half = frames // 2
    other = np.ascontiguousarray(panned(0.5, frames - half, size)[:, ::-1, :, ::-1])
    return np.concatenate([panned(0.5, half, size), other])


def _view(x: float, y: float, size: int) -> Clip:
    """A part of a photo that lies (x, y) pixels beside its middle. No clip for training has it."""
    path = cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    photo = np.asarray(cv2.imread(str(path), cv2.IMREAD_COLOR), np.uint8)[..., ::-1]
    scale = 1.4 * size / min(photo.shape[:2])
    height, width = photo.shape[:2]
    matrix = np.array(
        [
            [1 / scale, 0, width / 2 + (x - size / 2) / scale],
            [0, 1 / scale, height / 2 + (y - size / 2) / scale],
        ]
    )
    flags = cv2.INTER_AREA | cv2.WARP_INVERSE_MAP
    shot = cv2.warpAffine(photo, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_REFLECT)
    return np.asarray(shot, np.uint8)
