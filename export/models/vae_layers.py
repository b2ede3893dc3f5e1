"""The layers of the Wan 2.1 VAE: convolutions causal in time, and blocks of them.

Parameters are named as in the original checkpoint. The history of a convolution is passed in and
out. Videos are `[1, C, T, h, w]`, planes are `[T, C, h, w]`.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.models.pieces import Layer, Phase, Signal, enlarge


class CausalConv3d(nn.Module):
    """Convolution that sees only the past in time, and pads with zeros in space (stride 1).

    With `fold_time` the taps in time become channels of a 2-D convolution: the weight
    `[out, in, taps, kh, kw]` is only reshaped to `[out, in * taps, kh, kw]`. `history`: how many
    past frames the next chunk needs.
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
        """`[1, C, T, h, w] -> [1, C', T', h, w]`, `T' = (T - taps) // time_stride + 1`."""
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
    """Channels (dimension 1) divided by their root mean square, times gamma, in float32; the result
    is of the type that comes in. Their L2 norm is at least 1e-12.
    """

    def __init__(self, width: int, dimensions: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width, *(1,) * dimensions))
        self.root = math.sqrt(width)

    def forward(self, x: Tensor) -> Tensor:
        return (F.normalize(x.float(), dim=1) * (self.gamma * self.root)).to(x.dtype)


def kept(source: Signal, frames: int) -> Signal:
    """The cache of `frames` past frames of a signal, the same in both phases."""
    return replace(source, first_frames=frames, step_frames=frames)


class ResidualBlock(Layer):
    """Twice norm, SiLU, convolution, beside a shortcut. Caches: the inputs of both convolutions."""

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
        qkv = self.to_qkv(self.norm(planes)).flatten(2).transpose(1, 2).unsqueeze(1)
        # [T, 1, hw, 3C]: one head
        scale = planes.shape[1] ** -0.5  # said, because a graph may not leave it to a default
        q, k, v = qkv.chunk(3, -1)
        mixed = F.scaled_dot_product_attention(q, k, v, scale=scale)
        y = self.proj(mixed.transpose(2, 3).reshape(planes.shape))
        return (x + as_video(y),)


class Downsample(Layer):
    """Halves the space, and with `time` the frames.

    Cache: the last frame before the convolution in time. In phase `first` the only frame passes and
    becomes the cache.
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


class Upsample(Layer):
    """Doubles the space, and with `time` the frames; halves the channels.

    Cache: the last two frames before the convolution in time. In phase `first` the only frame
    passes and the cache stays as it is.
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
            grown, cache = self.time_conv(x, caches[0])
            caches = (cache,)
            _, channels, frames, height, width = x.shape
            # [1, 2C, T, h, w] holds the channels of all even frames, then those of all odd ones.
            pairs = grown.reshape(1, 2, channels, frames, height, width).permute(0, 2, 3, 1, 4, 5)
            x = pairs.reshape(1, channels, 2 * frames, height, width)
        return as_video(self.resample(enlarge(as_planes(x), 2))), *caches
