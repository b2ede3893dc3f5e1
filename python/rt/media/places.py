"""What `--input` and `--output` name: text to a place, without touching it.

Pure. A `Path` is always a file; a text may also be an address, a device or a pipe. It refuses
addresses of protocols that are not spoken here, and hides passwords from whatever is printed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from ..errors import ConfigError, Error, SinkError, SourceError

Kind = Literal["file", "images", "camera", "rtsp", "rtmp", "http", "hls", "mjpeg", "y4m", "raw"]
"""How a place is read or written; `http` is an input, `hls` and `mjpeg` are outputs only."""

INPUTS = (
    "a file, frames/%04d.png, frames/*.png, /dev/video0, rtsp://, rtmp://, http(s)://, "
    "- (Y4M from standard input), raw: (RGB from there)"
)
OUTPUTS = (
    "a file, frames/%06d.png, folder/live.m3u8 (HLS), rtmp://, rtsp://, "
    "http://HOST:PORT/ (serves MJPEG there), /dev/video2, - (Y4M to standard output), "
    "raw: (RGB to there)"
)

_PUSHED: Mapping[str, Kind] = {"rtsp": "rtsp", "rtsps": "rtsp", "rtmp": "rtmp", "rtmps": "rtmp"}
_SPOKEN_IN: Mapping[str, Kind] = {**_PUSHED, "http": "http", "https": "http"}
_SPOKEN_OUT: Mapping[str, Kind] = {**_PUSHED, "http": "mjpeg"}

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
_CAMERA = re.compile(r"/dev/video\d+")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_COUNTER = re.compile(r"%0?\d*d")


@dataclass(frozen=True, slots=True)
class Place:
    """A source or a target. `url` is what libav is told; `path` is set where it is on the disk."""

    kind: Kind
    url: str
    path: Path | None = None

    @property
    def live(self) -> bool:
        """Whether it has a clock of its own: frames cannot wait for it, nor it for them."""
        return self.kind in ("camera", "rtsp", "rtmp", "mjpeg")

    def __str__(self) -> str:
        """For people: without the password and the query of an address."""
        if self.kind in ("y4m", "raw"):
            return "standard input or output"
        return shown(self.url)


def shown(url: str) -> str:
    """`url` without its password and its query, which may be a key."""
    if _SCHEME.match(url) is None:
        return url
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=host, query="...." if parts.query else "").geturl()


def inlet(given: str | Path) -> Place:
    """Where frames come from. Raises `SourceError` for a protocol that is not read here, and
    `ConfigError` for no text at all.
    """
    if given == "":
        raise ConfigError(f"input: got an empty text, expected {INPUTS}")
    if isinstance(given, Path):
        return _on_disk(str(given))
    if given in ("-", "raw:"):
        return Place("y4m" if given == "-" else "raw", "pipe:0")
    return _address(given, _SPOKEN_IN, SourceError) or _on_disk(given)


def outlet(given: str | Path) -> Place:
    """Where frames go. Raises `SinkError` for a protocol that is not written here, and
    `ConfigError` for no text at all.
    """
    if given == "":
        raise ConfigError(f"output: got an empty text, expected {OUTPUTS}")
    if isinstance(given, Path):
        return _on_disk(str(given), hls=True)
    if given in ("-", "raw:"):
        return Place("y4m" if given == "-" else "raw", "pipe:1")
    return _address(given, _SPOKEN_OUT, SinkError) or _on_disk(given, hls=True)


def _address(given: str, spoken: Mapping[str, Kind], refused: type[Error]) -> Place | None:
    found = _SCHEME.match(given)
    if found is None:
        return None
    kind = spoken.get(found[1].lower())
    if kind is None or not urlsplit(given).netloc:
        raise refused(
            f"{shown(given)}: is no address that can be used here; expected "
            f"{', '.join(f'{name}://HOST/...' for name in spoken)}, or a file: change it"
        )
    return Place(kind, given)


def _on_disk(given: str, hls: bool = False) -> Place:
    path = Path(given)
    if _CAMERA.fullmatch(given):
        return Place("camera", given, path)
    many = _COUNTER.search(path.name) or "*" in path.name
    if many and path.suffix.lower() in PICTURES:
        return Place("images", given, path)
    if hls and path.suffix.lower() == ".m3u8":
        return Place("hls", given, path)
    return Place("file", given, path)


def counted(pattern: Path) -> re.Pattern[str]:
    """Names that `pattern` stands for: its %04d or * is a number, its first group."""
    name = pattern.name
    counter = _COUNTER.search(name)
    begin, end = counter.span() if counter else (name.index("*"), name.index("*") + 1)
    middle = r"(\d+)" if counter else r"(.*)"
    return re.compile(re.escape(name[:begin]) + middle + re.escape(name[end:]))


def size(text: str) -> tuple[int, int]:
    """'640x480' as (height, width). Raises ConfigError."""
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if found is None or not int(found[1]) * int(found[2]):
        raise ConfigError(f"input-size: got {text!r}, expected WIDTHxHEIGHT: 640x480")
    return int(found[2]), int(found[1])
