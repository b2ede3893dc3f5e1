"""TAEHV: a small stand-in for Wan's VAE, with the memory of its blocks passed in and out.

Parameters are named as in the released file (`taew2_1.pth`). The frames of a chunk run in parallel,
as planes; a memory block sees each frame's predecessor, the first one's through its cache. Phase
`first` runs its one frame four times and decodes to the last of four. Latents are those of the DiT:
TAEHV has no mean and std of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.models.pieces import Layer, Phase, Piece, Signal, enlarge, pieces_along
from export.models.presets import TaehvConfig

CHUNK = 4  # pixel frames per latent frame


class MemoryBlock(Layer):
    """Residual block over each frame and its predecessor. Cache: the last frame of its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(2 * width, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )  # fmt: skip

    def states(self, source: Signal) -> list[tuple[str, Signal]]:
        return [("", replace(source, first_frames=1, step_frames=1))]

    def forward(self, x: Tensor, phase: Phase, *caches: Tensor) -> tuple[Tensor, ...]:
        del phase
        past = torch.cat([caches[0], x[:-1]])
        return F.relu(self.conv(torch.cat([x, past], 1)) + x), x[-1:]


class TimePool(nn.Module):
    """Joins `factor` frames into one by a pointwise convolution, earliest first."""

    def __init__(self, width: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.conv = nn.Conv2d(factor * width, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[T, C, h, w] -> [T / factor, C, h, w]`."""
        y: Tensor = self.conv(x.reshape(-1, self.factor * x.shape[1], *x.shape[2:]))
        return y


class TimeGrow(nn.Module):
    """Splits one frame into `factor` by a pointwise convolution, earliest first."""

    def __init__(self, width: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.conv = nn.Conv2d(width, factor * width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[T, C, h, w] -> [T * factor, C, h, w]`."""
        y: Tensor = self.conv(x)
        return y.reshape(-1, *x.shape[1:])


class Enlarge(nn.Module):
    """Nearest neighbour by `scale` in space, on planes."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return enlarge(x, self.scale)


class Clamp(nn.Module):
    """Soft clamp of latents to (-3, 3)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


def conv3(source: int, target: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    """3x3 convolution, "same" padding."""
    return nn.Conv2d(source, target, 3, stride, 1, bias=bias)


class Taehv(nn.Module):
    """Weights of TAEHV; `encoder_pieces` and `decoder_pieces` say how they are run."""

    def __init__(self, config: TaehvConfig) -> None:
        super().__init__()
        self.config = config
        width = config.encoder_widths[0]
        layers: list[nn.Module] = [conv3(3 * config.patch**2, width), nn.ReLU()]
        for target, blocks, factor, stride in zip(
            config.encoder_widths, config.encoder_blocks, config.encoder_time,
            config.encoder_stride, strict=True,
        ):  # fmt: skip
            layers += [TimePool(width, factor), conv3(width, target, stride, bias=False)]
            layers += [MemoryBlock(target) for _ in range(blocks)]
            width = target
        self.encoder = nn.Sequential(*layers, conv3(width, config.latent_channels))

        width = config.decoder_widths[0]
        layers = [Clamp(), conv3(config.latent_channels, width), nn.ReLU()]
        for target, blocks, factor, scale in zip(
            config.decoder_widths[1:], config.decoder_blocks, config.decoder_time,
            config.decoder_scale, strict=True,
        ):  # fmt: skip
            layers += [MemoryBlock(width) for _ in range(blocks)]
            layers += [Enlarge(scale), TimeGrow(width, factor), conv3(width, target, bias=False)]
            width = target
        self.decoder = nn.Sequential(*layers, nn.ReLU(), conv3(width, 3 * config.patch**2))


class Stateless(Layer):
    """Layers without memory; `target` is what they give. Subclasses add the way in or out."""

    def __init__(self, layers: Sequence[nn.Module], target: Signal) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.target = target

    def after(self, source: Signal) -> Signal:
        del source
        return self.target

    def forward(self, x: Tensor, phase: Phase, *caches: Tensor) -> tuple[Tensor, ...]:
        del phase, caches
        return (self.layers(x),)


class PixelInput(Layer):
    """Pixels `[1, 3, 1 | 4, H, W]` in [-1, 1] -> four planes; one frame counts four times.

    The first convolution is over the pixels of `patch` x `patch` as channels. Its weight is only
    reordered, to a larger convolution with stride `patch` over the picture itself.
    """

    def __init__(self, conv: nn.Conv2d, patch: int) -> None:
        super().__init__()
        self.conv = conv
        self.patch = patch

    def after(self, source: Signal) -> Signal:
        del source
        return planes(self.conv.out_channels, self.patch, CHUNK)

    def forward(self, x: Tensor, phase: Phase, *caches: Tensor) -> tuple[Tensor, ...]:
        del caches
        patch, out = self.patch, self.conv.out_channels
        weight = self.conv.weight.view(out, 3, patch, patch, 3, 3).permute(0, 1, 4, 2, 5, 3)
        weight = weight.reshape(out, 3, 3 * patch, 3 * patch)
        frames = x.squeeze(0).transpose(0, 1) / 2 + 0.5  # [T, 3, H, W] in [0, 1]
        features = F.relu(F.conv2d(frames, weight, self.conv.bias, patch, patch))
        return (features.expand(CHUNK, -1, -1, -1) if phase == "first" else features,)


class LatentOutput(Stateless):
    """One plane of features -> latent `[1, 16, 1, h, w]`."""

    def forward(self, x: Tensor, phase: Phase, *caches: Tensor) -> tuple[Tensor, ...]:
        del phase, caches
        return (self.layers(x).unsqueeze(2),)


class LatentInput(Stateless):
    """Latent `[1, 16, 1, h, w]` -> one plane of features."""

    def forward(self, x: Tensor, phase: Phase, *caches: Tensor) -> tuple[Tensor, ...]:
        del phase, caches
        return (self.layers(x.squeeze(2)),)


class PixelOutput(Stateless):
    """Four planes -> pixels `[1, 3, 4, H, W]`, or the last of them `[1, 3, 1, H, W]`."""

    def __init__(self, layers: Sequence[nn.Module], patch: int, target: Signal) -> None:
        super().__init__(layers, target)
        self.patch = patch

    def forward(self, x: Tensor, phase: Phase, *caches: Tensor) -> tuple[Tensor, ...]:
        del caches
        planes = self.layers(x[-1:] if phase == "first" else x)
        frames = F.pixel_shuffle(planes, self.patch) * 2 - 1
        return (frames.transpose(0, 1).unsqueeze(0),)


def planes(channels: int, scale: int, frames: int) -> Signal:
    """Planes between the layers: the same in both phases."""
    return Signal(channels, scale, frames, frames, frames_leading=True)


def encoder_pieces(model: Taehv) -> list[Piece]:
    """The encoder in order: pixels `[1, 3, 1 | 4, H, W]` -> latent `[1, 16, 1, H/8, W/8]`."""
    config, layers = model.config, list(model.encoder)
    scale, frames = config.patch, CHUNK
    first = layers[0]
    assert isinstance(first, nn.Conv2d)
    named: list[tuple[str, Layer]] = [("encoder.0", PixelInput(first, config.patch))]
    at = 2
    for width, blocks, factor, stride in zip(
        config.encoder_widths, config.encoder_blocks, config.encoder_time, config.encoder_stride,
        strict=True,
    ):  # fmt: skip
        scale, frames = scale * stride, frames // factor
        signal = planes(width, scale, frames)
        named.append((f"encoder.{at}", Stateless(layers[at : at + 2], signal)))
        at += 2
        named += memory_blocks("encoder", layers, at, blocks)
        at += blocks
    latent = Signal(config.latent_channels, scale, 1, 1)
    named.append((f"encoder.{at}", LatentOutput(layers[at:], latent)))
    return pieces_along(Signal(3, 1, 1, CHUNK), named)


def decoder_pieces(model: Taehv) -> list[Piece]:
    """The decoder in order: latent `[1, 16, 1, H/8, W/8]` -> pixels `[1, 3, 1 | 4, H, W]`.

    Pixels are not clamped.
    """
    config, layers = model.config, list(model.decoder)
    scale, frames = config.patch * prod(config.decoder_scale), 1
    latent = Signal(config.latent_channels, scale, 1, 1)
    named: list[tuple[str, Layer]] = [
        ("decoder.1", LatentInput(layers[:3], planes(config.decoder_widths[0], scale, frames)))
    ]
    at = 3
    for width, blocks, factor, grow in zip(
        config.decoder_widths[1:], config.decoder_blocks, config.decoder_time,
        config.decoder_scale, strict=True,
    ):  # fmt: skip
        named += memory_blocks("decoder", layers, at, blocks)
        at += blocks
        scale, frames = scale // grow, frames * factor
        bigger, split, conv = layers[at : at + 3]
        # Growth in time is pointwise: before the enlargement it gives the same and costs less.
        stage = Stateless([split, bigger, conv], planes(width, scale, frames))
        named.append((f"decoder.{at + 1}", stage))
        at += 3
    pixels = PixelOutput(layers[at:], config.patch, Signal(3, 1, 1, CHUNK))
    return pieces_along(latent, [*named, (f"decoder.{at + 1}", pixels)])


def memory_blocks(
    path: str, layers: Sequence[nn.Module], start: int, count: int
) -> list[tuple[str, Layer]]:
    """The `count` memory blocks from index `start` on, with their paths."""
    chosen = enumerate(layers[start : start + count], start)
    return [(f"{path}.{i}", layer) for i, layer in chosen if isinstance(layer, MemoryBlock)]


def adapt_state_dict(state_dict: Mapping[str, Tensor], model: Taehv) -> dict[str, Tensor]:
    """Released weights as `model` takes them.

    The released file may hold `TimeGrow` weights for more frames than the model makes: of those the
    last rows, the latest frames, count. Everything else stays, so that a strict load finds what
    does not fit.
    """
    adapted = dict(state_dict)
    for name, module in model.named_modules():
        key = f"{name}.conv.weight"
        if isinstance(module, TimeGrow) and key in adapted:
            adapted[key] = adapted[key][-module.conv.out_channels :]
    return adapted


def initialise(model: Taehv, seed: int) -> None:
    """Random weights that keep the second moment of features from layer to layer.

    Gain 2 where a ReLU follows, 1 elsewhere; a memory block starts close to the identity, pixels
    around grey.
    """
    generator = torch.Generator().manual_seed(seed)
    for layers in (list(model.encoder), list(model.decoder)):
        for layer, following in pairwise([*layers, nn.Identity()]):
            if isinstance(layer, MemoryBlock):
                for index, gain in ((0, 2.0), (2, 2.0), (4, 0.1)):
                    fill(layer.conv[index], gain, generator)
            elif isinstance(layer, TimePool | TimeGrow):
                fill(layer.conv, 1.0, generator)
            elif isinstance(layer, nn.Conv2d):
                fill(layer, 2.0 if isinstance(following, nn.ReLU | MemoryBlock) else 1.0, generator)
    pixels = model.decoder[-1]
    fill(pixels, 0.1, generator)
    assert isinstance(pixels, nn.Conv2d)
    assert pixels.bias is not None
    nn.init.constant_(pixels.bias, 0.5)


def fill(conv: nn.Module, gain: float, generator: torch.Generator) -> None:
    """Normal weights of variance `gain / fan-in`, bias 0."""
    assert isinstance(conv, nn.Conv2d)
    with torch.no_grad():
        std = (gain / conv.weight[0].numel()) ** 0.5
        conv.weight.normal_(0, std, generator=generator)
        if conv.bias is not None:
            conv.bias.zero_()
