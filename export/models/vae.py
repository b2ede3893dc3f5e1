"""Wan 2.1 VAE: its weights, and its encoder and decoder as pieces with state passed in and out.

Parameters are named as in the original checkpoint (`Wan2.1_VAE.pth`), which loads strictly. Caches
of zeros are the start of a video. Phase `first` turns one frame into one latent frame and back,
phase `step` four into one and back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from export.models.pieces import Layer, Phase, Piece, Signal, pieces_along
from export.models.presets import VaeConfig
from export.models.vae_layers import (
    AttentionBlock,
    CausalConv3d,
    Downsample,
    ResidualBlock,
    RmsNorm,
    Upsample,
    kept,
)

# diffusers' names -> the original ones, applied in this order; the decoder's levels are handled
# apart.
DIFFUSERS_NAMES = (
    (r"\.conv1\.(weight|bias)$", r".residual.2.\1"),
    (r"\.conv2\.(weight|bias)$", r".residual.6.\1"),
    (r"\.norm1\.gamma$", ".residual.0.gamma"),
    (r"\.norm2\.gamma$", ".residual.3.gamma"),
    (r"\.conv_shortcut\.", ".shortcut."),
    (r"\.down_blocks\.", ".downsamples."),
    (r"\.mid_block\.resnets\.0\.", ".middle.0."),
    (r"\.mid_block\.attentions\.0\.", ".middle.1."),
    (r"\.mid_block\.resnets\.1\.", ".middle.2."),
    (r"\.conv_in\.", ".conv1."),
    (r"\.norm_out\.", ".head.0."),
    (r"\.conv_out\.", ".head.2."),
    (r"^quant_conv\.", "conv1."),
    (r"^post_quant_conv\.", "conv2."),
)


class Encoder(nn.Module):
    """Weights of the encoder; `encoder_pieces` says how they are run."""

    def __init__(self, config: VaeConfig, fold_time: bool) -> None:
        super().__init__()
        widths = [config.width * multiplier for multiplier in config.multipliers]
        layers: list[Layer] = []
        width = config.width
        for level, target in enumerate(widths):
            for _ in range(config.residual_blocks):
                layers.append(ResidualBlock(width, target, fold_time))
                width = target
            if level < len(widths) - 1:
                layers.append(Downsample(width, config.time_halved[level], fold_time))
        self.conv1 = CausalConv3d(3, config.width, fold_time=fold_time)
        self.downsamples = nn.Sequential(*layers)
        self.middle = middle(width, fold_time)
        self.head = head(width, 2 * config.latent_channels, fold_time)


class Decoder(nn.Module):
    """Weights of the decoder; `decoder_pieces` says how they are run."""

    def __init__(self, config: VaeConfig, fold_time: bool) -> None:
        super().__init__()
        widths = [config.width * multiplier for multiplier in reversed(config.multipliers)]
        layers: list[Layer] = []
        width = widths[0]
        self.conv1 = CausalConv3d(config.latent_channels, width, fold_time=fold_time)
        self.middle = middle(width, fold_time)
        for level, target in enumerate(widths):
            for _ in range(config.residual_blocks + 1):
                layers.append(ResidualBlock(width, target, fold_time))
                width = target
            if level < len(widths) - 1:
                layers.append(Upsample(width, config.time_halved[-1 - level], fold_time))
                width //= 2
        self.upsamples = nn.Sequential(*layers)
        self.head = head(width, 3, fold_time)


def middle(width: int, fold_time: bool) -> nn.Sequential:
    """The three layers at the lowest resolution."""
    before, after = (ResidualBlock(width, width, fold_time) for _ in range(2))
    return nn.Sequential(before, AttentionBlock(width), after)


def head(width: int, target: int, fold_time: bool) -> nn.Sequential:
    """Norm, SiLU and the last convolution."""
    return nn.Sequential(
        RmsNorm(width, 3), nn.SiLU(), CausalConv3d(width, target, fold_time=fold_time)
    )


class WanVae(nn.Module):
    """Weights of the Wan 2.1 VAE under the original names."""

    def __init__(self, config: VaeConfig, fold_time: bool = False) -> None:
        super().__init__()
        channels = config.latent_channels
        self.config = config
        self.encoder = Encoder(config, fold_time)
        self.conv1 = CausalConv3d(2 * channels, 2 * channels, (1, 1, 1), fold_time=fold_time)
        self.conv2 = CausalConv3d(channels, channels, (1, 1, 1), fold_time=fold_time)
        self.decoder = Decoder(config, fold_time)


class Affine(nn.Module):
    """`x * scale + shift` per channel of `[1, C, T, h, w]`, with constants."""

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale.view(1, -1, 1, 1, 1), persistent=False)
        self.register_buffer("shift", shift.view(1, -1, 1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class EncoderInput(Layer):
    """First convolution of the encoder: pixels -> features."""

    def __init__(self, conv: CausalConv3d) -> None:
        super().__init__()
        self.conv = conv

    def after(self, source: Signal) -> Signal:
        return replace(source, channels=self.conv.weight.shape[0])

    def states(self, source: Signal) -> list[tuple[str, Signal]]:
        return [("", kept(source, self.conv.history))]

    def forward(self, x: Tensor, phase: Phase, *caches: Tensor) -> tuple[Tensor, ...]:
        del phase
        return tuple(self.conv(x, caches[0]))


class DecoderInput(EncoderInput):
    """Latent -> features: normalisation undone, `conv2`, first convolution of the decoder."""

    def __init__(self, affine: nn.Module, pointwise: CausalConv3d, conv: CausalConv3d) -> None:
        super().__init__(conv)
        self.affine = affine
        self.pointwise = pointwise

    def forward(self, x: Tensor, phase: Phase, *caches: Tensor) -> tuple[Tensor, ...]:
        return super().forward(self.pointwise.convolve(self.affine(x)), phase, *caches)


class DecoderHead(Layer):
    """Features -> pixels, not clamped."""

    def __init__(self, layers: nn.Sequential, channels: int) -> None:
        super().__init__()
        self.layers = layers
        self.channels = channels

    def after(self, source: Signal) -> Signal:
        return replace(source, channels=self.channels)

    def states(self, source: Signal) -> list[tuple[str, Signal]]:
        return [("2", kept(source, 2))]

    def forward(self, x: Tensor, phase: Phase, *caches: Tensor) -> tuple[Tensor, ...]:
        del phase
        norm, silu, conv = self.layers
        return tuple(conv(silu(norm(x)), caches[0]))


class EncoderHead(DecoderHead):
    """Features -> mean of the posterior, normalised: head, `conv1`, first half of the channels."""

    def __init__(self, layers: nn.Sequential, pointwise: CausalConv3d, affine: nn.Module) -> None:
        super().__init__(layers, pointwise.weight.shape[0] // 2)
        self.pointwise = pointwise
        self.affine = affine

    def forward(self, x: Tensor, phase: Phase, *caches: Tensor) -> tuple[Tensor, ...]:
        moments, cache = super().forward(x, phase, *caches)
        return self.affine(self.pointwise.convolve(moments)[:, : self.channels]), cache


def encoder_pieces(model: WanVae) -> list[Piece]:
    """The encoder in order: pixels `[1, 3, 1 | 4, H, W]` -> latent `[1, 16, 1, H/8, W/8]`."""
    encoder = model.encoder
    affine: nn.Module = nn.Identity()
    if model.config.latents.encode:
        mean, std = latent_statistics(model)
        affine = Affine(1 / std, -mean / std)
    layers: list[tuple[str, Layer]] = [("encoder.conv1", EncoderInput(encoder.conv1))]
    layers += named_layers("encoder.downsamples", encoder.downsamples)
    layers += named_layers("encoder.middle", encoder.middle)
    layers += [("encoder.head", EncoderHead(encoder.head, model.conv1, affine))]
    return pieces_along(Signal(3, 1, 1, 4), layers)


def decoder_pieces(model: WanVae) -> list[Piece]:
    """The decoder in order: latent `[1, 16, 1, H/8, W/8]` -> pixels `[1, 3, 1 | 4, H, W]`.

    Pixels are not clamped.
    """
    decoder = model.decoder
    affine: nn.Module = nn.Identity()
    if model.config.latents.decode:
        mean, std = latent_statistics(model)
        affine = Affine(std, mean)
    first = DecoderInput(affine, model.conv2, decoder.conv1)
    layers: list[tuple[str, Layer]] = [("decoder.conv1", first)]
    layers += named_layers("decoder.middle", decoder.middle)
    layers += named_layers("decoder.upsamples", decoder.upsamples)
    layers += [("decoder.head", DecoderHead(decoder.head, 3))]
    scale = 2 ** (len(model.config.multipliers) - 1)
    return pieces_along(Signal(model.config.latent_channels, scale, 1, 1), layers)


def named_layers(path: str, layers: nn.Sequential) -> list[tuple[str, Layer]]:
    """The layers of a sequence with their paths."""
    return [(f"{path}.{i}", layer) for i, layer in enumerate(layers) if isinstance(layer, Layer)]


def latent_statistics(model: WanVae) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per latent channel, on the device of the weights."""
    latents, channels = model.config.latents, model.config.latent_channels
    weight = model.conv2.weight
    mean, std = (weight.new_tensor(v[:channels]) for v in (latents.mean, latents.std))
    return mean, std


def diffusers_to_original(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the tensors of a diffusers `AutoencoderKLWan` to the original names.

    Names that it does not know stay, so that a strict load names them.
    """
    blocks = [re.match(r"decoder\.up_blocks\.0\.resnets\.(\d+)\.", name) for name in state_dict]
    upsampler = 1 + max((int(match[1]) for match in blocks if match), default=2)

    def upsample(match: re.Match[str]) -> str:
        index = upsampler if match[2] == "upsamplers" else int(match[3])
        return f"decoder.upsamples.{int(match[1]) * (upsampler + 1) + index}."

    def rename(name: str) -> str:
        pattern = r"^decoder\.up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)\."
        name = re.sub(pattern, upsample, name)
        for old, new in DIFFUSERS_NAMES:
            name = re.sub(old, new, name)
        return name

    return {rename(name): tensor for name, tensor in state_dict.items()}
