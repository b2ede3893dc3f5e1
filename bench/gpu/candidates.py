"""Ways in which libraries do what most of the time goes to, each timed alone at the sizes of
wan-1.3b at 480x832: attention over the ring, products by the weights of a block, and the three
convolutions that do 85 % of Wan's VAE. What a unit should use is decided by these rows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.gpu.record import Reading, refused
from bench.gpu.timing import NARROW_PRODUCT, PRODUCT, median_ms

Ways = Mapping[str, Callable[[], Tensor]]
RING = (1, 12, 1560, 9360, 128)
"""Rows, heads, tokens of a frame, tokens of the ring, head_dim."""
LAYERS = ((1560, 1536, 1536), (1560, 1536, 8960), (1560, 8960, 1536))
"""Tokens, width in, width out."""
PLANES = ((96, 4, 480, 832), (192, 4, 240, 416), (384, 2, 120, 208))
"""Channels, frames out, height, width."""


@dataclass(frozen=True, slots=True)
class Operation:
    """Something to be done in several ways, all with the same result but for rounding.

    `flop` is its work, `narrow` the ways whose factors are e4m3.
    """

    name: str
    flop: int
    ways: Ways
    narrow: frozenset[str] = frozenset()


def operations(kinds: Collection[str], device: str = "cuda") -> Iterator[Operation]:
    """Of these kinds, one at a time: each has inputs of its own."""
    if "attention" in kinds:
        yield attention(*RING, device=device)
    for layer in LAYERS if "product" in kinds else ():
        yield product(*layer, device=device)
    for planes in PLANES if "convolution" in kinds else ():
        yield convolution(*planes, device=device)


def attention(
    rows: int, heads: int, tokens: int, ring: int, width: int, *, device: str
) -> Operation:
    """Of one frame over a full ring: with the mask that hides nothing, and without one."""
    q, k, v = (
        torch.randn(rows, heads, n, width, device=device, dtype=torch.bfloat16)
        for n in (tokens, ring, ring)
    )
    mask = torch.zeros(rows, 1, 1, ring, device=device, dtype=torch.bfloat16)

    def by(backend: SDPBackend | None, hidden: Tensor | None) -> Callable[[], Tensor]:
        def run() -> Tensor:
            if backend is None:  # as a unit leaves it
                return F.scaled_dot_product_attention(q, k, v, hidden)
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v, hidden)

        return run

    ways = {"torch's choice, masked": by(None, mask), "torch's choice": by(None, None)}
    for name, backend in (
        ("flash", SDPBackend.FLASH_ATTENTION),
        ("cuDNN", SDPBackend.CUDNN_ATTENTION),
        ("memory-efficient", SDPBackend.EFFICIENT_ATTENTION),
    ):
        ways |= {f"{name}, masked": by(backend, mask), name: by(backend, None)}
    flop = 4 * rows * heads * tokens * ring * width
    return Operation(f"attention of {tokens} to {ring}", flop, ways)


def product(tokens: int, source: int, target: int, *, device: str) -> Operation:
    """x W^T without a bias."""
    x = torch.randn(tokens, source, device=device, dtype=torch.bfloat16)
    weight = torch.randn(target, source, device=device, dtype=torch.bfloat16) * source**-0.5
    one = torch.ones((), device=device)
    low, low_weight = x.to(torch.float8_e4m3fn), weight.to(torch.float8_e4m3fn)

    def narrow() -> Tensor:
        return torch._scaled_mm(
            low, low_weight.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True
        )

    ways: Ways = {"bf16": lambda: x @ weight.t(), "e4m3": narrow}
    name = f"product of {tokens} by {source} by {target}"
    return Operation(name, 2 * tokens * source * target, ways, frozenset({"e4m3"}))


def convolution(channels: int, frames: int, height: int, width: int, *, device: str) -> Operation:
    """3x3x3 over two frames of history, space padded: in three dimensions, in either layout, and in
    two, with the taps in time as channels or one after another.
    """
    x = torch.randn(1, channels, frames + 2, height, width, device=device, dtype=torch.bfloat16)
    weight = torch.randn(channels, channels, 3, 3, 3, device=device, dtype=torch.bfloat16)
    weight *= (27 * channels) ** -0.5
    last = {"memory_format": torch.channels_last_3d}
    x_last, weight_last = x.to(**last), weight.to(**last)
    planes = x[0].transpose(0, 1).contiguous(memory_format=torch.channels_last)  # [T + 2, C, h, w]
    taps = [weight[:, :, k].contiguous(memory_format=torch.channels_last) for k in range(3)]
    folded = torch.cat(taps, 1).contiguous(memory_format=torch.channels_last)

    def as_channels() -> Tensor:
        stacked = torch.cat([planes[k : k + frames] for k in range(3)], 1)
        return F.conv2d(stacked, folded, padding=1).transpose(0, 1).unsqueeze(0)

    def one_after_another() -> Tensor:
        total = F.conv2d(planes[:frames], taps[0], padding=1)
        for k in (1, 2):
            total += F.conv2d(planes[k : k + frames], taps[k], padding=1)
        return total.transpose(0, 1).unsqueeze(0)

    ways: Ways = {
        "3-D": lambda: F.conv3d(x, weight, padding=(0, 1, 1)),
        "3-D, channels last": lambda: F.conv3d(x_last, weight_last, padding=(0, 1, 1)),
        "2-D, taps as channels": as_channels,
        "2-D, tap after tap": one_after_another,
    }
    flop = 2 * 27 * channels**2 * frames * height * width
    return Operation(f"convolution of {channels} at {height}x{width}", flop, ways)


def readings(kinds: Collection[str], peaks: Mapping[str, float]) -> Iterator[Reading]:
    """Each way in ms, beside what its work takes at the measured peak; refused where the library
    has no kernel for it.
    """
    for operation in operations(kinds):
        for way, run in operation.ways.items():
            name = f"{operation.name}: {way}"
            try:
                run()
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                yield refused(name, error)
                continue
            peak = peaks.get(NARROW_PRODUCT if way in operation.narrow else PRODUCT)
            limit = None if peak is None else operation.flop / peak / 1e9
            yield Reading(name, median_ms(run), "ms", 20, limit)
