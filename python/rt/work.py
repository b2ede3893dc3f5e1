"""What the stages are told of a chunk, and the latents that wait between their passes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .config import SessionConfig
from .frame import Array, Chunk, Job


@dataclass(frozen=True, slots=True, eq=False)
class PromptContext:
    """What a chunk is told to look like: `prompt_in`'s output [1, L, D]. Equal versions are equal
    contexts.
    """

    version: int
    context: Array


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """All that the stages need to know of one chunk. `control` is written once, where its encoding
    begins; `passes_ns` grows by how long each of its passes ran.
    """

    chunk: Chunk
    config: SessionConfig
    prompt: PromptContext
    pictures: tuple[NDArray[np.uint8], ...]
    """The chunk's frames as the model sees them (cropped views), uint8 [H', W', 3]."""
    last_picture: NDArray[np.uint8] | None
    """The frame before the chunk; None when it continues nothing."""
    control: NDArray[np.float32]
    """(motion score, noise scale, timestep, sigma)"""
    previous_control: NDArray[np.float32] | None
    passes_ns: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class Wires:
    """Latents between passes: `noisy` [rows, places, 16, h, w] waits for the DiT, `clean` [seats,
    places, 16, h, w] for decoding. Chunk c is in place c modulo their number.
    """

    noisy: Array
    clean: Array

    def waiting(self, job: Job) -> Array:
        """Where the latent is that a pass of the DiT or the decoder starts from: [16, h, w]."""
        place = job.chunk % self.noisy.shape[1]
        if job.step == job.steps:
            return self.clean[job.seat, place, ...]
        return self.noisy[job.row, place, ...]

    def landing(self, job: Job) -> Array:
        """Where the latent goes that a pass of the encoder or the DiT ends with: [16, h, w]."""
        place = job.chunk % self.noisy.shape[1]
        if job.step + 1 == job.steps:
            return self.clean[job.seat, place, ...]
        return self.noisy[job.row + 1, place, ...]
