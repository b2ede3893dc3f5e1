"""The tiny model's training: data and styles, agreement with the runtime's units, resuming."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from micro_engine import MICRO, SIZE, build_micro, micro_options
from torch import Tensor

from export import build, checkpoints
from export.layout import find
from export.models.dit import Dit
from export.models.pieces import Piece, PieceRun
from export.models.taehv import Taehv, decoder_pieces, encoder_pieces
from export.models.taehv import initialise as random_start
from export.tiny import autoencoder, checkpoint, denoiser
from export.tiny.data import clip
from export.tiny.recipe import TINY, DitRecipe, Recipe, VaeRecipe
from export.tiny.styles import STRUCTURAL, STYLES, prompt
from rt import manifest, window
from rt.errors import CheckpointError


def recipe(out: Path) -> Recipe:
    return Recipe(
        out,
        MICRO,
        VaeRecipe(steps=4, decoder_steps=3, batch=2, chunks=2, size=32),
        DitRecipe(steps=4, clips=3, chunks=2, size=SIZE, whole_frames=2, crops=2, crop=4),
    )


def silent(*_: object) -> None:
    pass


def test_styles_differ_and_are_functions_of_the_picture() -> None:
    picture = clip(0, 3, 1, 128)[0]
    made = {name: apply(picture) for name, apply in STYLES.items()}
    for name, apply in STYLES.items():
        assert made[name].shape == picture.shape
        assert made[name].dtype == np.uint8
        assert np.array_equal(made[name], apply(picture))
    for one, other in itertools.combinations(made, 2):
        difference = np.abs(made[one].astype(int) - made[other].astype(int)).mean()
        assert difference > 5, f"{one} looks like {other}"
    assert np.array_equal(made["realistic"], picture)
    assert len(STYLES) >= 7
    assert set(STRUCTURAL) < set(STYLES)


def test_clips_are_functions_of_seed_and_index() -> None:
    first = clip(1, 2, 5, 64)
    assert first.shape == (5, 64, 64, 3)
    assert np.array_equal(first, clip(1, 2, 5, 64))
    assert not np.array_equal(first, clip(1, 3, 5, 64))
    assert not np.array_equal(first, clip(2, 2, 5, 64))


def test_prompts_name_their_style() -> None:
    rng = np.random.default_rng(0)
    for style in STYLES:
        texts = {prompt(style, rng) for _ in range(20)}
        assert len(texts) > 5
        assert style == "realistic" or all(style in text for text in texts)


def in_chunks(pieces: list[Piece], chunks: list[Tensor]) -> Tensor:
    """Chunks [1, C, T, h, w] one after the other, as the runtime does; joined in time."""
    made, caches = [], None
    for number, x in enumerate(chunks):
        unit = PieceRun(pieces, "step" if number else "first")
        if caches is None:
            caches = [torch.zeros(shape) for _, shape in unit.state_specs(SIZE, SIZE)]
        result, *caches = unit(x, *caches)
        made.append(result)
    return torch.cat(made, 2)


@torch.no_grad()
def test_planes_side_by_side_are_the_stream_of_the_runtime() -> None:
    model = Taehv(TINY.vae)  # type: ignore[arg-type]
    random_start(model, 0)
    clips = torch.rand(2, 9, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    latents = autoencoder.encode(model, clips)
    pixels = autoencoder.decode(model, latents)
    for row in range(2):
        given = (clips[row : row + 1] * 2 - 1).transpose(1, 2)
        chunks = [given[:, :, :1], given[:, :, 1:5], given[:, :, 5:]]
        streamed = in_chunks(encoder_pieces(model), chunks)
        torch.testing.assert_close(latents[row], streamed[0].transpose(0, 1), atol=1e-5, rtol=0)
        decoded = in_chunks(decoder_pieces(model), list(streamed.split(1, 2)))
        found = decoded[0].transpose(0, 1) / 2 + 0.5
        torch.testing.assert_close(pixels[row], found, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_straight_start_already_shows_the_picture() -> None:
    model = Taehv(TINY.vae)  # type: ignore[arg-type]
    pictures = torch.cat([autoencoder.to_tensor(clip(0, i, 1, 64)) for i in range(24)])
    autoencoder.initialise(model, pictures, 0)
    fresh = torch.cat([autoencoder.to_tensor(clip(0, 100 + i, 1, 64)) for i in range(8)])[:, None]
    found = autoencoder.decode(model, autoencoder.encode(model, fresh))
    psnr = -10 * (found - fresh).square().mean((1, 2, 3, 4)).log10()
    assert psnr.mean() > 20


@torch.no_grad()
def test_a_window_side_by_side_is_the_ring_of_the_runtime() -> None:
    config = MICRO
    model = denoiser.Denoiser(config, 0)
    generator = torch.Generator().manual_seed(0)
    head = model.dit.dit_out.head
    head.head.weight.normal_(0, 0.1, generator=generator)
    frames, cells = 4, 4
    noisy = torch.randn(1, frames, 16, cells, cells, generator=generator)
    timestep = torch.tensor([200.0])
    ids, mask = torch.tensor([[5, 9, 1, 0, 0, 0, 0, 0]]), torch.zeros(1, 8)
    mask[:, :3] = 1
    found = model(noisy, timestep, torch.arange(frames), ids, mask)

    sizes, tokens = config.dit, cells * cells // 4
    dit = Dit(sizes, cells, cells)
    checkpoints.fill_dit(dit, model.dit.checkpoint())
    context = dit.prompt_in(model.text(ids, mask))
    ring = torch.zeros(1, sizes.heads, 6 * tokens, sizes.head_dim)
    rings = [(ring, ring) for _ in dit.block]
    held = np.full(6, -1)
    for frame in range(frames):
        time_angles = torch.from_numpy(window.rope_time(frame, sizes.rope_pairs[0], 10000.0))
        x, modulation, head_modulation, rope = dit.dit_in(
            noisy[:, frame], timestep, time_angles[None]
        )
        visible = torch.from_numpy(window.row_mask(held, frame, 6, 3, tokens))
        for index, (block, keys) in enumerate(zip(dit.block, dit.prompt_kv, strict=True)):
            at = torch.tensor([frame * tokens])
            x, *kept = block(
                x, modulation, rope, at, visible[None, None, None], *keys(context), *rings[index]
            )
            rings[index] = (kept[0], kept[1])
        held[frame] = frame
        velocity = dit.dit_out(x, head_modulation)
        torch.testing.assert_close(found[0, frame], velocity[0], atol=2e-5, rtol=0)


def test_a_channel_that_no_pixel_shows_counts_least() -> None:
    model = Taehv(MICRO.vae)  # type: ignore[arg-type]
    random_start(model, 0)
    enter = next(layer for layer in model.decoder if isinstance(layer, torch.nn.Conv2d))
    enter.weight.data[:, 3] = 0
    enter.weight.data[:, 5] *= 4
    latents = torch.randn(6, 2, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    weights = denoiser.channel_weights(model, latents).flatten()
    assert weights.mean() == pytest.approx(1)
    assert weights[3] == weights.min() == 0.25
    assert weights.argmax() == 5


def trained(out: Path, cut: bool) -> dict[str, Tensor]:
    """All stages of a micro model; with `cut`, each stage is interrupted once."""
    r, never = recipe(out), time.monotonic() + 3600
    parts: dict[str, Tensor] = {}

    def interrupted(text: str, step: int, _: int) -> None:
        if step == 2 and text != "latents":
            raise KeyboardInterrupt

    def run(stage: Callable[..., tuple[torch.nn.Module, bool]], *given: object) -> torch.nn.Module:
        if cut:
            with pytest.raises(KeyboardInterrupt):
                stage(r, *given, never, interrupted)
        model, done = stage(r, *given, never, silent)
        assert done
        return model

    before = run(autoencoder.train_vae).state_dict()
    vae = run(autoencoder.train_decoder)
    parts |= {f"vae.{name}": tensor for name, tensor in vae.state_dict().items()}
    for name, tensor in before.items():
        is_kept = torch.equal(tensor, parts[f"vae.{name}"])
        assert is_kept == name.startswith("encoder."), name
    used = autoencoder.trained_vae(r).state_dict()
    assert all(torch.equal(tensor, parts[f"vae.{name}"]) for name, tensor in used.items())
    dit = run(denoiser.train_dit, vae)
    parts |= {f"dit.{name}": tensor for name, tensor in dit.state_dict().items()}
    return parts


def test_a_resumed_run_ends_in_the_same_weights(tmp_path: Path) -> None:
    whole, resumed = trained(tmp_path / "whole", False), trained(tmp_path / "resumed", True)
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


def test_the_exported_weights_load_strictly(tmp_path: Path) -> None:
    config = dataclasses.replace(MICRO, name="tiny")
    vae = Taehv(config.vae)  # type: ignore[arg-type]
    random_start(vae, 0)
    model = denoiser.Denoiser(config, 0)
    checkpoint.write(tmp_path, model, vae)
    parts = checkpoints.load_parts(config, find(tmp_path), SIZE, SIZE)
    assert parts.text is not None
    assert checkpoints.styles_of(find(tmp_path)) == tuple(STYLES)
    assert find(tmp_path).tokenizer is not None
    for tensor in parts.dit.checkpoint().values():
        assert torch.equal(tensor, tensor.half().float())


def test_the_styles_of_a_checkpoint_stay_with_its_engines(tmp_path: Path) -> None:
    plain = build_micro(tmp_path)
    assert manifest.read(plain).text.styles == ()
    (folder,) = (tmp_path / "checkpoints").iterdir()
    (folder / "styles.json").write_text('["pencil sketch", "thermal"]')
    styled = build_micro(tmp_path, checkpoint=folder, name="styled")
    again = build_micro(tmp_path, checkpoint=styled, name="again")
    for directory in (styled, again):
        assert manifest.read(directory).text.styles == ("pencil sketch", "thermal")


@pytest.mark.parametrize("text", ["[1]", '"comic"', "{", ""])
def test_a_list_of_styles_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "styles.json").write_text(text)
    (tmp_path / "model.pt").touch()
    with pytest.raises(CheckpointError, match="expected a JSON list of names"):
        checkpoints.styles_of(find(tmp_path))


def test_an_engine_gives_its_weights_to_another_one(tmp_path: Path) -> None:
    first = build_micro(tmp_path, seed=3)
    again = build_micro(tmp_path, checkpoint=first)
    assert again == first
    copy = build_micro(tmp_path, checkpoint=first, name="copy")
    manifests = [manifest.read(directory) for directory in (first, copy)]
    assert manifests[0].weights_sha256 == manifests[1].weights_sha256
    assert manifests[0].weights[0].sha256 == manifests[1].weights[0].sha256
    assert (first / "tokenizer.json").read_bytes() == (copy / "tokenizer.json").read_bytes()
    larger = micro_options(tmp_path, height=SIZE, width=2 * SIZE)
    parts = build.parts_again(larger, manifests[0], first)
    assert parts.dit.dit_in.spatial.shape[1] == 2 * manifests[0].geometry.tokens_per_frame
    grown = dataclasses.replace(MICRO, vae=TINY.vae)
    with pytest.raises(CheckpointError, match="do not fit micro"):
        build.parts_again(dataclasses.replace(larger, config=grown), manifests[0], first)
