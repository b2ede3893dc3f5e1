"""A clip that can be seen and heard to be in sync: flashes with claps."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.video.stream import VideoStream
from numpy.typing import NDArray

SIZE = 64
"""Height and width."""

FPS, RATE = 25, 48_000
FLASHES_S = (0.6, 1.4, 2.2)


def clap(path: Path, seconds: float, sound: str) -> Path:
    """Dark pictures, silence; at FLASHES_S of every 3 s two white pictures and 80 ms of a tone."""
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=FPS, options={"g": str(FPS), "bf": "0"})
        audio = out.add_stream(sound, rate=RATE, layout="mono")
        assert isinstance(video, VideoStream)
        assert isinstance(audio, AudioStream)
        video.height, video.width, video.pix_fmt = SIZE, SIZE, "yuv420p"
        times = np.arange(round(RATE * seconds)) / RATE
        loud = sum(((times % 3 >= t) & (times % 3 < t + 0.08)) for t in FLASHES_S)
        wave = (20_000 * np.sin(2 * np.pi * 1000 * times) * loud).astype(np.int16)
        per = RATE // FPS
        for index in range(round(seconds * FPS)):
            at = index / FPS % 3
            level = 235 if any(t - 1e-6 <= at < t + 0.08 - 1e-6 for t in FLASHES_S) else 16
            picture = av.VideoFrame.from_ndarray(np.full((SIZE, SIZE, 3), level, np.uint8))
            picture.pts, picture.time_base = index, Fraction(1, FPS)
            out.mux(video.encode(picture))
            samples = wave[None, index * per : (index + 1) * per]
            block = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            block.sample_rate, block.pts, block.time_base = RATE, index * per, Fraction(1, RATE)
            out.mux(audio.encode(block))
        out.mux(video.encode(None))
        out.mux(audio.encode(None))
    return path


def onsets(times: NDArray[np.float64], loud: NDArray[np.bool_]) -> list[float]:
    """Times at which something begins after 0.3 s without it. Where something is missing before (a
    dropped frame, the start) nobody can say when it began.
    """
    known = np.diff(times, prepend=-np.inf) < 1.5 / FPS
    found: list[float] = []
    last = -1.0
    for time, certain in zip(times[loud], known[loud], strict=True):
        if time - last > 0.3 and certain:
            found.append(float(time))
        last = time
    return found


def flashes_and_claps(path: Path) -> tuple[list[float], list[float]]:
    """When the left half of the pictures turns white, and when it sounds; read by PyAV alone."""
    with av.open(str(path)) as file:
        pictures = [(float(f.time), f.to_ndarray(format="gray")) for f in file.decode(video=0)]
    bright = np.array([p[:, : p.shape[1] // 2].mean() > 120 for _, p in pictures])
    with av.open(str(path)) as file:
        resampler = av.AudioResampler("flt", "mono", RATE)
        blocks = [(f.time, f) for f in file.decode(audio=0)]
        waves, times = [], []
        for time, frame in blocks:
            for block in resampler.resample(frame):
                samples = np.abs(block.to_ndarray().ravel())
                waves.append(samples)
                times.append(time + np.arange(samples.size) / RATE)
    loud = np.concatenate(waves) > 0.25
    return onsets(np.array([t for t, _ in pictures]), bright), onsets(np.concatenate(times), loud)
