"""The largest input of every linear layer of the blocks, found by running them, and the file that
keeps it.

Noisy latents stream through a filling and a full window in float32, block after block, so that
memory holds the weights of one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from export.options import Options, Progress
from export.sources import Opened
from rt import noise, window
from rt.errors import ConfigError

FILE_NAME = "fp8.json"
Amax = dict[str, float]
"""`block_0.ffn.0` -> the largest magnitude of what enters that layer."""


def calibrate(options: Options, opened: Opened, frames: int, progress: Progress) -> Amax:
    """Runs `frames` latent frames at every timestep of the model's schedule, one row each."""
    run = _Run(options, opened)
    entered, context = run.enter(frames)
    found: Amax = {}
    count = options.config.dit.blocks
    xs: list[Tensor] = [values[0] for values in entered]
    for index in range(count):
        progress(f"block_{index}", index, count)
        xs = run.block(index, xs, entered, context, found)
    return found


@dataclass(frozen=True, slots=True)
class _Run:
    options: Options
    opened: Opened

    def call(self, name: str, *arguments: Tensor) -> Any:
        """One unit on one set of arguments, its weights read for it and dropped again."""
        return self._calls(name, [arguments])[0]

    def _calls(self, name: str, arguments: Sequence[tuple[Tensor, ...]]) -> list[Any]:
        module, weights = self._loaded(name)
        with torch.no_grad():
            return [functional_call(module, weights, given) for given in arguments]

    def _loaded(self, name: str) -> tuple[nn.Module, dict[str, Tensor]]:
        unit = next(u for u in self.opened.chain.units if u.name == name)
        module = unit.phases["step"].module
        weights = {n: self.opened.read(unit, "step", n).float() for n in module.state_dict()}
        tables = {n: b for n, b in module.named_buffers() if n not in weights}
        return module, {**weights, **tables}

    def enter(self, frames: int) -> tuple[list[tuple[Tensor, ...]], Tensor]:
        """What `dit_in` makes of each frame, and the context of a random prompt."""
        config, random = self.options.config, torch.Generator().manual_seed(0)
        sampling, dit = config.sampling, config.dit
        units = {unit.name: unit.phases["step"] for unit in self.opened.chain.units}
        prompt = torch.randn(1, dit.text_length, dit.text_width, generator=random)
        table = noise.sigma_table(sampling.shift)
        sigma = torch.tensor([[[[noise.sigma_at(table, t)]]] for t in sampling.timesteps])
        shape = (len(sigma), *(int(d) for d in units["dit_in"].inputs[0].shape[1:]))
        given = []
        for frame in range(frames):
            clean = torch.randn(shape[1:], generator=random)
            noisy = (1 - sigma) * clean + sigma * torch.randn(shape, generator=random)
            angles = torch.from_numpy(window.rope_time(frame, dit.rope_pairs[0], dit.rope_theta))
            timesteps = torch.tensor(sampling.timesteps, dtype=torch.float32)
            given.append((noisy, timesteps, angles.repeat(len(sigma), 1, 1)))
        return self._calls("dit_in", given), self.call("prompt_in", prompt)

    def block(
        self,
        index: int,
        xs: Sequence[Tensor],
        entered: Sequence[tuple[Tensor, ...]],
        context: Tensor,
        found: Amax,
    ) -> list[Tensor]:
        """All frames through one block, its rings starting empty."""
        frames, sinks, rows = self.options.frames, self.options.pinned, len(xs[0])
        tokens = xs[0].shape[1]
        keys = [k.repeat(rows, 1, 1, 1) for k in self.call(f"prompt_kv_{index}", context)]
        module, weights = self._loaded(f"block_{index}")
        heads, head_dim = keys[0].shape[1], keys[0].shape[3]
        rings = [torch.zeros(rows, heads, frames * tokens, head_dim) for _ in range(2)]
        slots = np.full(frames, -1, np.int64)
        results = []
        with torch.no_grad(), _watched(module, f"block_{index}.", found):
            for frame, (x, (_, modulation, _, rope)) in enumerate(zip(xs, entered, strict=True)):
                slot = window.slot(frame, frames, sinks)
                slots[slot] = frame
                mask = torch.from_numpy(window.row_mask(slots, frame, frames, sinks, tokens))
                place = torch.full((rows,), slot * tokens)
                shown = mask.repeat(rows, 1, 1, 1)
                given = (x, modulation, rope, place, shown, *keys, *rings)
                after, *rings = functional_call(module, weights, given)
                results.append(after)
        return results


@contextmanager
def _watched(module: nn.Module, prefix: str, found: Amax) -> Iterator[None]:
    """While this lasts, the largest input of each linear layer of `module` is kept in `found`."""

    def watch(name: str, layer: nn.Linear) -> Any:
        def see(_layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            found[name] = max(found.get(name, 0.0), float(arguments[0].abs().max()))

        return layer.register_forward_pre_hook(see)

    layers = [(n, m) for n, m in module.named_modules() if isinstance(m, nn.Linear)]
    handles = [watch(prefix + name, layer) for name, layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def write(path: Path, weights_sha256: str, amax: Amax) -> None:
    """`amax` with the hash of the weights that it is of."""
    path.write_text(json.dumps({"weights": weights_sha256, "amax": amax}, indent=1) + "\n")


def read(path: Path, weights_sha256: str) -> Amax:
    """Raises ConfigError for a file that is none, or of other weights."""
    try:
        content = json.loads(path.read_text())
        found: Amax = {str(name): float(value) for name, value in content["amax"].items()}
        weights = content["weights"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"calibration: {path} is none ({error}); make it: python -m export calibrate"
        ) from None
    if weights != weights_sha256:
        raise ConfigError(
            f"calibration: {path} is of other weights; make it again: python -m export calibrate"
        )
    return found
