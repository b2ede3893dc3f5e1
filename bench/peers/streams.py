"""The whole job, frames to frames: the peer's modules in the order of its pipeline, and ours.

Ours is `rt.Pipeline` as it stands. The peer gets what ours would draw: motion off, the same noise.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.peers import model
from bench.peers.model import Subject
from bench.peers.reference import ReferenceDit, ReferenceSchedule, ReferenceVae
from export.prompts import Encoded, write
from rt import Pipeline, ops
from rt.frame import Array

Pictures = NDArray[np.uint8]
"""uint8 [T, H, W, 3], T = 1 + 4 k."""


def reference_dit(subject: Subject, rows: int) -> ReferenceDit:
    """The peer's DiT with the weights, the prompt and the window of `subject`."""
    m = subject.manifest
    return ReferenceDit(
        subject.config.dit, subject.dit, subject.embeddings, rows,
        m.window.frames, m.window.sinks, m.geometry.tokens_per_frame, subject.setting,
    )  # fmt: skip


class ReferenceStream:
    """Encode, mix, denoise, decode. In order, each step of a chunk after the other (`batched`
    False: a model and a cache for each step, as its stream batch has a row for each), or as a
    stream batch: one pass over all rows for every chunk, which then leaves `steps` chunks later.
    """

    def __init__(self, subject: Subject, steps: int, batched: bool) -> None:
        self._vae = ReferenceVae(model.wan_vae(subject.config), subject.vae, subject.setting)
        sampling = subject.config.sampling
        self._schedule = ReferenceSchedule(sampling)
        self._scale = sampling.s_max
        first = 1000 * sampling.s_max + sampling.timestep_offset
        self._setting = subject.setting
        timesteps = torch.tensor([first, *sampling.timesteps[1:steps]])
        self._timesteps = timesteps.to(subject.setting.device)
        self._steps, self._batched = steps, batched
        rows = [steps] if batched else [1] * steps
        self._dits = [reference_dit(subject, count) for count in rows]
        g = subject.manifest.geometry
        empty = torch.zeros(steps, g.latent_channels, g.latent_height, g.latent_width)
        self._rows = subject.setting.tensor(empty)
        self._index = 0

    def __call__(self, pictures: Pictures) -> Pictures:
        """The first five pictures, or the next four."""
        pixels = torch.from_numpy(pictures).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        latents = self._vae.encode(pixels)[0].transpose(0, 1)  # [t, C, h, w]
        made = [self._denoise(latent[None]) for latent in latents]
        restyled = self._vae.decode(torch.cat(made).transpose(0, 1)[None])
        levels = (restyled[0].float().clamp(-1, 1) + 1) * 127.5
        return levels.round().to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()

    def _denoise(self, latent: Tensor) -> Tensor:
        """[1, C, h, w] -> the same."""
        shape, index = tuple(latent.shape[1:]), self._index
        noisy = self._scale * self._noise(shape, index, 0) + (1 - self._scale) * latent
        self._index += 1
        if self._batched:
            return self._pass(noisy, index)
        for step, (dit, timestep) in enumerate(zip(self._dits, self._timesteps, strict=True)):
            velocity = dit(noisy, timestep[None], index)
            clean = self._schedule.clean(noisy, velocity, timestep[None])
            if step + 1 < self._steps:
                drawn = self._noise(shape, index, step + 1)
                noisy = self._schedule.noised(clean, drawn, self._timesteps[step + 1][None])
        return clean

    def _noise(self, shape: tuple[int, ...], chunk: int, step: int) -> Tensor:
        """What ours draws, [1, C, h, w]."""
        drawn: Array = ops.philox_normal(shape, seed=0, session=0, chunk=chunk, step=step)
        return self._setting.tensor(np.asarray(drawn))[None]

    def _pass(self, noisy: Tensor, index: int) -> Tensor:
        """One pass of the stream batch; what comes out entered `steps - 1` passes ago."""
        self._rows = torch.cat([noisy, self._rows[:-1]])
        velocity = self._dits[0](self._rows, self._timesteps, index)
        clean = self._schedule.clean(self._rows, velocity, self._timesteps)
        if self._steps > 1:
            drawn = torch.randn_like(clean[:-1])
            onward = self._schedule.noised(clean[:-1], drawn, self._timesteps[1:])
            self._rows = torch.cat([onward, clean[-1:]])
        return clean[-1:]


def through_reference(stream: ReferenceStream, pictures: Pictures) -> Pictures:
    """A clip of 5 + 4 k pictures through the peer."""
    cuts = [0, *range(5, len(pictures) + 1, 4)]
    parts = [stream(pictures[a:b]) for a, b in itertools.pairwise(cuts)]
    return np.concatenate(parts)


def prompt_file(subject: Subject) -> Path:
    """The prompt as a file of embeddings."""
    path = subject.directory.with_suffix(".safetensors")
    tokenizer = subject.manifest.text.tokenizer_sha256 or ""
    write(Encoded("random", subject.embeddings[0].numpy(), "bench", tokenizer), path)
    return path


def through_ours(pipeline: Pipeline, subject: Subject, pictures: Pictures, steps: int) -> Pictures:
    """The same clip through the pipeline, set to what the peer does."""
    with pipeline.session(
        prompt=prompt_file(subject), steps=steps, motion="off", sinks="fixed", positions="absolute"
    ) as session:
        return np.stack([frame.rgb for frame in session.stream(list(pictures))])
