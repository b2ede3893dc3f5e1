"""Which models at which sizes, the chain of each without its blocks' weights, and a checkpoint."""

from __future__ import annotations

import fcntl
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bench.gpu import targets
from export.models.dit import Dit, DitIn
from export.models.presets import PRESETS, ModelConfig
from export.units import Chain, Parts, geometry_of, parts_of, wan_chain


@dataclass(frozen=True, slots=True)
class Case:
    """One model at one size and precision."""

    model: str
    height: int
    width: int
    vae: str
    precision: str

    @property
    def name(self) -> str:
        return self._named(self.vae)

    @property
    def size(self) -> str:
        """The model without its VAE."""
        return self._named("")

    def _named(self, vae: str) -> str:
        return targets.model(self.model, f"{self.height}x{self.width}", vae, self.precision)

    def config(self) -> ModelConfig:
        return PRESETS[f"{self.model}-taehv" if self.vae == "taehv" else self.model]


def chain_of(case: Case) -> Chain:
    """All units with the blocks on no device: only shapes of a block's weights matter here."""
    config = case.config()
    small = replace(config, dit=PRESETS["tiny"].dit)  # which is not used
    parts = parts_of(small, case.height, case.width, text=False)
    geometry = geometry_of(config, case.height, case.width)
    grid = geometry.latent_height, geometry.latent_width
    with torch.device("meta"):
        dit = Dit(config.dit, *grid)
    dit.dit_in = DitIn(config.dit, *grid)
    return wan_chain(
        config, Parts(dit, None, parts.vae), case.height, case.width, config.sampling.window
    )


def checkpoint(case: Case, root: Path) -> Path:
    """Seeded random weights of a case; whoever comes while they are written waits for them."""
    from export.random_weights import write_random

    config = case.config()
    weights = root / "checkpoints" / f"{config.name}-random-0"
    weights.parent.mkdir(parents=True, exist_ok=True)
    with weights.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not weights.is_dir():
            partial = weights.with_suffix(".partial")
            write_random(config, partial, 0, text=False)
            partial.rename(weights)
    return weights
