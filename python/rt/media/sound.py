"""The sound of a source on its way into a sink, on the clock of the pictures.

A source offers `Sound`; whoever writes takes a `Passage` of it, and from that the packets that
belong before a picture: so sound and picture are late by the same time. Packets are passed on as
they are; what the target's container does not take is encoded again, as AAC.
"""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import av
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet

from .words import said

KEPT_S = 10.0
"""Sound of a live source that nobody took for so long is let go."""

COPIED: Mapping[str, frozenset[str]] = {
    "flv": frozenset({"aac", "mp3"}),
    "hls": frozenset({"aac", "mp3"}),
    "rtsp": frozenset({"aac", "mp3", "opus", "pcm_alaw", "pcm_mulaw"}),
}
"""Containers that would take more than their players understand."""


class Passage(ABC):
    """The packets of sound of one source, read once, in order."""

    streams: Sequence[AudioStream]
    """The tracks; a packet says which by its number here."""

    @abstractmethod
    def until(self, time_s: Fraction | None) -> Iterator[tuple[int, Packet[Any]]]:
        """Track and packet of all that is there and begins before `time_s` on the pictures' clock;
        of all that is there for None.
        """

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Release what is open. Harmless when repeated."""


class Sound(Protocol):
    """Where a sink finds the sound of a source."""

    def begin(self, remarks: list[str]) -> Passage:
        """Take it from the start; what went wrong is said in `remarks`."""
        ...


@dataclass(frozen=True, slots=True)
class FileSound:
    """Sound in a file, and what is taken off its times."""

    path: Path
    origin_s: Fraction

    def begin(self, remarks: list[str]) -> Passage:
        """A passage that reads the file by itself."""
        return _FilePassage(self, remarks)


class _FilePassage(Passage):
    def __init__(self, sound: FileSound, remarks: list[str]) -> None:
        self._origin_s = sound.origin_s
        self._remarks = remarks
        self._next: Packet[Any] | None = None
        self._packets: Iterator[Packet[Any]] = iter(())
        self._in: InputContainer | None = None
        self.streams = ()
        try:
            self._in = av.open(str(sound.path.absolute()))
        except (av.FFmpegError, OSError) as error:
            remarks.append(f"the sound is left out: {sound.path} cannot be read ({said(error)})")
            return
        self.streams = self._in.streams.audio
        self._numbers = {stream.index: n for n, stream in enumerate(self.streams)}
        self._packets = self._in.demux(list(self.streams))

    def until(self, time_s: Fraction | None) -> Iterator[tuple[int, Packet[Any]]]:
        while True:
            packet = self._next or self._read()
            self._next = packet
            if packet is None or packet.pts is None:
                return
            if time_s is not None and packet.pts * packet.time_base >= time_s:
                return
            self._next = None
            yield self._numbers[packet.stream.index], packet

    def close(self) -> None:
        if self._in is not None:
            self._in.close()

    def _read(self) -> Packet[Any] | None:
        try:
            for packet in self._packets:
                if shifted(packet, self._origin_s):
                    return packet
        except av.FFmpegError as error:
            self._remarks.append(f"the sound ends early: the source is damaged ({said(error)})")
            self._packets = iter(())
        return None


class LiveSound(Passage):
    """Sound that comes with the pictures: a source adds to it on its thread, a sink takes from it.

    Nothing is kept before somebody has begun to take.
    """

    def __init__(self, streams: Sequence[AudioStream]) -> None:
        self.streams = streams
        self._begun = False
        self._held: deque[tuple[Fraction, int, Packet[Any]]] = deque()
        self._lock = threading.Lock()

    def begin(self, remarks: list[str]) -> Passage:  # noqa: ARG002 - nothing can go wrong
        self._begun = True
        return self

    def stop(self) -> None:
        """What comes from here on is left out."""
        self._begun = False

    def add(self, track: int, packet: Packet[Any], offset_s: Fraction) -> None:
        """A packet whose own time is `offset_s` ahead of the pictures' clock."""
        if not self._begun or not shifted(packet, offset_s) or packet.pts is None:
            return
        begin_s = packet.pts * packet.time_base
        if begin_s < 0:
            return
        with self._lock:
            self._held.append((begin_s, track, packet))
            while self._held[0][0] < begin_s - Fraction(KEPT_S):
                self._held.popleft()

    def until(self, time_s: Fraction | None) -> Iterator[tuple[int, Packet[Any]]]:
        while True:
            with self._lock:
                if not self._held or (time_s is not None and self._held[0][0] >= time_s):
                    return
                _, track, packet = self._held.popleft()
            yield track, packet


def shifted(packet: Packet[Any], origin_s: Fraction) -> bool:
    """Take `origin_s` off the times of `packet`; False if it has none."""
    pts = packet.pts if packet.pts is not None else packet.dts
    dts = packet.dts if packet.dts is not None else packet.pts
    if pts is None or dts is None:
        return False
    shift = round(origin_s / packet.time_base)
    packet.pts, packet.dts = pts - shift, dts - shift
    return True


class Tracks:
    """The tracks of a passage inside one output container, `copied` where it takes them."""

    def __init__(
        self, passage: Passage, out: OutputContainer, remarks: list[str], copied: bool = True
    ) -> None:
        self._passage = passage
        self._tracks: dict[int, _Copied | _Encoded] = {}
        for number, stream in enumerate(passage.streams):
            codec = stream.codec_context.name
            understood = COPIED.get(out.format.name)
            if copied and (understood is None or codec in understood):
                with contextlib.suppress(av.FFmpegError, ValueError):
                    self._tracks[number] = _Copied(out.add_stream_from_template(stream))
                    continue
            try:
                self._tracks[number] = _Encoded(stream, out)
            except (av.FFmpegError, ValueError) as error:
                remarks.append(f"sound track {number} ({codec}) is left out: {said(error)}")
                continue
            remarks.append(f"sound is written as AAC: {out.format.name} does not take {codec}")

    def __bool__(self) -> bool:
        return bool(self._tracks)

    def until(self, time_s: Fraction | None) -> Iterator[Packet[Any]]:
        """Packets to write before a picture of `time_s`."""
        for number, packet in self._passage.until(time_s):
            track = self._tracks.get(number)
            if track is not None:
                yield from track.taken(packet)

    def rest(self) -> Iterator[Packet[Any]]:
        """What encoders still hold."""
        for track in self._tracks.values():
            yield from track.rest()


class _Copied:
    def __init__(self, stream: AudioStream) -> None:
        self._stream = stream
        self._last: Fraction | None = None

    def taken(self, packet: Packet[Any]) -> Iterator[Packet[Any]]:
        # A muxer ends at a time that does not rise: of two senders after each other, say.
        assert packet.dts is not None
        time_s = packet.dts * packet.time_base
        if self._last is None or time_s > self._last:
            self._last = time_s
            packet.stream = self._stream
            yield packet

    def rest(self) -> Iterator[Packet[Any]]:
        yield from ()


class _Encoded:
    """Decoded and encoded again as AAC."""

    def __init__(self, stream: AudioStream, out: OutputContainer) -> None:
        self._decoder = stream.codec_context
        layout = "mono" if stream.codec_context.channels == 1 else "stereo"
        rate = stream.codec_context.sample_rate
        if rate not in (16_000, 22_050, 24_000, 32_000, 44_100, 48_000):
            rate = 48_000
        new = out.add_stream("aac", rate=rate, layout=layout)
        assert isinstance(new, AudioStream)
        self._stream = new
        self._resampler = AudioResampler("fltp", layout, rate, frame_size=1024)

    def taken(self, packet: Packet[Any]) -> Iterator[Packet[Any]]:
        # A packet that cannot be decoded is a click, no reason to end.
        with contextlib.suppress(av.FFmpegError):
            for block in self._decoder.decode(packet):
                for part in self._resampler.resample(block):
                    yield from self._stream.encode(part)

    def rest(self) -> Iterator[Packet[Any]]:
        with contextlib.suppress(av.FFmpegError):
            for part in self._resampler.resample(None):
                yield from self._stream.encode(part)
            yield from self._stream.encode(None)
