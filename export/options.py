"""The records of a build: what it is asked for, works on, and has made. Nothing here computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from export.models.presets import ModelConfig
from export.sources import Opened
from rt.manifest import Plan

Latents = Literal["auto", "normalised", "raw"]
"""What the encoder gives to the DiT: by the folder of the checkpoint, or as said."""

Progress = Callable[[str, int, int], None]
"""Called with what is done now, the number of steps done, and the number of all steps."""


@dataclass(frozen=True, slots=True)
class Options:
    """What to build. Everything here but `out` decides whether an engine is still valid.

    `checkpoint` is a folder of weights, or an engine whose weights are used again. None means
    seeded random weights, written to `checkpoints` beside `out`. `compute_capability` is of the
    GPUs that a compiled plan is for, e.g. ("8.9",). `base` is a folder that has what is not beside
    the DiT (VAE, text encoder, tokenizer). `loras` are files and weights, merged into the DiT.
    `calibration` is the file that says how large the inputs of the linear layers are, for fp8.
    """

    config: ModelConfig
    height: int
    width: int
    out: Path
    name: str
    backend: str = "onnxruntime"
    precision: str = "fp32"
    max_batch: int = 4
    window: int | None = None
    sinks: int | None = None
    checkpoint: Path | None = None
    seed: int = 0
    compute_capability: tuple[str, ...] = ()
    base: Path | None = None
    loras: tuple[tuple[Path, float], ...] = ()
    latents: Latents = "auto"
    calibration: Path | None = None

    @property
    def frames(self) -> int:
        """Window in latent frames."""
        return self.config.sampling.window if self.window is None else self.window

    @property
    def pinned(self) -> int:
        """Sinks among them."""
        return self.config.sampling.sinks if self.sinks is None else self.sinks


@dataclass(frozen=True, slots=True)
class Work:
    """A build under way: what is asked for, the chain with its weights, and the folder to fill.

    `tolerance` is the largest difference that a plan may have to its PyTorch unit; `amax` the
    largest input of each linear layer, at fp8.
    """

    options: Options
    opened: Opened
    staging: Path
    tolerance: float
    amax: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Made:
    """Plans by unit and phase, the files that they point into, and how many files were built now
    and were found finished.
    """

    plans: Mapping[str, Mapping[str, Plan]]
    files: tuple[str, ...]
    built: int
    reused: int
