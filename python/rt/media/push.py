"""Sinks that somebody watches: a server that is pushed to, a folder of HLS segments.

A server that goes away is tried again with growing pauses; frames meanwhile are lost, and said to
be. It refuses, when it is opened, a server that cannot be reached then.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping

import av
from av.container import OutputContainer

from ..errors import SinkError
from ..frame import Frame
from .clocks import Backoff
from .film import FAULTS, Film, padding_remark
from .places import Place
from .sinks import Sink, check_folder
from .sources import VideoSource
from .words import said

OPEN_S = 5.0
"""How long a server may take to answer. Finished frames wait meanwhile."""

KEY_S = 2
"""Seconds between pictures that a viewer can begin with."""

SEGMENTS = 6
"""Of HLS, that a playlist of a live source holds."""


def encoder(source: VideoSource) -> Mapping[str, str]:
    """x264's options where every frame has to leave at once."""
    gop = str(max(1, round(KEY_S * source.rate)))
    return {"preset": "veryfast", "tune": "zerolatency", "crf": "20", "g": gop}


class PushSink(Sink):
    """H.264 and sound to an RTMP or RTSP server."""

    live = True

    def __init__(
        self, place: Place, source: VideoSource, height: int, width: int, backoff: Backoff
    ) -> None:
        super().__init__(str(place), height, width)
        self.remarks += padding_remark(height, width)
        self._place, self._source, self._backoff = place, source, backoff
        self._sound = source.sound.begin(self.remarks) if source.sound is not None else None
        self._lost = 0
        self._attempt = 0
        self._gone_at = self._next_at = 0.0
        self._film: Film | None = None
        try:
            self._film = self._opened(self.remarks)
        except FAULTS as error:
            raise self._unreachable(error) from error

    def write(self, frame: Frame) -> None:
        self.check(frame)
        if self._film is None and not self._again():
            self._lost += 1
            return
        assert self._film is not None
        try:
            self._film.write(frame.rgb, frame.pts_s)
        except FAULTS:
            self._lost += 1
            self._part()

    def close(self) -> None:
        """Say goodbye, where there is still somebody. Harmless when repeated."""
        if self._film is not None:
            film, self._film = self._film, None
            try:
                film.finish()
            except FAULTS as error:
                self.remarks.append(f"{self.name} left before the end ({said(error)})")
                film.drop()
        if self._sound is not None:
            self._sound.close()
            self._sound = None
        if self._lost:
            self.remarks.append(f"{self._lost} frames were lost while {self.name} was away")
            self._lost = 0

    def abort(self) -> None:
        """What was sent is sent."""
        if self._film is not None:
            film, self._film = self._film, None
            film.drop()

    def _opened(self, remarks: list[str]) -> Film:
        kind = "flv" if self._place.kind == "rtmp" else "rtsp"
        options = {"max_interleave_delta": "100000", "flush_packets": "1"}
        options |= {"flvflags": "no_duration_filesize"} if kind == "flv" else _RTSP

        def connect() -> OutputContainer:
            return av.open(self._place.url, "w", format=kind, options=options, timeout=OPEN_S)

        chosen = encoder(self._source)
        size = (self.height, self.width)
        return Film(connect, self._source, *size, chosen, self._sound, remarks)

    def _part(self) -> None:
        assert self._film is not None
        self._film.drop()
        self._film = None
        self._attempt, self._gone_at = 0, time.monotonic()
        self._next_at = self._gone_at + self._pause_s()

    def _again(self) -> bool:
        """Whether the server could be reached again. Raises `SinkError` after the patience."""
        if time.monotonic() < self._next_at:
            return False
        self._attempt += 1
        try:
            self._film = self._opened([])
        except FAULTS as error:
            try:
                self._next_at = time.monotonic() + self._pause_s()
            except TimeoutError:
                raise self._unreachable(error) from error
            return False
        gone_s = time.monotonic() - self._gone_at
        self.remarks.append(f"{self.name} was away for {gone_s:.1f} s")
        return True

    def _pause_s(self) -> float:
        gone_s = time.monotonic() - self._gone_at
        pause_s = self._backoff.pause_s(self._attempt, gone_s, random.random())
        if pause_s is None:
            raise TimeoutError
        return pause_s

    def _unreachable(self, error: Exception) -> SinkError:
        after = f" after {self._attempt} attempts" if self._attempt else ""
        return SinkError(
            f"{self.name}: cannot be reached{after} ({said(error)}); expected a server that takes "
            f"{self._place.kind.upper()}: start it, or check the address"
        )


_RTSP = {"rtsp_transport": "tcp"}


class HlsSink(Sink):
    """A playlist and its segments. Of a live source the last ones are kept, of a film all."""

    live = True

    def __init__(self, place: Place, source: VideoSource, height: int, width: int) -> None:
        super().__init__(str(place), height, width)
        assert place.path is not None
        check_folder(place.path)
        self.remarks += padding_remark(height, width)
        path = place.path.absolute()
        options = {
            "hls_time": str(KEY_S),
            "hls_flags": "independent_segments" + ("+delete_segments" if source.live else ""),
            "hls_list_size": str(SEGMENTS) if source.live else "0",
            "hls_playlist_type": "" if source.live else "event",
            "hls_segment_filename": str(path.with_name(f"{path.stem}%05d.ts")),
        }
        options = {name: value for name, value in options.items() if value}

        def opened() -> OutputContainer:
            return av.open(str(path), "w", format="hls", options=options)

        self._sound = source.sound.begin(self.remarks) if source.sound is not None else None
        self._film: Film | None = None
        with self.told("opened"):
            chosen = encoder(source)
            self._film = Film(opened, source, height, width, chosen, self._sound, self.remarks)

    def write(self, frame: Frame) -> None:
        assert self._film is not None, "the sink is closed"
        self.check(frame)
        with self.told("written"):
            self._film.write(frame.rgb, frame.pts_s)

    def close(self) -> None:
        """The playlist says that it is complete."""
        if self._film is not None:
            film, self._film = self._film, None
            with self.told("finished"):
                film.finish()
        if self._sound is not None:
            self._sound.close()
            self._sound = None

    def abort(self) -> None:
        """What was written stays: it may have been watched."""
        if self._film is not None:
            film, self._film = self._film, None
            film.drop()
