"""Frozen options of a session, checked when they are made. What belongs to a model is in its
manifest instead.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, Literal, get_args

from .errors import ConfigError

VERSION = importlib.metadata.version("streamdiffusion-rt")

Prompt = str | Path | Sequence[tuple[str, float]]
"""A text, a file of embeddings, or a weighted mix of texts."""

Motion = Literal["flow", "difference", "off"]
Start = Literal["fast", "full"]
Positions = Literal["window", "absolute"]
Sinks = Literal["adaptive", "fixed"]
Fit = Literal["crop", "stretch"]


@dataclass(frozen=True, slots=True)
class SLO:
    """What a live viewer needs: frames at `fps` (None: as the source), each within `latency_ms` of
    its capture.

    `percentile` of the frames have to hold it.
    """

    fps: float | None = None
    latency_ms: float = 1000.0
    percentile: float = 0.99

    def __post_init__(self) -> None:
        if self.fps is not None:
            check_positive("slo.fps", self.fps, 10_000, "frames/s")
        check_positive("slo.latency_ms", self.latency_ms, 10_000_000, "ms")
        check_positive("slo.percentile", self.percentile, 1, "as a share")


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """How one video is restyled.

    prompt: what it should look like. slo: None = no deadlines; the source is slowed instead and the
    result is reproducible bit for bit. seed: of the noise, 0 .. 2**64 - 1. steps: denoising steps
    per chunk, None = the model's own; under load, if there is an SLO, down to min_steps, and those
    of higher priority keep theirs longer. motion: what sets the noise strength. start: begin after
    one frame ("fast") or five ("full"). positions: rotary positions, bounded by the window or
    absolute. sinks: replaced when the scene changes, or kept. fit: how a picture of another aspect
    ratio meets the engine's size. noise_range: noise scale of the fastest and of a resting picture,
    None = the model's own.
    """

    prompt: Prompt
    slo: SLO | None = None
    seed: int = 0
    steps: int | None = None
    min_steps: int = 1
    priority: int = 0
    motion: Motion = "flow"
    start: Start = "fast"
    positions: Positions = "window"
    sinks: Sinks = "adaptive"
    fit: Fit = "crop"
    noise_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_prompt(self.prompt)
        if not isinstance(self.prompt, str | Path):
            # A caller's list may change later; a configuration does not.
            frozen = tuple((text, float(weight)) for text, weight in self.prompt)
            object.__setattr__(self, "prompt", frozen)
        if not isinstance(self.slo, SLO | None):
            raise ConfigError(f"slo: got {self.slo!r}, expected an rt.SLO or None")
        check_int("seed", self.seed, 0, (1 << 64) - 1)
        if self.steps is not None:
            check_int("steps", self.steps, 1, 1000)
        check_int("min_steps", self.min_steps, 1, self.steps or 1000)
        check_int("priority", self.priority, -1000, 1000)
        _check_choice("motion", self.motion, Motion)
        _check_choice("start", self.start, Start)
        _check_choice("positions", self.positions, Positions)
        _check_choice("sinks", self.sinks, Sinks)
        _check_choice("fit", self.fit, Fit)
        if self.noise_range is not None:
            _check_range("noise_range", self.noise_range)


def check_prompt(prompt: Prompt) -> None:
    """Raises ConfigError for a prompt without words, or a mix without weight."""
    if isinstance(prompt, str):
        if not prompt.strip():
            raise ConfigError(
                "prompt: got an empty text, expected words; say what the video should look like"
            )
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise ConfigError(
                f"prompt: got {prompt!r}, which holds bytes that are no text; expected UTF-8"
            ) from None
        return
    if isinstance(prompt, Path):
        return
    if not _is_mix(prompt):
        raise ConfigError(
            f"prompt: got {prompt!r}, expected a text, a Path of embeddings or (text, weight) pairs"
        )
    weights = [weight for _, weight in prompt]
    if not all(math.isfinite(w) and w >= 0 for w in weights) or sum(weights) <= 0:
        raise ConfigError(f"prompt: got weights {weights}, expected some above 0, none below")
    for text, _ in prompt:
        check_prompt(text)


def _is_mix(prompt: Any) -> bool:
    return isinstance(prompt, Sequence) and all(
        isinstance(pair, Sequence)
        and len(pair) == 2
        and isinstance(pair[0], str)
        and isinstance(pair[1], Real)
        for pair in prompt
    )


def check_positive(name: str, value: Any, most: int, unit: str) -> None:
    """Raises ConfigError for what is no number above 0 and up to `most`."""
    if not isinstance(value, Real) or not 0 < float(value) <= most:
        raise ConfigError(f"{name}: got {value!r}, expected above 0, up to {most} {unit}")


def check_int(name: str, value: Any, least: int, most: int) -> None:
    """Raises ConfigError for what is no whole number from `least` to `most`."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ConfigError(f"{name}: got {value!r}, expected a whole number from {least} to {most}")


def _check_range(name: str, value: Any) -> None:
    pair = isinstance(value, tuple) and len(value) == 2 and all(isinstance(v, Real) for v in value)
    if not pair or not 0 < value[0] <= value[1] <= 1:
        raise ConfigError(
            f"{name}: got {value!r}, expected a pair (low, high), 0 < low <= high <= 1"
        )


def _check_choice(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise ConfigError(f"{name}: got {value!r}, expected one of {', '.join(get_args(choices))}")
