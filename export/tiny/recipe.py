"""What the tiny model is and how it is trained: every constant of the recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from export.models.presets import DitConfig, ModelConfig, Sampling, TaehvConfig, TextConfig

TINY = ModelConfig(
    "tiny",
    DitConfig(width=256, ffn=1024, heads=4, blocks=6, text_length=32, text_width=64, head_dim=64),
    TaehvConfig(
        encoder_widths=(48, 64, 64),
        encoder_blocks=(1, 1, 2),
        encoder_time=(2, 2, 1),
        encoder_stride=(1, 1, 2),
        decoder_widths=(96, 64, 64, 64),
        decoder_blocks=(2, 2, 1),
        decoder_time=(1, 2, 2),
        decoder_scale=(2, 1, 1),
        patch=4,
    ),
    TextConfig(width=64, ffn=128, heads=2, head_dim=32, blocks=1, vocabulary=1024),
    Sampling(timesteps=(200, 50, 30, 20), shift=1.0, s_max=0.2, s_min=0.1, timestep_offset=0),
)


@dataclass(frozen=True, slots=True)
class VaeRecipe:
    """One step: `batch` clips of `chunks` chunks, the first of one frame, `size` pixels square."""

    steps: int = 1800
    decoder_steps: int = 4000
    """With the encoder frozen, beside or after the training of the DiT."""
    batch: int = 4
    chunks: int = 2
    size: int = 128
    rate: float = 1.0e-4
    latent_noise: float = 0.2
    """Largest standard deviation of the noise on latents before they are decoded."""


@dataclass(frozen=True, slots=True)
class DitRecipe:
    """Latents of `clips` clips are made once. Steps alternate between whole frames and windows of
    `crop` x `crop` cells; every third one trains a later denoising step on the model's own result.
    """

    steps: int = 2400
    clips: int = 260
    chunks: int = 4
    size: int = 256
    styles_per_clip: int = 2
    whole_frames: int = 6
    crops: int = 6
    crop: int = 16
    rate: float = 1.0e-3
    noise: tuple[float, float] = (0.08, 0.35)
    """Range of the noise scale at the first step; wider than what the manifest allows."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A model, its two trainings, where their state lies, and the seed of everything."""

    out: Path
    model: ModelConfig = TINY
    vae: VaeRecipe = field(default_factory=VaeRecipe)
    dit: DitRecipe = field(default_factory=DitRecipe)
    seed: int = 0
