"""The model that all of them run, and where: seeded random weights, on the processor or on a GPU.

On the processor it is `tiny`'s DiT behind a narrow Wan VAE: the trained tiny VAE has a shape that
no other package can load; Wan's own, at a sixth of its width, is one that all can. On a GPU it is
wan-1.3b.
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
from rt.frame import Array
from rt.manifest import Manifest

SEED = 0
"""Of the weights, as `Options` has it."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Where all of them run. The peers' tensors are of `dtype`; outputs that are `apart` from those
    of float32 by no more than `most`, or than a peer's own, are the same work. `product`: the side
    of matrices whose product shows how fast the machine multiplies.
    """

    device: str
    dtype: torch.dtype
    most: float
    product: int

    def tensor(self, values: Array | Tensor) -> Tensor:
        """Of the peers' type, where they run."""
        tensor = torch.as_tensor(values)
        return tensor.to(self.device, self.dtype)

    def state(self, weights: State) -> State:
        return {name: self.tensor(tensor) for name, tensor in weights.items()}

    def apart(self, found: Array, expected: Array) -> float:
        """The largest difference; at bfloat16 the norm of the difference over the norm."""
        difference = np.float32(found) - np.float32(expected)
        if self.dtype is torch.float32:
            return float(np.abs(difference).max())
        return float(np.linalg.norm(difference) / np.linalg.norm(np.float32(expected)))


CPU = Setting("cpu", torch.float32, 1e-3, 1024)
GPU = Setting("cuda:0", torch.bfloat16, 2e-2, 8192)


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
    setting: Setting

    @property
    def exact(self) -> Subject:
        """The same in float32, which all are compared with."""
        return replace(self, setting=replace(self.setting, dtype=torch.float32))


def prepare(config: ModelConfig, side: int, folder: Path, precision: str = "fp32") -> Subject:
    """Build, or find built, the engine for pictures of `side` x `side` pixels below `folder`."""
    name = f"{config.name}-{side}-{wan_vae(config).width}-{precision}"
    options = Options(config, side, side, folder, name, precision=precision)
    return subject(config, build_engines(options).directory)


def subject(config: ModelConfig, directory: Path, setting: Setting = CPU) -> Subject:
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
        setting=setting,
    )


def wan_vae(config: ModelConfig) -> VaeConfig:
    """The VAE of a model that has Wan's."""
    assert isinstance(config.vae, VaeConfig)
    return config.vae
