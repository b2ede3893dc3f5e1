"""The released package `streamdiffusionv2`: its own modules, filled with our weights.

It alone imports the package, which `make peers` puts into a folder. What is called here is what its
pipeline calls, in the same order; only sizes are passed in, because its wrappers fix them.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

import torch
from torch import Tensor

from bench.peers.model import Setting
from export.formats import State
from export.models.presets import WAN_LATENTS, DitConfig, Sampling, VaeConfig

LONGEST = 32760
"""Tokens of the longest sequence, as its wrapper passes it."""


def find(folder: Path) -> None:
    """Make the package in `folder` importable."""
    if not (folder / "models" / "wan").is_dir():
        sys.exit(f"error: {folder} holds no streamdiffusionv2; run: make peers")
    sys.path.append(str(folder.resolve()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports what torch and diffusers have renamed
        importlib.import_module("models.wan.causal_model")


def dit_in_release(folder: Path) -> State:
    """The DiT's weights in `folder`/model.pt as its own loader reads them, under the names of its
    wrapper, whose only module is "model".
    """
    absent = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    with patch.dict(sys.modules, {name: MagicMock() for name in (*absent, "omegaconf")}):
        common = importlib.import_module("streamv2v.inference_common")  # reads pictures and options
    _, weights = common.load_generator_state_dict(str(folder))
    return {name.removeprefix("model."): tensor for name, tensor in weights.items()}


def vae_in_release(file: Path, config: VaeConfig) -> State:
    """The VAE's weights in `file` as its own loader reads them into its module."""
    from models.wan.wan_base.modules.vae import _video_vae

    model = _video_vae(
        str(file),
        z_dim=config.latent_channels,
        dim=config.width,
        dim_mult=list(config.multipliers),
        num_res_blocks=config.residual_blocks,
        temperal_downsample=list(config.time_halved),
    )
    weights: State = model.state_dict()
    return weights


class ReferenceDit:
    """Its causal DiT with a KV cache of `rows` rows, three fixed sinks, absolute positions."""

    def __init__(
        self, config: DitConfig, weights: State, embeddings: Tensor, rows: int, window: int,
        sinks: int, tokens: int, setting: Setting,
    ) -> None:  # fmt: skip
        from models.wan.causal_model import CausalWanModel

        with torch.device("meta"):
            model = CausalWanModel(
                dim=config.width,
                ffn_dim=config.ffn,
                num_heads=config.heads,
                num_layers=config.blocks,
                text_len=config.text_length,
                text_dim=config.text_width,
                freq_dim=config.frequency_width,
            )
        model.load_state_dict(setting.state(weights), strict=True, assign=True)
        model.freqs = _rotations(config.head_dim)
        for block in model.blocks:
            block.self_attn.sink_size, block.self_attn.adapt_sink_thr = sinks, -1
        self._model: Any = model.eval().requires_grad_(False)
        self._setting = setting
        self._embeddings = setting.tensor(embeddings).expand(rows, -1, -1)
        self._tokens = tokens
        ring = torch.zeros(rows, window * tokens, config.heads, config.head_dim)
        ends = torch.zeros(rows, dtype=torch.long, device=setting.device)
        self._rings = [
            {
                "k": setting.tensor(ring).clone(),
                "v": setting.tensor(ring).clone(),
                "global_end_index": ends.clone(),
                "local_end_index": ends.clone(),
                "total_steps": 1,
                "current_step": 1,
            }
            for _ in range(config.blocks)
        ]
        self._prompt: list[dict[str, Any]] = [{"is_init": False} for _ in range(config.blocks)]

    def __call__(self, noisy: Tensor, timestep: Tensor, index: int) -> Tensor:
        """Velocity of latent frame `index`: noisy [rows, C, h, w], timestep [rows] -> the same."""
        device = self._setting.device
        starts = torch.full((len(noisy),), index * self._tokens, device=device)
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.filterwarnings("ignore", message="flash_attn is not installed")
            velocity = self._model(
                self._setting.tensor(noisy).unsqueeze(2),
                t=timestep.to(device).unsqueeze(1),
                context=self._embeddings,
                seq_len=LONGEST,
                kv_cache=self._rings,
                crossattn_cache=self._prompt,
                current_start=starts,
                current_end=starts + self._tokens,
            )
        result: Tensor = velocity.squeeze(2)
        return result


def _rotations(head_dim: int) -> Tensor:
    """Its table of rotations, which a model made on the meta device lacks."""
    from models.wan.wan_base.modules.model import rope_params

    spatial = 2 * (head_dim // 6)
    parts = (head_dim - 2 * spatial, spatial, spatial)
    return torch.cat([rope_params(1024, size) for size in parts], dim=1)


class ReferenceVae:
    """Its streaming VAE. The first call takes five frames or two latents; later ones four and
    one."""

    def __init__(self, config: VaeConfig, weights: State, setting: Setting) -> None:
        from models.wan.wan_base.modules.vae import WanVAE_

        with torch.device("meta"):
            model = WanVAE_(
                dim=config.width,
                z_dim=config.latent_channels,
                dim_mult=list(config.multipliers),
                num_res_blocks=config.residual_blocks,
                temperal_downsample=list(config.time_halved),
            )
        model.load_state_dict(setting.state(weights), strict=True, assign=True)
        self._model: Any = model.eval().requires_grad_(False)
        self._setting = setting
        scale = torch.tensor(WAN_LATENTS.mean), 1 / torch.tensor(WAN_LATENTS.std)
        self._scale = [setting.tensor(part) for part in scale]

    def encode(self, pixels: Tensor) -> Tensor:
        """[1, 3, T, H, W] in [-1, 1] -> normalised latents [1, C, t, h, w]."""
        with torch.inference_mode():
            latents: Tensor = self._model.stream_encode(self._setting.tensor(pixels), self._scale)
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents [1, C, t, h, w] -> pixels [1, 3, T, H, W], not clamped."""
        with torch.inference_mode():
            pixels: Tensor = self._model.stream_decode(self._setting.tensor(latents), self._scale)
        return pixels


class ReferenceSchedule:
    """Its flow-matching schedule: timesteps to sigmas, in float64 where it takes float64."""

    def __init__(self, sampling: Sampling) -> None:
        from models.wan.flow_match import FlowMatchScheduler

        self._flow: Any = FlowMatchScheduler(
            shift=sampling.shift, sigma_min=0.0, extra_one_step=True
        )
        self._flow.set_timesteps(1000, training=True)

    def clean(self, noisy: Tensor, velocity: Tensor, timestep: Tensor) -> Tensor:
        """Predicted clean latents of noisy ones: all [rows, C, h, w], timestep [rows]."""
        levels = self._flow.timesteps.to(timestep.device).double()
        nearest = (levels[None] - timestep[:, None].double()).abs().argmin(dim=1)
        sigma = self._flow.sigmas.to(timestep.device).double()[nearest].view(-1, 1, 1, 1)
        return (noisy.double() - sigma * velocity.double()).to(noisy.dtype)

    def noised(self, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """Clean latents at the noise level of `timestep`."""
        result: Tensor = self._flow.add_noise(clean, noise, timestep)
        return result
