"""Wan's VAE against diffusers, in chunks, for any cut into units, in both forms of its
convolutions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from export.models.pieces import Piece, cut_by_flop
from export.models.presets import WAN_LATENTS, VaeConfig
from export.models.vae import (
    WanVae,
    decoder_pieces,
    diffusers_to_original,
    encoder_pieces,
)

DATA = Path(__file__).parents[1] / "data"
Stream = Callable[..., Tensor]
Whole = tuple[list[Piece], Sequence[Tensor], Tensor]
CONFIG = VaeConfig(width=8)
SIZE = 32


def shapes_of(name: str) -> dict[str, tuple[int, ...]]:
    return {key: tuple(shape) for key, shape in json.loads((DATA / name).read_text()).items()}


@pytest.fixture(scope="module")
def oracle() -> AutoencoderKLWan:
    torch.manual_seed(0)
    model = AutoencoderKLWan(base_dim=CONFIG.width).eval().requires_grad_(False)
    for name, tensor in model.named_parameters():
        if name.endswith("gamma"):
            tensor.copy_(torch.rand_like(tensor) + 0.5)
    return model


def ours(oracle: AutoencoderKLWan, fold_time: bool = False) -> WanVae:
    model = WanVae(CONFIG, fold_time).eval().requires_grad_(False)
    model.load_state_dict(diffusers_to_original(oracle.state_dict()))
    return model


def pixel_chunks(video: Tensor) -> list[Tensor]:
    return [video[:, :, start and start - 3 : start + 1] for start in range(0, video.shape[2], 4)]


def statistics() -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (WAN_LATENTS.mean, WAN_LATENTS.std))
    return mean, std


def test_statistics_are_those_of_diffusers(oracle: AutoencoderKLWan) -> None:
    assert list(WAN_LATENTS.mean) == oracle.config.latents_mean
    assert list(WAN_LATENTS.std) == oracle.config.latents_std


@pytest.mark.parametrize("frames", [1, 5, 9, 17])
@pytest.mark.parametrize("fold_time", [False, True])
def test_chunks_equal_the_whole_clip(
    oracle: AutoencoderKLWan, stream: Stream, frames: int, fold_time: bool
) -> None:
    model = ours(oracle, fold_time)
    video = torch.rand(1, 3, frames, SIZE, SIZE) * 2 - 1
    mean, std = statistics()
    expected = oracle.encode(video).latent_dist.mode()
    latent = stream(encoder_pieces(model), pixel_chunks(video))
    torch.testing.assert_close(latent, (expected - mean) / std, atol=1e-4, rtol=0)
    clean = torch.randn_like(latent)
    restyled = stream(decoder_pieces(model), clean.split(1, 2))
    expected = oracle.decode(clean * std + mean).sample
    torch.testing.assert_close(restyled.clamp(-1, 1), expected, atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def whole(oracle: AutoencoderKLWan, stream: Stream) -> list[Whole]:
    """Encoder and decoder, chunks for them, and what they give as one unit."""
    model = ours(oracle)
    encoder, decoder = encoder_pieces(model), decoder_pieces(model)
    generator = torch.Generator().manual_seed(1)
    pixels = pixel_chunks(torch.randn(1, 3, 5, SIZE, SIZE, generator=generator))
    latents = torch.randn(1, 16, 2, 4, 4, generator=generator).split(1, 2)
    return [
        (encoder, pixels, stream(encoder, pixels)),
        (decoder, latents, stream(decoder, latents)),
    ]


@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.integers(1, 15), max_size=6), half=st.integers(0, 1))
def test_any_cut_into_units_gives_the_same(
    whole: list[Whole], stream: Stream, cuts: list[int], half: int
) -> None:
    pieces, chunks, expected = whole[half]
    assert torch.equal(stream(pieces, chunks, cuts), expected)


def test_names_and_shapes_are_those_of_the_checkpoints() -> None:
    with torch.device("meta"):
        model = WanVae(VaeConfig())
        theirs = AutoencoderKLWan()
    original = shapes_of("vae-original.json")
    assert {k: tuple(v.shape) for k, v in model.state_dict().items()} == original
    names = shapes_of("vae-diffusers.json")
    assert {k: tuple(v.shape) for k, v in theirs.state_dict().items()} == names
    renamed = diffusers_to_original(theirs.state_dict())
    assert {k: tuple(v.shape) for k, v in renamed.items()} == original


@pytest.mark.parametrize(
    "height, width, encode, decode", [(480, 832, 8.05, 13.55), (512, 512, 5.27, 8.88)]
)
def test_work_per_chunk(height: int, width: int, encode: float, decode: float) -> None:
    with torch.device("meta"):
        model = WanVae(VaeConfig())
    for pieces, tflop in ((encoder_pieces(model), encode), (decoder_pieces(model), decode)):
        work = [piece.flop(height, width) for piece in pieces]
        assert sum(work) / 1e12 == pytest.approx(tflop, rel=0.01)
        budget = 0.12 * 35e12
        assert max(work) <= budget
        runs = cut_by_flop(pieces, budget, height, width)
        assert [piece for run in runs for piece in run] == pieces
        loads = [sum(piece.flop(height, width) for piece in run) for run in runs]
        assert max(loads) <= budget
        assert len(runs) <= sum(work) / budget + 2
