"""Wan's VAE against diffusers, in chunks, for any cut into units, in both forms of its convolutions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from export.models.pieces import Piece, PieceRun, cut_by_flop
from export.models.presets import VaeConfig
from export.models.vae import (
    LATENT_MEAN,
    LATENT_STD,
    WanVae,
    decoder_pieces,
    diffusers_to_original,
    encoder_pieces,
)

DATA = Path(__file__).parents[1] / "data"
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


def stream(pieces: Sequence[Piece], cuts: Sequence[int], chunks: Sequence[Tensor]) -> Tensor:
    """Runs chunks (the first in phase `first`) through units cut at `cuts`; returns all results joined in time."""
    bounds = [0, *sorted(set(cuts)), len(pieces)]
    parts = [pieces[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]
    units = {phase: [PieceRun(part, phase) for part in parts] for phase in ("first", "step")}
    caches = [
        [torch.zeros(shape) for _, shape in unit.state_specs(SIZE, SIZE)] for unit in units["first"]
    ]
    results = []
    for number, x in enumerate(chunks):
        for index, unit in enumerate(units["step" if number else "first"]):
            assert x.shape == unit.input_shape(SIZE, SIZE)
            x, *new = unit(x, *caches[index])
            assert x.shape == unit.output_shape(SIZE, SIZE)
            assert [c.shape for c in new] == [c.shape for c in caches[index]]
            caches[index] = new
        results.append(x)
    return torch.cat(results, 2)


def pixel_chunks(video: Tensor) -> list[Tensor]:
    return [video[:, :, start and start - 3 : start + 1] for start in range(0, video.shape[2], 4)]


def statistics() -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (LATENT_MEAN, LATENT_STD))
    return mean, std


def test_statistics_are_those_of_diffusers(oracle: AutoencoderKLWan) -> None:
    assert list(LATENT_MEAN) == oracle.config.latents_mean
    assert list(LATENT_STD) == oracle.config.latents_std


@pytest.mark.parametrize("frames", [1, 5, 9, 17])
@pytest.mark.parametrize("fold_time", [False, True])
def test_chunks_equal_the_whole_clip(
    oracle: AutoencoderKLWan, frames: int, fold_time: bool
) -> None:
    model = ours(oracle, fold_time)
    video = torch.rand(1, 3, frames, SIZE, SIZE) * 2 - 1
    mean, std = statistics()
    expected = oracle.encode(video).latent_dist.mode()
    latent = stream(encoder_pieces(model), [], pixel_chunks(video))
    torch.testing.assert_close(latent, (expected - mean) / std, atol=1e-4, rtol=0)
    clean = torch.randn_like(latent)
    restyled = stream(decoder_pieces(model), [], clean.split(1, 2))
    expected = oracle.decode(clean * std + mean).sample
    torch.testing.assert_close(restyled.clamp(-1, 1), expected, atol=1e-4, rtol=0)


@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.integers(1, 15), max_size=6))
def test_any_cut_into_units_gives_the_same(oracle: AutoencoderKLWan, cuts: list[int]) -> None:
    model = ours(oracle)
    generator = torch.Generator().manual_seed(1)
    for pieces, chunks in (
        (
            encoder_pieces(model),
            pixel_chunks(torch.randn(1, 3, 9, SIZE, SIZE, generator=generator)),
        ),
        (decoder_pieces(model), torch.randn(1, 16, 3, 4, 4, generator=generator).split(1, 2)),
    ):
        assert torch.equal(stream(pieces, cuts, chunks), stream(pieces, [], chunks))


def test_names_and_shapes_are_those_of_the_checkpoints() -> None:
    with torch.device("meta"):
        model = WanVae(VaeConfig())
        theirs = AutoencoderKLWan()
    original = shapes_of("vae-original.json")
    assert {k: tuple(v.shape) for k, v in model.state_dict().items()} == original
    assert {k: tuple(v.shape) for k, v in theirs.state_dict().items()} == shapes_of(
        "vae-diffusers.json"
    )
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
