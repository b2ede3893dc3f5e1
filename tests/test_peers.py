"""The released package `streamdiffusionv2`, with our weights, gives what we give.

Absolute positions, three fixed sinks, one latent frame a call from the first one on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import late_cupy
import numpy as np
import pytest
import torch
from micro_engine import MICRO_WAN, build_micro

import rt
from bench import table
from bench.peers import __main__ as command
from bench.peers import model, reference, streams
from bench.peers.ours import OurDit, OurVae, Units
from rt import backends
from rt.devices import CudaDevice, Device
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
    return Units(subject.directory, subject.manifest, Device("cpu", 0, 1))


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
    theirs = reference.ReferenceVae(model.wan_vae(subject.config), subject.vae, subject.setting)
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


def test_at_bfloat16_it_is_near_to_what_we_give(subject: model.Subject, units: Units) -> None:
    """As it runs on a GPU: rounded, and not much. Ours are the exact outputs here."""
    low = replace(subject, setting=replace(model.GPU, device="cpu"))
    setting, g = low.setting, subject.manifest.geometry
    assert (low.exact.setting.dtype, low.exact.setting.device) == (torch.float32, "cpu")
    theirs, ours = streams.reference_dit(low, 2), OurDit(units, subject.embeddings.numpy(), 2)
    rng = np.random.default_rng(2)
    shape = (2, g.latent_channels, g.latent_height, g.latent_width)
    for index in range(4):
        noisy, timestep = rng.standard_normal(shape).astype(np.float32), np.float32([700, 400])
        given = torch.from_numpy(noisy), torch.from_numpy(timestep)
        expected = command.on_host(theirs(*given, index))
        assert 1e-3 < setting.apart(ours(noisy, timestep, index), expected) <= setting.most
    vae = reference.ReferenceVae(model.wan_vae(low.config), low.vae, setting)
    video = rng.uniform(-1, 1, (1, 3, 5, g.height, g.width)).astype(np.float32)
    encoder, decoder = OurVae(units, "encode"), OurVae(units, "decode")
    parts = (video[:, :, :1], "first"), (video[:, :, 1:], "step")
    latents = [encoder(part, phase) for part, phase in parts]
    encoded = command.on_host(vae.encode(torch.from_numpy(video)))
    assert 1e-3 < setting.apart(encoded, np.concatenate(latents, 2)) <= 0.05
    decoded = command.on_host(vae.decode(torch.from_numpy(np.concatenate(latents, 2))))
    made = [decoder(latent, phase) for latent, (_, phase) in zip(latents, parts, strict=True)]
    assert 1e-3 < setting.apart(decoded, np.concatenate(made, 2)) <= 0.05


def test_its_stream_at_bfloat16_is_near_to_ours(subject: model.Subject) -> None:
    low = replace(subject, setting=replace(model.GPU, device="cpu"))
    g = subject.manifest.geometry
    clip = np.stack([f.rgb for f in islice(moving_scene(g.height, g.width, 16.0, 8.0), 13)])
    for batched in (False, True):
        restyled = streams.through_reference(streams.ReferenceStream(low, 2, batched), clip)
        assert restyled.dtype == np.uint8
        assert restyled.shape == clip.shape
        if not batched:
            expected = restyled
    with rt.Pipeline.load(subject.directory, steps=2) as pipeline:
        found = streams.through_ours(pipeline, subject, clip, 2)
    assert 1e-3 < low.setting.apart(expected / 127.5 - 1, found / 127.5 - 1) <= 0.05


def test_ours_on_a_gpu_that_is_late_gives_the_same_bits(
    subject: model.Subject, units: Units, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is copied to a device and from it, over a CuPy that does everything as late as it may
    and mixes with no NumPy array.
    """
    queue = late_cupy.Stream(non_blocking=True)
    device = CudaDevice("cuda", 0, 1, cupy=late_cupy, queue=queue)
    create = backends.create
    monkeypatch.setattr(
        backends, "create", lambda name, n, _gpu: late_cupy.LateBackend(create(name, n))
    )
    late = Units(subject.directory, subject.manifest, device)
    monkeypatch.undo()
    g, rng = subject.manifest.geometry, np.random.default_rng(5)
    shape = (2, g.latent_channels, g.latent_height, g.latent_width)
    one, two = (OurDit(u, subject.embeddings.numpy(), 2) for u in (units, late))
    for index in range(3):
        noisy, timestep = rng.standard_normal(shape).astype(np.float32), np.float32([700, 400])
        expected = one(noisy, timestep, index)
        assert np.array_equal(two(noisy, timestep, index), expected)
    video = rng.uniform(-1, 1, (1, 3, 1, g.height, g.width)).astype(np.float32)
    expected = OurVae(units, "encode")(video, "first")
    assert np.array_equal(OurVae(late, "encode")(video, "first"), expected)


# The command


def test_outputs_are_near_by_the_largest_difference_or_by_the_norm() -> None:
    a, b = np.float32([1, 2, 2]), np.float32([1, 2, 2.003])
    assert model.CPU.apart(b, a) == pytest.approx(3e-3, rel=1e-3)
    assert model.GPU.apart(b, a) == pytest.approx(1e-3, rel=1e-3)
    assert model.GPU.apart(a, -a) == pytest.approx(2)


def compared(what: str, **apart: float) -> list[table.Row]:
    """Rows of contestants whose outputs are so far from the exact ones; 0.4 is the same."""
    worst = command.Worst(replace(model.GPU, most=0.4))
    for share in (1, 0):
        found = {name: np.float32([1 + far * share]) for name, far in apart.items()}
        worst.see(found, lambda: np.ones(1, np.float32))
    turns = command.Turns()
    turns.seconds = {"ours": [1.0, 2.0], "package": [2.0, 4.0]}
    return command.ratios(what, turns, worst)


def test_in_float32_the_package_is_what_ours_is_compared_with() -> None:
    worst = command.Worst(model.CPU)
    worst.see({"package": np.ones(2), "ours": np.float32([1, 3])}, lambda: np.zeros(2))
    assert worst.apart == {"package": 0.0, "ours": 2.0}


def test_ours_may_be_as_far_from_the_exact_outputs_as_a_peer_is() -> None:
    assert len(compared("c", ours=0.5, package=0.6)) == 3
    for ours, package in ((0.7, 0.6), (0.5, 0.1), (np.nan, 0.1), (np.nan, np.inf)):
        with pytest.raises(command.Unequal):
            compared("c", ours=ours, package=package)


def test_work_that_is_not_the_same_is_told_and_the_other_rows_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def other() -> list[table.Row]:
        return compared("o", ours=0.5, package=0.0)

    def same() -> list[table.Row]:
        return compared("s", ours=0.3, package=0.0)

    monkeypatch.setattr(command, "on_processor", lambda _: ("peers: made up", [other, same]))
    path = tmp_path / "rows.jsonl"
    monkeypatch.setattr("sys.argv", ["peers", "--package", str(PACKAGE), "--json", str(path)])
    assert command.main() == 1
    assert "error: o: ours: outputs differ by 0.5, at most 0.4" in capsys.readouterr().err
    rows = {r["name"]: r["value"] for r in map(json.loads, path.read_text().splitlines())}
    assert rows == {"s: ours": 1500, "s: package": 3000, "s: package / ours": 2}
    monkeypatch.setattr(command, "on_processor", lambda _: ("peers: made up", [same]))
    assert command.main() == 0


def test_what_only_the_processor_has_is_refused_for_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in ("--side", "--vae-width"):
        monkeypatch.setattr("sys.argv", ["peers", "--device", "cuda:0", option, "64"])
        with pytest.raises(SystemExit) as ended:
            command.main()
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "got one for a GPU, expected none" in line


def test_without_a_gpu_its_device_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["peers", "--package", str(PACKAGE), "--device", "cuda:0"]
    monkeypatch.setattr("sys.argv", words)
    monkeypatch.setattr("rt.devices.gpu_report", lambda _: "this machine has none")
    with pytest.raises(SystemExit, match=r"^error: devices: got 'cuda:0', but this machine has no"):
        command.main()


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
