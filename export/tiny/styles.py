"""The styles of the tiny model as classical filters, and the prompts that name them.

A filter takes and gives one picture, uint8 [H, W, 3] RGB, knows nothing of its neighbours in time
and draws no random number: what the model should learn is a function of the picture.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
"""uint8 [H, W, 3], RGB."""

Floats = NDArray[np.floating]

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def realistic(picture: Picture) -> Picture:
    """The picture itself."""
    return picture.copy()


def pencil_sketch(picture: Picture) -> Picture:
    """Dark strokes where brightness changes, on paper: the picture divided by its blur."""
    light = cv2.GaussianBlur(_luma(picture), (0, 0), 0.8)
    strokes = np.clip(light / np.maximum(cv2.GaussianBlur(light, (0, 0), 3.5), 1 / 255), 0, 1)
    shade = 0.85 + 0.15 * np.clip(cv2.GaussianBlur(light, (0, 0), 2.0) * 1.6, 0, 1)
    return _bytes((strokes**3.0 * shade)[..., None] * np.array([1.0, 0.99, 0.96], np.float32))


def comic(picture: Picture) -> Picture:
    """Few flat, saturated colours with black outlines."""
    smooth = cv2.bilateralFilter(cv2.medianBlur(picture, 3), 7, 45, 5).astype(np.float32) / 255
    grey = smooth @ _LUMA
    vivid = np.clip(grey[..., None] + 1.7 * (smooth - grey[..., None]), 0, 1)
    flat = _steps(vivid, 4)
    fine, wide = (cv2.GaussianBlur(grey, (0, 0), sigma) for sigma in (1.0, 2.5))
    lines = np.clip(1 - (wide - fine - 0.012) * 40, 0, 1)
    return _bytes(flat * lines[..., None])


def neon_edges(picture: Picture) -> Picture:
    """Glowing outlines on black: cyan in dark surroundings, magenta and orange in bright ones."""
    light = cv2.GaussianBlur(_luma(picture), (0, 0), 1.4)
    dx, dy = cv2.Sobel(light, cv2.CV_32F, 1, 0) / 4, cv2.Sobel(light, cv2.CV_32F, 0, 1) / 4
    strength = np.clip(np.hypot(dx, dy) * 11 - 0.08, 0, 1)
    around = cv2.GaussianBlur(light, (0, 0), 6.0)[..., None]
    dark, bright = np.array([[0.0, 0.9, 1.0], [1.2, 0.25, 0.6]], np.float32)
    lines = (strength[..., None] * (dark + (bright - dark) * around)).astype(np.float32)
    glow = np.asarray(cv2.GaussianBlur(lines, (0, 0), 3.0), np.float32)
    return _bytes(lines + 0.5 * glow)


def oil_painting(picture: Picture) -> Picture:
    """In each neighbourhood the mean colour of its most frequent brightness, as dabs of a brush."""
    colour = picture.astype(np.float32) / 255
    level = np.minimum((colour @ _LUMA * 8).astype(np.int32), 7)
    most = np.full(level.shape, -1, np.float32)
    painted = np.zeros_like(colour)
    for value in range(8):
        inside = (level == value).astype(np.float32)
        share = cv2.blur(inside, (9, 9))
        mean = cv2.blur(colour * inside[..., None], (9, 9)) / np.maximum(share, 1e-6)[..., None]
        wins = share > most
        most[wins], painted[wins] = share[wins], mean[wins]
    grey = (painted @ _LUMA)[..., None]
    return _bytes(1.08 * (grey + 1.45 * (painted - grey)) - 0.03)


def sepia_film(picture: Picture) -> Picture:
    """Brown and cream, with faded blacks."""
    light = np.clip(_luma(picture) * 0.85 + 0.1, 0, 1)
    return _bytes(light[..., None] * np.array([1.05, 0.86, 0.62], np.float32))


def autumn(picture: Picture) -> Picture:
    """Greens and blues turn to orange and rust, everything warmer."""
    hsv = cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
    hue, saturation, value = hsv[..., 0], hsv[..., 1], hsv[..., 2]
    hsv[..., 0] = np.where((hue > 45) & (hue < 300), 14 + 30 * (hue - 45) / 255, hue)
    hsv[..., 1] = np.clip(1.35 * saturation + 0.12, 0, 1)
    warm = np.array([1.1, 0.92, 0.68], np.float32)
    turned = np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.float32)
    lift = np.asarray(value, np.float32)[..., None] * 0.04
    return _bytes(turned * warm + lift)


def thermal(picture: Picture) -> Picture:
    """Brightness as heat: blue, magenta, orange, yellow."""
    soft = np.asarray(cv2.GaussianBlur(_luma(picture), (0, 0), 1.5), np.float32)
    light = _bytes(soft)
    coloured = cv2.applyColorMap(light, cv2.COLORMAP_PLASMA)
    return np.ascontiguousarray(coloured[..., ::-1]).astype(np.uint8)


STYLES: dict[str, Callable[[Picture], Picture]] = {
    "realistic": realistic,
    "pencil sketch": pencil_sketch,
    "comic": comic,
    "neon edges": neon_edges,
    "oil painting": oil_painting,
    "sepia film": sepia_film,
    "autumn": autumn,
    "thermal": thermal,
}
STRUCTURAL = ("pencil sketch", "comic", "neon edges", "oil painting")
"""Styles that change lines and edges, not only colour."""

_TEMPLATES = (
    "{style}",
    "{style}",
    "a {style}",
    "{style} style",
    "a {style} of a {subject}",
    "{style} of a {adjective} {subject}",
    "a {subject}, {style}",
    "a {adjective} {subject} in {style} style",
    "{adjective} {style}, {extra}",
    "video in the style of {style}",
    "{style}, {extra}, {extra}",
)
_PLAIN = ("a {subject}", "a {adjective} {subject}", "a {subject} in {extra}", "{extra}")
_SUBJECTS = (
    "dog", "cat", "person", "woman", "man", "street", "city", "house", "tree", "forest", "car",
    "face", "portrait", "mountain", "river", "scene", "robot", "bird", "room", "garden",
)  # fmt: skip
_ADJECTIVES = ("beautiful", "small", "walking", "running", "old", "bright", "dark", "detailed")
_EXTRAS = ("high quality", "masterpiece", "soft light", "space", "the sun", "water", "detailed")


def prompt(style: str, rng: np.random.Generator) -> str:
    """A random text that names `style`; for `realistic` also one that names no style."""
    templates: tuple[str, ...] = _TEMPLATES
    if style == "realistic" and rng.random() < 0.4:
        templates = _PLAIN
    return str(rng.choice(templates)).format(
        style=style,
        subject=rng.choice(_SUBJECTS),
        adjective=rng.choice(_ADJECTIVES),
        extra=rng.choice(_EXTRAS),
    )


def _luma(picture: Picture) -> Floats:
    """float32 [H, W] in [0, 1]."""
    light: Floats = picture.astype(np.float32) @ _LUMA / np.float32(255)
    return light


def _steps(values: Floats, count: int) -> Floats:
    """`count` levels with soft borders, so that a hair of light does not flip a colour."""
    scaled = values * (count - 1)
    low = np.floor(scaled)
    edge = np.clip((scaled - low - 0.5) * 6 + 0.5, 0, 1)
    stepped: Floats = (low + edge) / (count - 1)
    return stepped


def _bytes(values: Floats) -> NDArray[np.uint8]:
    return (np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8)
