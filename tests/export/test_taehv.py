"""TAEHV: a stream in chunks equals a naive loop over frames; names; sizes; random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from export.models.pieces import Piece, PieceRun
from export.models.presets import PRESETS, TaehvConfig
from export.models.taehv import (
    MemoryBlock,
    Taehv,
    TimeGrow,
    TimePool,
    adapt_state_dict,
    decoder_pieces,
    encoder_pieces,
    initialise,
)

DATA = Path(__file__).parents[1] / "data"
SIZE = 32
Stream = Callable[..., Tensor]
SMALL = {
    "like the released one": TaehvConfig(
        encoder_widths=(8, 8, 8),
        encoder_blocks=(1, 2, 1),
        decoder_widths=(16, 8, 8, 4),
        decoder_blocks=(1, 2, 1),
    ),
    "like tiny": TaehvConfig(
        encoder_widths=(8, 12, 16),
        encoder_blocks=(1, 1, 2),
        encoder_stride=(1, 2, 2),
        decoder_widths=(16, 12, 8, 8),
        decoder_blocks=(2, 1, 1),
        decoder_scale=(2, 2, 1),
        patch=2,
    ),
}
small = pytest.mark.parametrize("config", SMALL.values(), ids=SMALL)


def model_of(config: TaehvConfig) -> Taehv:
    model = Taehv(config).eval().requires_grad_(False)
    initialise(model, 0)
    return model


def naive(layers: nn.Sequential, frames: list[Tensor]) -> list[Tensor]:
    """All frames `[C, h, w]` through all layers, one layer and one frame after the other."""
    for layer in layers:
        if isinstance(layer, MemoryBlock):
            past = [torch.zeros_like(frames[0]), *frames[:-1]]
            pairs = zip(frames, past, strict=True)
            frames = [F.relu(layer.conv(torch.cat(pair)) + pair[0]) for pair in pairs]
        elif isinstance(layer, TimePool):
            starts = range(0, len(frames), layer.factor)
            groups = [torch.cat(frames[start : start + layer.factor]) for start in starts]
            frames = [layer.conv(group) for group in groups]
        elif isinstance(layer, TimeGrow):
            frames = [part for x in frames for part in layer.conv(x).chunk(layer.factor)]
        else:
            frames = [layer(x[None])[0] for x in frames]
    return frames


@small
def test_stream_equals_a_loop_over_frames(config: TaehvConfig, stream: Stream) -> None:
    model = model_of(config)
    video = torch.rand(1, 3, 13, SIZE, SIZE) * 2 - 1
    frames = [video[0, :, 0]] * 3 + list(video[0].unbind(1))
    expected = naive(model.encoder, [F.pixel_unshuffle(x / 2 + 0.5, config.patch) for x in frames])
    chunks = [video[:, :, :1], *video[:, :, 1:].split(4, 2)]
    latent = stream(encoder_pieces(model), chunks)
    torch.testing.assert_close(latent[0], torch.stack(expected, 1), atol=1e-5, rtol=0)
    pixels = naive(model.decoder, list(latent[0].unbind(1)))
    shuffled = [F.pixel_shuffle(x, config.patch) * 2 - 1 for x in pixels][3:]
    restyled = stream(decoder_pieces(model), latent.split(1, 2))
    torch.testing.assert_close(restyled[0], torch.stack(shuffled, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("half", [encoder_pieces, decoder_pieces])
@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.integers(1, 8), max_size=5))
def test_any_cut_into_units_gives_the_same(
    stream: Stream, half: Callable[[Taehv], list[Piece]], cuts: list[int]
) -> None:
    pieces = half(model_of(SMALL["like tiny"]))
    generator = torch.Generator().manual_seed(1)
    shapes = [pieces[0].source.shape(SIZE, SIZE, phase) for phase in ("first", "step", "step")]
    chunks = [torch.randn(shape, generator=generator) for shape in shapes]
    assert torch.equal(stream(pieces, chunks, cuts), stream(pieces, chunks))


def test_state_is_the_same_in_both_phases() -> None:
    for half in (encoder_pieces, decoder_pieces):
        pieces = half(model_of(PRESETS["tiny"].vae))
        first, step = (PieceRun(pieces, phase).state_specs(256, 256) for phase in ("first", "step"))
        assert first == step
        assert len({name for name, _ in first}) == len(first) > 0


def test_names_and_shapes_are_those_of_the_released_file() -> None:
    with torch.device("meta"):
        model = Taehv(TaehvConfig())
    released = json.loads((DATA / "taehv-taew2_1.json").read_text())
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == released


def test_of_weights_for_a_larger_growth_the_last_rows_count() -> None:
    model = model_of(SMALL["like tiny"])
    theirs = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    grow = next(n for n, m in model.named_modules() if isinstance(m, TimeGrow))
    name = f"{grow}.conv.weight"
    theirs[name] = torch.cat([torch.full_like(theirs[name], 7.0), theirs[name]])
    adapted = adapt_state_dict(theirs, model)
    assert torch.equal(adapted[name], model.state_dict()[name])
    model.load_state_dict(adapted)


@pytest.mark.parametrize("seed", range(3))
def test_random_weights_neither_die_nor_explode(seed: int, stream: Stream) -> None:
    model = Taehv(PRESETS["tiny"].vae).eval().requires_grad_(False)
    initialise(model, seed)
    ramp = torch.linspace(-1, 1, SIZE)
    scene = torch.stack([ramp.expand(SIZE, SIZE), ramp[:, None].expand(SIZE, SIZE)])
    frames = [torch.cat([scene, scene[:1] * k / 8])[:, None] for k in range(9)]
    video = torch.cat(frames, 1)[None]
    latent = stream(encoder_pieces(model), [video[:, :, :1], *video[:, :, 1:].split(4, 2)])
    assert 0.1 < latent.std() < 3
    assert latent.std((2, 3, 4)).min() > 0.01
    noise = torch.randn(1, 16, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    restyled = stream(decoder_pieces(model), noise.split(1, 2))
    assert 0.1 < restyled.std() < 2
    assert restyled.mean().abs() < 1
