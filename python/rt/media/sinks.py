"""Where frames go: what any sink offers, and the file, which most people want.

A sink refuses, when it is opened, whatever cannot be written; nothing but `SinkError` leaves it.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer

from ..errors import SinkError
from ..frame import Frame
from .film import FAULTS, Film, padding_remark
from .sources import VideoSource
from .words import said

CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
"""File name endings and libav's name of the container."""

_FRAGMENTS = {
    "movflags": "hybrid_fragmented+delay_moov",
    # Microseconds. A fragment of every single frame would shift the sound (docs/decisions.md).
    "frag_duration": "100000",
    "flush_packets": "1",
}

CRASH_PROOF = {
    "mp4": _FRAGMENTS,
    "mov": _FRAGMENTS,
    "matroska": {"cluster_time_limit": "100", "flush_packets": "1"},
}
"""What is written is in the file within a tenth of a second, with all that a player needs: a killed
process leaves a film that plays. Finished, an MP4 gets the index of an ordinary one."""

ENCODER = {"preset": "veryfast", "crf": "18", "x264-params": "rc-lookahead=2:sync-lookahead=0"}
"""The encoder holds at most a chunk of pictures back: that is what a crash loses."""


class Sink(ABC):
    """Takes frames [height, width, 3] in order. `remarks` says in sentences what could not be
    done as asked.
    """

    live: bool = False
    """Whether somebody watches while it is written: frames should leave at their times."""

    def __init__(self, name: str, height: int, width: int) -> None:
        assert min(height, width) > 0
        self.name, self.height, self.width = name, height, width
        self.remarks: list[str] = []

    @abstractmethod
    def write(self, frame: Frame) -> None:
        """Append rgb uint8 [height, width, 3] at its `pts_s`. Raises `SinkError`."""

    @abstractmethod
    def close(self) -> None:
        """Finish what was written. Harmless when repeated. Raises `SinkError`."""

    @abstractmethod
    def abort(self) -> None:
        """Let go, after a failure; what can be undone is undone. Harmless when repeated."""

    def check(self, frame: Frame) -> None:
        """The shape that was agreed on."""
        assert frame.rgb.shape == (self.height, self.width, 3), frame.rgb.shape
        assert frame.rgb.dtype == np.uint8, frame.rgb.dtype

    @contextlib.contextmanager
    def told(self, doing: str) -> Iterator[None]:
        """libav's and the system's errors as one line."""
        try:
            yield
        except FAULTS as error:
            raise SinkError(
                f"{self.name}: cannot be {doing} ({said(error)}); expected a place with room and "
                "the right to write: free space or choose another output"
            ) from error


class VideoSink(Sink):
    """A video file with the times and the sound of its source.

    It is written beside its target and gets its name when it is closed, so a target is either whole
    or untouched. What a killed process left is kept under a name of its own.
    """

    def __init__(self, path: Path, source: VideoSource, height: int, width: int) -> None:
        super().__init__(str(path), height, width)
        self.path = path
        self.remarks += padding_remark(height, width)
        name = check_file(path, source)
        self._part = path.with_name(f"{path.stem}.part{path.suffix}")
        self._keep_remains()

        def opened() -> OutputContainer:
            part = str(self._part.absolute())
            return av.open(part, "w", format=name, options=CRASH_PROOF[name])

        self._sound = source.sound.begin(self.remarks) if source.sound is not None else None
        self._film: Film | None = None
        try:
            with self.told("opened"):
                self._film = Film(opened, source, height, width, ENCODER, self._sound, self.remarks)
        except BaseException:
            self._let_go()
            raise

    def write(self, frame: Frame) -> None:
        assert self._film is not None, "the sink is closed"
        self.check(frame)
        with self.told("written"):
            self._film.write(frame.rgb, frame.pts_s)

    def close(self) -> None:
        """Finish the file and give it its name. Harmless when repeated.

        Raises `SinkError`, and then leaves no file. Without one picture there is none either: no
        player would open it.
        """
        if self._film is None:
            return
        if self._film.empty:
            self.remarks.append(f"no picture was written, so there is no {self.path.name}")
            self.abort()
            return
        try:
            with self.told("finished"):
                self._film.finish()
                self._part.replace(self.path)
        except BaseException:
            self.abort()
            raise
        self._film = None
        self._close_sound()

    def abort(self) -> None:
        """Drop all that was written; what was at the target stays. Harmless when repeated."""
        if self._film is not None:
            film, self._film = self._film, None
            film.drop()
            self._let_go()

    def _let_go(self) -> None:
        self._close_sound()
        self._part.unlink(missing_ok=True)

    def _close_sound(self) -> None:
        if self._sound is not None:
            self._sound.close()
            self._sound = None

    def _keep_remains(self) -> None:
        if self._part.is_symlink() or not self._part.is_file():
            return
        number = 1
        while (
            kept := self.path.with_name(f"{self.path.stem}.{number}{self.path.suffix}")
        ).exists():
            number += 1
        with self.told("opened"):
            self._part.rename(kept)
        self.remarks.append(f"what a run that was killed had written is in {kept.name}")


def check_file(path: Path, source: VideoSource) -> str:
    """libav's name of the container, once nothing visible speaks against writing `path`."""
    name = CONTAINERS.get(path.suffix.lower())
    if name is None:
        raise SinkError(
            f"{path}: ending {path.suffix!r} names no container that is written here; "
            f"expected one of {', '.join(CONTAINERS)}: change the name"
        )
    check_folder(path)
    if path.is_dir():
        raise SinkError(f"{path}: is a directory; expected a file name: name a file in it")
    if source.path is not None and path.exists() and path.samefile(source.path):
        raise SinkError(f"{path}: is the input itself; name another output")
    return name


def check_folder(path: Path) -> None:
    """Raises `SinkError` where nothing can be put beside `path`."""
    parent = path.parent
    if not parent.exists():
        raise SinkError(f"{path}: there is no directory {parent}; create it or name another")
    if not parent.is_dir():
        raise SinkError(f"{path}: {parent} is no directory; name a file in a directory")
