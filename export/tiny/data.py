"""Clips made on the fly: layered scenes over photos and generated pictures, and a moving camera.

A clip is a function of (seed, index, frames, size). The photos are those that scikit-image and
scikit-learn carry in their packages; nothing is downloaded, and no video that the model is judged
on is read here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from export.tiny.styles import Picture

Clip = NDArray[np.uint8]
"""uint8 [T, H, W, 3], RGB."""

_PHOTOS = (
    "astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "china.jpg",
    "flower.jpg", "motorcycle_right.png", "hubble_deep_field.jpg", "ihc.png", "retina.jpg",
    "camera.png", "coins.png", "brick.png", "color.png", "moon.png", "grass.png", "gravel.png",
    "clock_motion.png", "page.png",
)  # fmt: skip
_FAVOURED = 7
"""The first of them, ordinary scenes, are drawn more often."""

_VIEW = 256
"""Pixels across which a camera sees a scene; a smaller clip is a part of that view."""


@dataclass(frozen=True, slots=True)
class Camera:
    """A path over a picture: where it looks, at which scale and angle, and how these change."""

    start: NDArray[np.float64]
    velocity: NDArray[np.float64]
    shake: NDArray[np.float64]

    def matrix(self, frame: int, size: int) -> NDArray[np.float64]:
        """Output pixel -> picture pixel, float64 [2, 3]."""
        x, y, zoom, angle = self.start + self.velocity * frame + self.shake[frame]
        cos, sin = np.cos(angle) * np.exp(zoom), np.sin(angle) * np.exp(zoom)
        centre = (size - 1) / 2
        return np.array(
            [
                [cos, -sin, x - centre * (cos - sin)],
                [sin, cos, y - centre * (sin + cos)],
            ]
        )


def clip(seed: int, index: int, frames: int, size: int) -> Clip:
    """`frames` pictures of `size` x `size` pixels."""
    rng = np.random.default_rng([seed, index])
    cut = int(rng.integers(1, frames)) if frames > 1 and rng.random() < 0.12 else frames
    parts = [_scene(rng, count, size) for count in (cut, frames - cut) if count]
    return np.concatenate(parts)


def _scene(rng: np.random.Generator, frames: int, size: int) -> Clip:
    """One shot: a background, up to three things that move over it, light that changes."""
    background, camera = _camera(rng, _picture(rng), frames)
    layers = [_layer(rng, size) for _ in range(rng.choice([0, 1, 2, 3]))]
    light = _light(rng, frames)
    made = np.empty((frames, size, size, 3), np.uint8)
    for frame in range(frames):
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        shot = cv2.warpAffine(
            background, camera.matrix(frame, size), (size, size), flags=flags,
            borderMode=cv2.BORDER_REFLECT_101,
        ).astype(np.float32)  # fmt: skip
        for texture, mask, velocity in layers:
            move = np.eye(2, 3, dtype=np.float32)
            move[:, 2] = velocity * frame
            alpha = cv2.warpAffine(mask, move, (size, size))[..., None]
            moved = cv2.warpAffine(texture, move, (size, size), borderMode=cv2.BORDER_REFLECT_101)
            shot += alpha * (moved - shot)
        gain, lift = light[frame, :3], light[frame, 3]
        made[frame] = np.clip(shot * gain + lift, 0, 255).astype(np.uint8)
    return made


def _camera(rng: np.random.Generator, picture: Picture, frames: int) -> tuple[Picture, Camera]:
    """The picture at the scale at which it is seen, and the camera over it.

    Shrinking by area first is what a lens does: without it fine detail flickers as it moves.
    """
    shorter = min(picture.shape[:2])
    scale = max(1.0, rng.uniform(0.6, 1.0) * shorter / _VIEW * rng.choice([0.35, 0.6, 1.0]))
    seen = cv2.resize(picture, None, fx=1 / scale, fy=1 / scale, interpolation=cv2.INTER_AREA)
    height, width = seen.shape[:2]
    zoom = np.log(rng.uniform(0.7, 1.1))
    start = np.array([rng.uniform(0, width), rng.uniform(0, height), zoom, rng.normal(0, 0.15)])
    pace = rng.choice([0.0, 0.3, 1.0, 3.0])
    velocity = pace * rng.normal(0, 1, 4) * np.array([1.5, 1.5, 0.006, 0.004])
    shake = rng.choice([0.0, 0.0, 1.0]) * rng.normal(0, 1, (frames, 4))
    camera = Camera(start, velocity, shake * np.array([0.8, 0.8, 0.002, 0.002]))
    return np.asarray(seen, np.uint8), camera


def _layer(
    rng: np.random.Generator, size: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]:
    """Texture [size, size, 3], mask [size, size] in [0, 1], velocity in pixels a frame."""
    source = _picture(rng)
    texture = np.asarray(cv2.resize(_crop(rng, source, size), (size, size)), np.float32)
    mask = np.zeros((size, size), np.uint8)
    centre = rng.uniform(0.2, 0.8, 2) * size
    reach = rng.uniform(0.08, 0.35) * size
    if rng.random() < 0.4:
        axes = (int(reach), int(reach * rng.uniform(0.4, 1)))
        at = (int(centre[0]), int(centre[1]))
        cv2.ellipse(mask, at, axes, float(rng.uniform(0, 180)), 0, 360, 255, -1)
    else:
        corners = int(rng.integers(3, 9))
        angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
        radii = reach * rng.uniform(0.5, 1.2, (corners, 1))
        outline = centre + radii * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
        cv2.fillPoly(mask, [outline.astype(np.int32)], 255)
    soft = np.asarray(cv2.GaussianBlur(mask, (0, 0), float(rng.uniform(0.5, 2.0))), np.float32)
    velocity: NDArray[np.float64] = rng.normal(0, 1, 2) * rng.choice([0.5, 2.0, 5.0])
    return texture, soft / np.float32(255), velocity


def _light(rng: np.random.Generator, frames: int) -> NDArray[np.float32]:
    """Gain of red, green, blue, and a lift, for each frame: float32 [frames, 4]."""
    base = np.concatenate([rng.uniform(0.75, 1.2) * rng.normal(1, 0.05, 3), rng.normal(0, 8, 1)])
    drift = rng.choice([0.0, 0.0, 1.0]) * rng.normal(0, 1, 4) * np.array([0.01, 0.01, 0.01, 0.8])
    path: NDArray[np.float32] = (base + drift * np.arange(frames)[:, None]).astype(np.float32)
    return path


def _picture(rng: np.random.Generator) -> Picture:
    """A photo, mirrored at random and at times in other colours, or a generated picture."""
    if rng.random() < 0.22:
        return _generated(rng)
    some = _FAVOURED if rng.random() < 0.6 else len(_PHOTOS)
    photo = _photo(_PHOTOS[int(rng.integers(some))])
    if rng.random() < 0.5:
        photo = photo[:, ::-1]
    if (photo == photo[..., :1]).all():
        photo = _tinted(rng, photo)
    elif rng.random() < 0.25:
        photo = photo[..., rng.permutation(3)]
    return np.ascontiguousarray(photo)


def _tinted(rng: np.random.Generator, grey: Picture) -> Picture:
    """A picture without colour between a random dark one and a random bright one."""
    dark, bright = rng.uniform(0, 90, 3), rng.uniform(110, 255, 3)
    return (dark + (bright - dark) * (grey / 255.0)).astype(np.uint8)


def _generated(rng: np.random.Generator) -> Picture:
    """Noise of all scales, or gradients, smooth noise, flat patches; 384 x 384."""
    size, kind = 384, rng.integers(5)
    if kind > 2:
        return _fractal(rng, size)
    corners = rng.uniform(0, 255, (4, 4, 3)) if kind else rng.uniform(0, 255, (2, 2, 3))
    made = cv2.resize(corners.astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    if kind == 1:
        for cells in (12, 40, 120):
            noise = rng.normal(0, 60 / cells**0.35, (cells, cells, 3)).astype(np.float32)
            grown = cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
            made = made + np.asarray(grown, np.float32)
    elif kind == 2:
        for _ in range(int(rng.integers(5, 40))):
            at, reach = rng.integers(0, size, 2), rng.integers(5, 90, 2)
            colour = tuple(map(float, rng.uniform(0, 255, 3)))
            if rng.random() < 0.5:
                cv2.rectangle(made, at.tolist(), (at + reach).tolist(), colour, -1)
            else:
                thick = int(rng.integers(1, 6))
                cv2.circle(made, at.tolist(), int(reach[0] / 2) + 1, colour, thick, cv2.LINE_AA)
    return np.clip(made, 0, 255).astype(np.uint8)


def _fractal(rng: np.random.Generator, size: int) -> Picture:
    """Coloured noise whose strength falls with frequency, as in grass, walls and clouds."""
    made = np.tile(rng.uniform(40, 215, 3).astype(np.float32), (size, size, 1))
    strength, fall = rng.uniform(20, 90), rng.uniform(0.5, 1.3)
    for cells in (3, 6, 12, 24, 48, 96, 192, 384):
        across = max(2, cells // int(rng.choice([1, 1, 3])))
        grey = rng.normal(0, 1, (cells, across, 1)) * rng.uniform(0.6, 1, 3)
        noise = grey + 0.4 * rng.normal(0, 1, (cells, across, 3))
        grown = cv2.resize(noise.astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
        made += np.float32(strength * (3 / cells) ** fall) * np.asarray(grown, np.float32)
    return np.clip(made, 0, 255).astype(np.uint8)


def _crop(rng: np.random.Generator, picture: Picture, size: int) -> Picture:
    height, width = picture.shape[:2]
    side = min(height, width, size)
    y, x = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
    return picture[y : y + side, x : x + side]


@cache
def _photo(name: str) -> Picture:
    """One photo, at most 640 pixels on its shorter side."""
    import skimage
    import sklearn  # type: ignore[import-untyped]

    folders = [Path(skimage.__file__).parent / "data"]
    folders.append(Path(sklearn.__file__).parent / "datasets" / "images")
    path = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(2, "neither scikit-image nor scikit-learn has this photo", name)
    loaded = np.asarray(cv2.imread(str(path), cv2.IMREAD_COLOR), np.uint8)
    height, width = loaded.shape[:2]
    if (shrink := 640 / min(height, width)) < 1:
        shrunk = cv2.resize(loaded, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
        loaded = np.asarray(shrunk, np.uint8)
    return np.ascontiguousarray(loaded[..., ::-1]).astype(np.uint8)
