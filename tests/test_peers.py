"""The released package `streamdiffusionv2`, with our weights, gives what we give.

Absolute positions, three fixed sinks, one latent frame a call from the first one on.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from micro_engine import MICRO_WAN, build_micro

import rt
from bench.peers import model, reference, streams
from bench.peers.ours import OurDit, OurVae, Units
from rt.media import moving_scene

CHUNKS = 12
PACKAGE = Path(__file__).parents[1] / "build" / "peers"


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Iterator[model.Subject]:
    reference.find(PACKAGE)
    directory = build_micro(tmp_path_factory.mktemp("peers"), config=MICRO_WAN)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of small matrices a second thread only costs
    yield model.subject(MICRO_WAN, directory)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def units(subject: model.Subject) -> Units:
    return Units(subject.directory, subject.manifest, threads=1)


def test_its_loaders_and_ours_read_the_same_weights_from_one_file(
    subject: model.Subject, tmp_path: Path
) -> None:
    """Files as it releases them: both sides hold what the comparisons below run with."""
    release = tmp_path / "release"
    release.mkdir()
    wrapped = {f"model.{name}": tensor for name, tensor in subject.dit.items()}
    torch.save({"generator": wrapped}, release / "model.pt")
    torch.save(subject.vae, release / "Wan2.1_VAE.pth")
    vae = reference.vae_in_release(release / "Wan2.1_VAE.pth", model.wan_vae(MICRO_WAN))
    read = (reference.dit_in_release(release), subject.dit), (vae, subject.vae)
    for theirs, weights in read:
        assert theirs.keys() == weights.keys()
        assert all(torch.equal(theirs[name], weights[name]) for name in weights)
    (made,) = (subject.directory.parents[1] / "checkpoints").glob("*-random-0-*")
    ours = build_micro(tmp_path, config=MICRO_WAN, checkpoint=release, base=made)
    weights_file = "weights.safetensors"
    assert (ours / weights_file).read_bytes() == (subject.directory / weights_file).read_bytes()


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_its_dit_gives_our_velocities(subject: model.Subject, units: Units, rows: int) -> None:
    """While the window fills, when it is full, and after every slot was written again."""
    theirs = streams.reference_dit(subject, rows)
    ours = OurDit(units, subject.embeddings.numpy(), rows)
    g = subject.manifest.geometry
    rng = np.random.default_rng(rows)
    shape = (rows, g.latent_channels, g.latent_height, g.latent_width)
    timestep = np.float32([700, 500, 400, 200][:rows])
    for index in range(CHUNKS):
        noisy = rng.standard_normal(shape).astype(np.float32)
        expected = theirs(torch.from_numpy(noisy), torch.from_numpy(timestep), index).numpy()
        found = ours(noisy, timestep, index)
        assert expected.std() > 0.1
        assert np.abs(found - expected).max() <= 1e-3, index


def test_its_vae_gives_our_latents_and_pixels(subject: model.Subject, units: Units) -> None:
    theirs = reference.ReferenceVae(model.wan_vae(subject.config), subject.vae)
    encoder, decoder = OurVae(units, "encode"), OurVae(units, "decode")
    g = subject.manifest.geometry
    rng = np.random.default_rng(0)
    video = rng.uniform(-1, 1, (1, 3, 1 + 4 * CHUNKS, g.height, g.width)).astype(np.float32)
    chunks = [video[:, :, :1], *np.split(video[:, :, 1:], CHUNKS, axis=2)]
    ours = [encoder(c, "step" if i else "first").copy() for i, c in enumerate(chunks)]
    tensors = [torch.from_numpy(np.ascontiguousarray(c)) for c in chunks]
    latents = [theirs.encode(torch.cat(tensors[:2], 2)), *map(theirs.encode, tensors[2:])]
    expected = torch.cat(latents, 2)
    assert np.abs(np.concatenate(ours, 2) - expected.numpy()).max() <= 1e-3
    pixels = [theirs.decode(latent) for latent in latents]
    made = [decoder(c, "step" if i else "first").copy() for i, c in enumerate(ours)]
    assert np.abs(np.concatenate(made, 2) - torch.cat(pixels, 2).numpy()).max() <= 1e-3


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_its_stream_gives_our_pictures(subject: model.Subject, steps: int) -> None:
    """The whole runtime, frames to frames: at most one grey level apart."""
    g = subject.manifest.geometry
    scene = moving_scene(g.height, g.width, 16.0, 8.0)
    clip = np.stack([frame.rgb for frame in islice(scene, 1 + 4 * CHUNKS)])
    assert len(clip) == 1 + 4 * CHUNKS
    stream = streams.ReferenceStream(subject, steps, batched=False)
    expected = streams.through_reference(stream, clip)
    with rt.Pipeline.load(subject.directory, steps=steps) as pipeline:
        found = streams.through_ours(pipeline, subject, clip, steps)
    assert np.int16(expected).std() > 5
    assert np.abs(np.int16(found) - np.int16(expected)).max() <= 1
