"""JPEG in and out, through Pillow: a picture's size is known and refused before it is decoded."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import SourceError

QUALITY = 85
"""Of the JPEGs that go out: 256x256 restyled pictures have 10 to 20 KB at it."""


def decode_jpeg(data: bytes, most_pixels: int) -> NDArray[np.uint8]:
    """uint8 [H, W, 3]. Raises SourceError for anything but one whole JPEG of at most that size."""
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            if image.width * image.height > most_pixels:
                raise SourceError(
                    f"frame: got {image.width}x{image.height} pixels, expected at most "
                    f"{most_pixels} in all; scale it down"
                )
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SourceError(
            f"frame: {len(data)} bytes are no whole JPEG ({type(error).__name__}); "
            "expected one JPEG picture"
        ) from None


def encode_jpeg(rgb: NDArray[np.uint8]) -> bytes:
    """`rgb` uint8 [H, W, 3]."""
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rgb)).save(out, "JPEG", quality=QUALITY)
    return out.getvalue()
