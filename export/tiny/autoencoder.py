"""Training of the VAE: chunks of a clip side by side as planes, exactly what the runtime computes
chunk by chunk.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.models import taehv
from export.models.presets import TaehvConfig
from export.models.taehv import CHUNK, MemoryBlock, Taehv, TimeGrow, TimePool
from export.tiny.data import Clip, clip
from export.tiny.loop import Ahead, ConvolutionMuon, Report, averaged, train
from export.tiny.recipe import Recipe
from export.tiny.styles import STYLES

STATE, DECODER_STATE = "vae.pt", "decoder.pt"
_OFFSET = 4.0
"""Added to the latent on its way through units that cut at 0."""


def frames_of(chunks: int) -> int:
    """Pixel frames in `chunks` chunks, the first of which has one."""
    return 1 + CHUNK * (chunks - 1)


def as_planes(clips: Tensor) -> Tensor:
    """Clips [N, 1 + 4 k, 3, H, W] -> [N, 4 (1 + k), 3, H, W]: the first frame counts four times."""
    return torch.cat([clips[:, :1].expand(-1, CHUNK - 1, -1, -1, -1), clips], 1)


def encode(model: Taehv, clips: Tensor) -> Tensor:
    """Pixels in [0, 1], [N, 1 + 4 k, 3, H, W] -> latents [N, 1 + k, C, h, w]."""
    planes = as_planes(clips)
    x = F.pixel_unshuffle(planes.flatten(0, 1), model.config.patch)
    x = x.contiguous(memory_format=torch.channels_last)
    latents = _run(model.encoder, x, len(clips))
    return latents.view(len(clips), -1, *latents.shape[1:])


def decode(model: Taehv, latents: Tensor) -> Tensor:
    """Latents [N, 1 + k, C, h, w] -> pixels [N, 1 + 4 k, 3, H, W], not clamped."""
    x = _run(model.decoder, latents.flatten(0, 1), len(latents))
    planes = F.pixel_shuffle(x, model.config.patch)
    return planes.view(len(latents), -1, *planes.shape[1:])[:, CHUNK - 1 :]


def _run(layers: nn.Sequential, x: Tensor, clips: int) -> Tensor:
    """Planes [N * T, C, h, w] through the layers; T changes where time is pooled or grown."""
    for layer in layers:
        if isinstance(layer, MemoryBlock):
            sequence = x.view(clips, -1, *x.shape[1:])
            past = F.pad(sequence[:, :-1], (0, 0, 0, 0, 0, 0, 1, 0)).flatten(0, 1)
            x = F.relu(layer.conv(torch.cat([x, past], 1)) + x)
        else:  # pooling and growth stay within a clip, whose planes are a multiple of the factor
            x = layer(x)
    return x


def initialise(model: Taehv, pictures: Tensor, seed: int) -> None:
    """Random weights, and through them a straight linear way: 8x8 patches -> principal components
    -> pixels.

    `pictures` [M, 3, H, W] in [0, 1]. From random weights alone the decoder's units soon die.
    """
    taehv.initialise(model, seed)
    config = model.config
    scales = config.encoder_stride, config.decoder_scale, config.patch
    widths = (*config.encoder_widths, *config.decoder_widths)
    if scales != ((1, 1, 2), (2, 1, 1), 4) or min(widths) < 3 * config.patch**2:
        return
    with torch.no_grad():
        _straight_encoder(model, pictures)
        _straight_decoder(model, pictures)


def _straight_encoder(model: Taehv, pictures: Tensor) -> None:
    """Whitened principal components of the mean of four frames as latents."""
    config, pixels = model.config, 3 * model.config.patch**2
    cells = F.pixel_unshuffle(pictures, config.patch)  # [M, 48, h, w]
    grouped = cells.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).flatten(3)
    samples = grouped.flatten(0, 2)  # [*, 48 * 4]: channel, row, column
    mean = samples.mean(0)
    _, scale, basis = torch.linalg.svd(samples - mean, full_matrices=False)
    kept = config.latent_channels
    deviation = scale[:kept] / len(samples) ** 0.5
    project = (basis[:kept] / deviation[:, None]).view(kept, pixels, 2, 2)
    convolutions, blocks = _of(model.encoder, nn.Conv2d), _of(model.encoder, MemoryBlock)
    for layer in convolutions[:3]:
        _copy(layer, pixels)
    for pool in _of(model.encoder, TimePool):
        _average(pool, pixels)
    reduce, leave = convolutions[3], convolutions[4]
    reduce.weight[:kept] = 0
    reduce.weight[:kept, :pixels, 1:, 1:] = project
    last = len(blocks) - config.encoder_blocks[2]
    for index, block in enumerate(blocks):
        _last(block).weight[: pixels if index < last else kept] = 0
    _bias(_last(blocks[last]))[:kept] = _OFFSET - project.flatten(1) @ mean
    leave.weight.mul_(0.1)
    _copy(leave, kept)
    _bias(leave)[:kept] = -_OFFSET


def _straight_decoder(model: Taehv, pictures: Tensor) -> None:
    """The best 3x3 convolution of clamped latents to pixels, by least squares."""
    config, pixels, kept = model.config, 3 * model.config.patch**2, model.config.latent_channels
    convolutions, blocks = _of(model.decoder, nn.Conv2d), _of(model.decoder, MemoryBlock)
    grows = _of(model.decoder, TimeGrow)
    enter, enlarge, after, leave = (
        convolutions[0],
        convolutions[1],
        convolutions[2:-1],
        convolutions[-1],
    )
    _copy(enter, kept)
    _bias(enter)[:kept] = _OFFSET - 1  # latents are clamped to (-3, 3)
    enter.weight[kept] = 0
    _bias(enter)[kept] = 1  # a constant, for the mean
    for index, block in enumerate(blocks):
        _last(block).weight[: kept + 1 if index < config.decoder_blocks[0] else pixels] = 0
    for index, grow in enumerate(grows):
        _repeat(grow, pixels if index else kept + 1)
    for layer in (*after, leave):
        _copy(layer, pixels)
    leave.weight[:, pixels:] = 0
    latents = encode(model, pictures[:, None])
    until = next(i for i, layer in enumerate(model.decoder) if layer is enlarge)
    features = _run(
        nn.Sequential(*list(model.decoder)[:until]), latents.flatten(0, 1), len(pictures)
    )[:, : kept + 1]
    inputs = F.unfold(features, 3, padding=1).transpose(1, 2).flatten(0, 1).double()
    wanted = F.pixel_unshuffle(pictures, config.patch).flatten(2).transpose(1, 2).flatten(0, 1)
    square = inputs.T @ inputs + 1e-4 * len(inputs) * torch.eye(inputs.shape[1])
    found = torch.linalg.solve(square, inputs.T @ wanted.double()).float()
    enlarge.weight[:pixels] = 0
    enlarge.weight[:pixels, : kept + 1] = found.T.reshape(pixels, kept + 1, 3, 3)


LayerKind = TypeVar("LayerKind", bound=nn.Module)


def _last(block: MemoryBlock) -> nn.Conv2d:
    """The convolution whose result is added to the block's input."""
    layer = block.conv[4]
    assert isinstance(layer, nn.Conv2d)
    return layer


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias


def _of(layers: nn.Sequential, kind: type[LayerKind]) -> list[LayerKind]:
    return [layer for layer in layers if isinstance(layer, kind)]


def _copy(layer: nn.Conv2d, count: int) -> None:
    """Let the first `count` channels pass unchanged."""
    layer.weight[:count] = 0
    layer.weight[range(count), range(count), 1, 1] = 1
    if layer.bias is not None:
        layer.bias[:count] = 0


def _average(pool: TimePool, count: int) -> None:
    """Of the first `count` channels the mean over time."""
    pool.conv.weight[:count] = 0
    for part in range(pool.factor):
        pool.conv.weight[
            range(count),
            range(part * pool.conv.out_channels, part * pool.conv.out_channels + count),
        ] = 1 / pool.factor


def _repeat(grow: TimeGrow, count: int) -> None:
    """The first `count` channels to every frame."""
    width = grow.conv.in_channels
    for part in range(grow.factor):
        rows = range(part * width, part * width + count)
        grow.conv.weight[rows] = 0
        grow.conv.weight[rows, range(count)] = 1


def styled(pictures: Clip, style: str) -> Clip:
    """Every frame of a clip through the filter of a style."""
    return np.stack([STYLES[style](picture) for picture in pictures])


def to_tensor(pictures: Clip) -> Tensor:
    """uint8 [T, H, W, 3] -> float32 [T, 3, H, W] in [0, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255


def batch_of(recipe: Recipe, step: int) -> Tensor:
    """The clips of a step, a third of them as filmed, the others in a style."""
    r = recipe.vae
    rng = np.random.default_rng([recipe.seed, 1, step])
    names = list(STYLES)
    made = []
    for place in range(r.batch):
        pictures = clip(recipe.seed, step * r.batch + place, frames_of(r.chunks), r.size)
        style = "realistic" if rng.random() < 0.3 else names[int(rng.integers(1, len(names)))]
        made.append(to_tensor(styled(pictures, style)))
    return torch.stack(made)


def train_vae(recipe: Recipe, deadline: float, report: Report) -> tuple[Taehv, bool]:
    """Train encoder and decoder; returns them with averaged weights, and whether it is done."""
    r, model = recipe.vae, _vae(recipe)
    torch.manual_seed(recipe.seed)
    if not (recipe.out / STATE).is_file():
        sample = torch.cat([batch_of(recipe, r.steps + i)[:, 0] for i in range(24)])
        initialise(model, sample, recipe.seed)
    return model, _train(recipe, model, (0, r.steps), STATE, deadline, report)


def train_decoder(recipe: Recipe, deadline: float, report: Report) -> tuple[Taehv, bool]:
    """Train the decoder further, over an encoder that changes no more; returns as `train_vae`."""
    r, model = recipe.vae, _vae(recipe)
    model.load_state_dict(averaged(recipe.out / STATE))
    model.encoder.requires_grad_(False)
    span = r.steps, r.decoder_steps
    return model, _train(recipe, model, span, DECODER_STATE, deadline, report)


def _train(
    recipe: Recipe, model: Taehv, span: tuple[int, int], state: str, deadline: float, report: Report
) -> bool:
    """Train what of `model` wants gradients; the clips of a step begin with number `span[0]`, and
    there are `span[1]` steps.
    """
    r, (first, steps) = recipe.vae, span
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizers = [
        ConvolutionMuon([p for p in trained if p.ndim == 4], r.rate),
        torch.optim.Adam([p for p in trained if p.ndim != 4], r.rate, betas=(0.9, 0.99)),
    ]
    batches = Ahead(lambda step: batch_of(recipe, first + step))

    def loss_of(step: int) -> dict[str, Tensor]:
        truth = batches(step)
        noise = torch.Generator().manual_seed(recipe.seed * 1_000_003 + first + step)
        with torch.autocast("cpu", torch.bfloat16):
            latents = encode(model, truth)
            strength = torch.rand(r.batch, 1, 1, 1, 1, generator=noise) ** 2 * r.latent_noise
            disturbed = latents + strength * torch.randn(latents.shape, generator=noise)
            found = decode(model, disturbed).float()
        return loss_terms(found, truth, latents.float())

    try:
        return train(
            model, optimizers, loss_of, steps=steps, state=recipe.out / state,
            deadline=deadline, report=report,
        )  # fmt: skip
    finally:
        batches.close()


def trained_vae(recipe: Recipe) -> Taehv:
    """The VAE as far as it has been trained."""
    model, later = _vae(recipe), recipe.out / DECODER_STATE
    model.load_state_dict(averaged(later if later.is_file() else recipe.out / STATE))
    return model


def _vae(recipe: Recipe) -> Taehv:
    assert isinstance(recipe.model.vae, TaehvConfig)
    return Taehv(recipe.model.vae)


def loss_terms(found: Tensor, truth: Tensor, latents: Tensor) -> dict[str, Tensor]:
    """Error of pixels, of their gradients in space and of their changes in time, and latents held
    at zero mean and unit variance.
    """
    error = found - truth
    slope = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    per_channel = latents.transpose(0, 2).flatten(1)
    spread = per_channel.mean(1).square() + (per_channel.std(1) - 1).square()
    return {
        "l1": error.abs().mean(),
        "slope": 0.25 * slope,
        "change": 0.25 * error.diff(dim=1).abs().mean(),
        "square": 8 * error.square().mean(),
        "latent": 0.003 * spread.mean(),
    }
