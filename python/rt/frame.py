"""The records that travel: a frame, a chunk of frames, a job. Frozen; they own no device memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
"""Memory that an engine or an op can address: NumPy on the host."""

Phase = Literal["first", "step"]
"""Which graph of the VAE a chunk runs: the one that opens a stream, or the recurrent one."""

Kind = Literal["encode", "denoise", "decode"]
"""What a pass does."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One picture. `rgb` is uint8 [H, W, 3] in any strides; `captured_ns` is
    `time.perf_counter_ns()` at its arrival.
    """

    rgb: NDArray[np.uint8]
    index: int
    pts_s: float
    captured_ns: int


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """The unit of work: the frames that become one latent frame.

    `index` counts the latent frames of one session from 0 without gaps. `frames` holds what arrived
    (1 for phase `first`, up to 4 for `step`); a short last chunk is padded by repeating its last
    frame when it runs, and the padding is never emitted. `continues` is False when the picture
    before this chunk is no predecessor (start of the stream, or a gap in the source): motion is
    then 0 and the noise scale the highest.
    """

    session: int
    index: int
    phase: Phase
    frames: tuple[Frame, ...]
    continues: bool


@dataclass(frozen=True, slots=True)
class Job:
    """One pass of one chunk. `step` is the denoising step, of `steps`; encoding is step -1,
    decoding step `steps`.

    `row` = seat * rows per seat + step is where a denoising step finds its rings; it means nothing
    otherwise.
    """

    session: int
    seat: int
    chunk: int
    step: int
    steps: int
    row: int
    deadline_ns: int | None
