"""Wan 2.1 VAE: encoder and decoder, causal in time, with their convolution history passed in and out.

Parameters are named as in the original checkpoint (`Wan2.1_VAE.pth`), which loads strictly. Caches of zeros are the start
of a video. Phase `first` turns one frame into one latent frame and back, phase `step` four into one and back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.models.pieces import Layer, Phase, Piece, Signal, pieces_along
from export.models.presets import VaeConfig

# Per-channel statistics of Wan 2.1 latents, as published with the model (configuration of its VAE).
LATENT_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
LATENT_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip


# diffusers' names -> the original ones, applied in this order; the decoder's levels are handled apart.
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


class CausalConv3d(nn.Module):
    """Convolution over time and space that sees only the past; stride 1 in space, "same" padding with zeros there.

    With `fold_time` the taps in time become channels of a 2-D convolution: the weight `[out, in, taps, kh, kw]` is only
    reshaped to `[out, in * taps, kh, kw]`. `history` is the number of past frames that the next chunk needs.
    """

    def __init__(
        self, source: int, target: int, kernel: tuple[int, int, int] = (3, 3, 3),
        time_stride: int = 1, fold_time: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.weight = nn.Parameter(torch.empty(target, source, *kernel))
        self.bias = nn.Parameter(torch.zeros(target))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        self.kernel = kernel
        self.time_stride = time_stride
        self.fold_time = fold_time
        self.history = kernel[0] - time_stride

    def convolve(self, x: Tensor) -> Tensor:
        """`[1, C, T, h, w] -> [1, C', T', h, w]`, without padding in time: `T' = (T - taps) // time_stride + 1`."""
        taps, height, width = self.kernel
        space = (height // 2, width // 2)
        if not self.fold_time:
            return F.conv3d(x, self.weight, self.bias, (self.time_stride, 1, 1), (0, *space))
        last = x.shape[2] - taps + 1
        stacked = torch.stack([x[:, :, k : k + last : self.time_stride] for k in range(taps)], 2)
        planes = stacked[0].permute(2, 0, 1, 3, 4).flatten(1, 2)  # [T', C * taps, h, w]
        return as_video(F.conv2d(planes, self.weight.flatten(1, 2), self.bias, padding=space))

    def forward(self, x: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        """`x [1, C, T, h, w]`, `cache [1, C, history, h, w]` -> result and the new cache."""
        x = torch.cat([cache, x], 2)
        return self.convolve(x), x[:, :, -self.history :]


def as_planes(x: Tensor) -> Tensor:
    """`[1, C, T, h, w] -> [T, C, h, w]`."""
    return x[0].transpose(0, 1)


def as_video(x: Tensor) -> Tensor:
    """`[T, C, h, w] -> [1, C, T, h, w]`."""
    return x.transpose(0, 1).unsqueeze(0)


class RmsNorm(nn.Module):
    """Channels (dimension 1) scaled to unit root mean square, times gamma; in float32, eps 1e-12 on the L2 norm."""

    def __init__(self, width: int, dimensions: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width, *(1,) * dimensions))

    def forward(self, x: Tensor) -> Tensor:
        unit = F.normalize(x.float(), dim=1).to(x.dtype)
        return unit * self.gamma.shape[0] ** 0.5 * self.gamma


def kept(source: Signal, frames: int) -> Signal:
    """The cache of `frames` past frames of a signal, the same in both phases."""
    return replace(source, first_frames=frames, step_frames=frames)


class ResidualBlock(Layer):
    """Norm, SiLU, convolution, twice, beside a shortcut. Caches: the inputs of both convolutions."""

    def __init__(self, source: int, target: int, fold_time: bool) -> None:
        super().__init__()
        self.width = target
        self.residual = nn.Sequential(
            RmsNorm(source, 3), nn.SiLU(), CausalConv3d(source, target, fold_time=fold_time),
            RmsNorm(target, 3), nn.SiLU(), nn.Identity(),  # dropout in the original
            CausalConv3d(target, target, fold_time=fold_time),
        )  # fmt: skip
        self.shortcut: CausalConv3d | None = None
        if source != target:
            self.shortcut = CausalConv3d(source, target, (1, 1, 1), fold_time=fold_time)

    def after(self, source: Signal) -> Signal:
        return replace(source, channels=self.width)

    def states(self, source: Signal) -> list[tuple[str, Signal]]:
        return [("residual.2", kept(source, 2)), ("residual.6", kept(self.after(source), 2))]

    def forward(self, x: Tensor, phase: Phase, *caches: Tensor) -> tuple[Tensor, ...]:
        del phase
        norm1, silu, conv1, norm2, _, _, conv2 = self.residual
        y, cache1 = conv1(silu(norm1(x)), caches[0])
        y, cache2 = conv2(silu(norm2(y)), caches[1])
        return y + (x if self.shortcut is None else self.shortcut.convolve(x)), cache1, cache2


class AttentionBlock(Layer):
    """Self-attention with one head over the positions of each frame alone; no state."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = RmsNorm(width, 2)
        self.to_qkv = nn.Conv2d(width, 3 * width, 1)
        self.proj = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, phase: Phase, *caches: Tensor) -> tuple[Tensor, ...]:
        del phase, caches
        planes = as_planes(x)
        qkv = (
            self.to_qkv(self.norm(planes)).flatten(2).unsqueeze(1).transpose(2, 3)
        )  # [T, 1, hw, 3C]
        mixed = F.scaled_dot_product_attention(*qkv.chunk(3, -1))
        y = self.proj(mixed.transpose(2, 3).reshape(planes.shape))
        return (x + as_video(y),)


class Downsample(Layer):
    """Halves the space, and with `time` the frames. Cache: the last frame before the convolution in time.

    In phase `first` the only frame passes and becomes the cache.
    """

    def __init__(self, width: int, time: bool, fold_time: bool) -> None:
        super().__init__()
        pad = nn.ZeroPad2d((0, 1, 0, 1))
        self.resample = nn.Sequential(pad, nn.Conv2d(width, width, 3, stride=2))
        self.time_conv: CausalConv3d | None = None
        if time:
            self.time_conv = CausalConv3d(width, width, (3, 1, 1), 2, fold_time)

    def after(self, source: Signal) -> Signal:
        frames = source.step_frames // (1 if self.time_conv is None else 2)
        return replace(source, scale=source.scale * 2, step_frames=frames)

    def states(self, source: Signal) -> list[tuple[str, Signal]]:
        if self.time_conv is None:
            return []
        return [("time_conv", kept(self.after(source), self.time_conv.history))]

    def forward(self, x: Tensor, phase: Phase, *caches: Tensor) -> tuple[Tensor, ...]:
        x = as_video(self.resample(as_planes(x)))
        if self.time_conv is None:
            return (x,)
        if phase == "first":
            return x, x
        return tuple(self.time_conv(x, caches[0]))


def enlarge(x: Tensor) -> Tensor:
    """Doubles height and width, nearest neighbour: `[T, C, h, w] -> [T, C, 2h, 2w]`; needs no resize operator."""
    frames, channels, height, width = x.shape
    tiled = x[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2)
    return tiled.reshape(frames, channels, 2 * height, 2 * width)


class Upsample(Layer):
    """Doubles the space, and with `time` the frames; halves the channels. Cache: two frames before the growth in time.

    In phase `first` the only frame passes and the cache stays as it is.
    """

    def __init__(self, width: int, time: bool, fold_time: bool) -> None:
        super().__init__()
        self.width = width // 2
        self.resample = nn.Sequential(nn.Identity(), nn.Conv2d(width, width // 2, 3, padding=1))
        self.time_conv: CausalConv3d | None = None
        if time:
            self.time_conv = CausalConv3d(width, 2 * width, (3, 1, 1), fold_time=fold_time)

    def after(self, source: Signal) -> Signal:
        frames = source.step_frames * (1 if self.time_conv is None else 2)
        return replace(source, channels=self.width, scale=source.scale // 2, step_frames=frames)

    def states(self, source: Signal) -> list[tuple[str, Signal]]:
        if self.time_conv is None:
            return []
        return [("time_conv", kept(source, self.time_conv.history))]

    def forward(self, x: Tensor, phase: Phase, *caches: Tensor) -> tuple[Tensor, ...]:
        if self.time_conv is not None and phase == "step":
            pairs, *caches_next = self.time_conv(
                x, caches[0]
            )  # [1, 2C, T, h, w], even frames first
            caches = tuple(caches_next)
            _, channels, frames, height, width = x.shape
            pairs = pairs.reshape(1, 2, channels, frames, height, width).permute(0, 2, 3, 1, 4, 5)
            x = pairs.reshape(1, channels, 2 * frames, height, width)
        return as_video(self.resample(enlarge(as_planes(x)))), *caches


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
    return nn.Sequential(
        ResidualBlock(width, width, fold_time), AttentionBlock(width), ResidualBlock(width, width, fold_time)
    )  # fmt: skip


def head(width: int, target: int, fold_time: bool) -> nn.Sequential:
    """Norm, SiLU and the last convolution."""
    return nn.Sequential(
        RmsNorm(width, 3), nn.SiLU(), CausalConv3d(width, target, fold_time=fold_time)
    )


class WanVae(nn.Module):
    """Weights of the Wan 2.1 VAE under the original names.

    `normalise_encode`, `normalise_decode`: whether latents outside are `(z - mean) / std` of the model's own ones;
    which of them holds belongs to the family of the checkpoint.
    """

    def __init__(
        self, config: VaeConfig, fold_time: bool = False,
        normalise_encode: bool = True, normalise_decode: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        channels = config.latent_channels
        self.config = config
        self.normalise_encode = normalise_encode
        self.normalise_decode = normalise_decode
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
    """Features -> mean of the posterior (its mode), normalised: head, `conv1`, first half of the channels."""

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
    if model.normalise_encode:
        mean, std = latent_statistics(model)
        affine = Affine(1 / std, -mean / std)
    layers: list[tuple[str, Layer]] = [("encoder.conv1", EncoderInput(encoder.conv1))]
    layers += named_layers("encoder.downsamples", encoder.downsamples)
    layers += named_layers("encoder.middle", encoder.middle)
    layers += [("encoder.head", EncoderHead(encoder.head, model.conv1, affine))]
    return pieces_along(Signal(3, 1, 1, 4), layers)


def decoder_pieces(model: WanVae) -> list[Piece]:
    """The decoder in order: latent `[1, 16, 1, H/8, W/8]` -> pixels `[1, 3, 1 | 4, H, W]`, not clamped."""
    decoder = model.decoder
    affine: nn.Module = nn.Identity()
    if model.normalise_decode:
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
    channels = model.config.latent_channels
    weight = model.conv2.weight
    mean, std = (weight.new_tensor(v[:channels]) for v in (LATENT_MEAN, LATENT_STD))
    return mean, std


def diffusers_to_original(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the tensors of a diffusers `AutoencoderKLWan` to the original names; others keep theirs."""
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
