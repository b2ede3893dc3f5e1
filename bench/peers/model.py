"""The model that all of them run: `tiny`'s DiT behind a narrow Wan VAE, seeded random weights.

The trained tiny VAE has a shape that no other package can load; Wan's own, at a sixth of its
width, is one that all can.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from export.build import build_engines
from export.formats import State
from export.models.presets import PRESETS, ModelConfig, Sampling, VaeConfig
from export.options import Options
from export.random_weights import random_dit, random_vae
from rt import manifest as manifests
from rt.manifest import Manifest

SEED = 0
"""Of the weights, as `Options` has it."""


def configuration(vae_width: int) -> ModelConfig:
    """`tiny` with the released sampling constants and a Wan VAE of `vae_width` channels."""
    vae = VaeConfig(width=vae_width)
    return replace(PRESETS["tiny"], name="peers", vae=vae, sampling=Sampling())


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """The weights under their original names, the engine made of them, and one prompt."""

    config: ModelConfig
    dit: State
    vae: State
    directory: Path
    manifest: Manifest
    embeddings: Tensor
    """float32 [1, L, E]."""


def prepare(config: ModelConfig, side: int, folder: Path, precision: str = "fp32") -> Subject:
    """Build, or find built, the engine for pictures of `side` x `side` pixels below `folder`."""
    name = f"{config.name}-{side}-{wan_vae(config).width}-{precision}"
    options = Options(config, side, side, folder, name, precision=precision)
    return subject(config, build_engines(options).directory)


def subject(config: ModelConfig, directory: Path) -> Subject:
    """An engine that was built with the random weights of seed 0, with those weights."""
    rng = np.random.default_rng(0)
    shape = (1, config.dit.text_length, config.dit.text_width)
    return Subject(
        config=config,
        dit=random_dit(config.dit, SEED),
        vae=random_vae(wan_vae(config), SEED),
        directory=directory,
        manifest=manifests.read(directory),
        embeddings=torch.from_numpy(rng.standard_normal(shape).astype(np.float32)),
    )


def wan_vae(config: ModelConfig) -> VaeConfig:
    """The VAE of a model that has Wan's."""
    assert isinstance(config.vae, VaeConfig)
    return config.vae
