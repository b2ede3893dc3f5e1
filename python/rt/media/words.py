"""libav's complaints in words."""

from __future__ import annotations

import av


def said(error: Exception) -> str:
    """libav's or the system's own words in one line, without the address that they name."""
    words = error.strerror if isinstance(error, OSError | av.FFmpegError) else str(error)
    return " ".join(str(words or type(error).__name__).split())
