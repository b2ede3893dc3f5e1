"""What the tiny model is and how it is trained: every constant of the recipe.

The weights of the repository came about in pieces on a busy two-core CPU, in four hours. The VAE:
3000 steps, then on to 6500 at the rates of this recipe. The DiT: 4650 steps over an earlier VAE;
then, twice, patches of the old latents were mapped to those of the new ones by least squares and
the maps folded into entry and exit; 1500 steps followed the first time and 7200, on 480 clips, the
second. A run of this recipe does it in one piece.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from export.models.presets import PRESETS, ModelConfig

TINY = PRESETS["tiny"]


@dataclass(frozen=True, slots=True)
class VaeRecipe:
    """One step: `batch` clips of `chunks` chunks, the first of one frame, `size` pixels square."""

    steps: int = 6500
    decoder_steps: int = 1800
    """Further steps of the decoder alone, over latents that are settled."""
    batch: int = 3
    chunks: int = 4
    size: int = 128
    rate: float = 6.0e-4
    latent_noise: float = 0.2
    """Largest standard deviation of the noise on latents before they are decoded."""


@dataclass(frozen=True, slots=True)
class DitRecipe:
    """Latents of `clips` clips are made once. Steps alternate between whole frames and windows of
    `crop` x `crop` cells; every third one trains a later denoising step on the model's own result.
    """

    steps: int = 7200
    clips: int = 480
    chunks: int = 4
    size: int = 256
    styles_per_clip: int = 2
    whole_frames: int = 6
    crops: int = 6
    crop: int = 16
    rate: float = 1.0e-3
    noise: tuple[float, float] = (0.05, 0.2)
    """Range of the noise scale at the first step; wider than what the manifest allows."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A model, its two trainings, where their state lies, and the seed of everything."""

    out: Path
    model: ModelConfig = TINY
    vae: VaeRecipe = field(default_factory=VaeRecipe)
    dit: DitRecipe = field(default_factory=DitRecipe)
    seed: int = 0
