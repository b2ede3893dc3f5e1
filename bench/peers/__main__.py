"""One DiT step, one VAE chunk and the whole job: ours, the released package, eager diffusers.

    make bench-peers

Weights, inputs, threads and outputs are equal, and that the outputs are is checked first. The
contestants take turns in one run; a ratio above 1 means that ours is faster. "ours" is an engine of
precision fp32; of "ours int16" the DiT may round factors to 16 bits, on processors with VNNI.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan

from bench.peers import model, reference, streams
from bench.peers.ours import OurDit, OurVae, Units
from bench.table import Parser, Row, count, publish
from export.formats import diffusers_to_original
from export.models.presets import PRESETS, WAN_LATENTS
from rt import Pipeline, devices
from rt.frame import Array
from rt.manifest import Manifest
from rt.media import moving_scene

EQUAL = 1e-3
"""Largest difference of outputs that still counts as the same work."""
PRODUCT = 1024
"""Side of the matrices whose product shows how fast the machine multiplies."""
WARM = 8
"""Chunks before timing: the window is full."""
REST_S = 0.02
"""Before each call."""


def dit_step(subject: model.Subject, ours: Mapping[str, Units], rows: int, runs: int) -> list[Row]:
    """Ours against the package over a full window, `rows` rows at once."""
    theirs = streams.reference_dit(subject, rows)
    made = {name: OurDit(units, subject.embeddings.numpy(), rows) for name, units in ours.items()}
    g = subject.manifest.geometry
    rng = np.random.default_rng(1)
    shape = (rows, g.latent_channels, g.latent_height, g.latent_width)
    timestep = np.float32([700.0, 500.0, 400.0, 200.0][:rows])
    worst, seconds = dict.fromkeys(made, 0.0), Turns()
    factors = torch.randn(2, PRODUCT, PRODUCT, generator=torch.Generator().manual_seed(0))
    for index in range(WARM + runs):
        noisy = rng.standard_normal(shape).astype(np.float32)
        given = torch.from_numpy(noisy), torch.from_numpy(timestep)
        expected = seconds.of("package", lambda: theirs(*given, index))  # noqa: B023
        for name, dit in made.items():
            found = seconds.of(name, lambda: dit(noisy, timestep, index))  # noqa: B023
            worst[name] = max(worst[name], float(np.abs(found - expected.numpy()).max()))
        seconds.of("product", lambda: factors[0] @ factors[1])
        if index + 1 == WARM:
            seconds.forget()
    what = f"DiT step, {rows} row{'s' * (rows > 1)}"
    rate = 2 * PRODUCT**3 / seconds.take("product")
    limit = 1e3 * rows * step_operations(subject.manifest) / rate
    note = f"products of a step at {rate / 1e9:.0f} GFLOP/s, a large float32 one's in this run"
    return [
        *ratios(what, seconds, worst),
        Row(f"{what}: the machine's limit", limit, "ms", runs, note=note),
        *(
            Row(f"{what}: {name} / limit", seconds.median(name) * 1e3 / limit, "x", runs)
            for name in made
        ),
    ]


def step_operations(manifest: Manifest) -> int:
    """Floating-point operations of the matrix products of one row's step over a full window."""
    a, g = manifest.attention, manifest.geometry
    sizes = PRESETS["tiny"].dit
    tokens, width = g.tokens_per_frame, sizes.width
    linear = (4 + 2) * width**2 + 2 * width * sizes.ffn  # q k v o, prompt's q o, feed-forward
    seen = manifest.window.frames * tokens + sizes.text_length
    assert a.heads * a.head_dim == width
    return sizes.blocks * 2 * tokens * (linear + 2 * seen * width)


def vae_chunk(subject: model.Subject, units: Units, runs: int) -> list[Row]:
    """Encoder and decoder, four frames, caches full: the package, diffusers, ours."""
    g = subject.manifest.geometry
    rng = np.random.default_rng(2)
    latent = (1, g.latent_channels, 1, g.latent_height, g.latent_width)
    video = np.float32(rng.uniform(-1, 1, (1, 3, 1 + 4 * (runs + 2), g.height, g.width)))
    latents = [np.float32(rng.standard_normal(latent)) for _ in range(runs + 3)]
    chunks = [video[:, :, :1], *np.split(video[:, :, 1:], runs + 2, axis=2)]
    rows = []
    for kind, values in (("encode", chunks), ("decode", latents)):
        package = reference.ReferenceVae(model.wan_vae(subject.config), subject.vae)
        eager, ours = Diffusers(subject, kind), OurVae(units, kind)
        call = package.encode if kind == "encode" else package.decode
        call(torch.from_numpy(np.concatenate(values[:2], axis=2)))
        eager(values[0]), eager(values[1]), ours(values[0], "first"), ours(values[1])
        worst, seconds = 0.0, Turns()
        for value in values[2:]:
            tensor = torch.from_numpy(np.ascontiguousarray(value))
            a = seconds.of("package", lambda: call(tensor).numpy())  # noqa: B023
            b = seconds.of("diffusers", lambda: eager(value))  # noqa: B023
            c = seconds.of("ours", lambda: ours(value))  # noqa: B023
            worst = max(worst, *(float(np.abs(c - x).max()) for x in (a, b)))
        rows += ratios(f"VAE {kind}, one chunk", seconds, {"ours": worst})
    return rows


class Diffusers:
    """`AutoencoderKLWan`'s encoder or decoder, chunk by chunk with its own feature cache."""

    def __init__(self, subject: model.Subject, kind: str) -> None:
        vae = model.wan_vae(subject.config)
        made = AutoencoderKLWan(
            base_dim=vae.width,
            z_dim=vae.latent_channels,
            dim_mult=list(vae.multipliers),
            num_res_blocks=vae.residual_blocks,
            temperal_downsample=list(vae.time_halved),
        )
        made.load_state_dict(to_diffusers(subject.vae, made), strict=True)
        self._vae: Any = made.eval().requires_grad_(False)
        self._vae.clear_cache()
        self._kind = kind
        shape = (1, vae.latent_channels, 1, 1, 1)
        self._mean = torch.tensor(WAN_LATENTS.mean).view(shape)
        self._std = torch.tensor(WAN_LATENTS.std).view(shape)
        self._first = True

    def __call__(self, value: Array) -> Array:
        """A chunk of pixels -> normalised latent, or the other way."""
        x, vae = torch.from_numpy(np.ascontiguousarray(value)), self._vae
        with torch.inference_mode():
            if self._kind == "encode":
                out = vae.encoder(x, feat_cache=vae._enc_feat_map, feat_idx=[0])
                mean = vae.quant_conv(out).chunk(2, dim=1)[0]
                return ((mean - self._mean) / self._std).numpy()
            z = vae.post_quant_conv(x * self._std + self._mean)
            more = {"first_chunk": True} if self._first else {}
            self._first = False
            return vae.decoder(z, feat_cache=vae._feat_map, feat_idx=[0], **more).numpy()


def to_diffusers(weights: Mapping[str, torch.Tensor], made: torch.nn.Module) -> dict[str, Any]:
    """Original names -> those of diffusers, by renaming its own names to the original ones."""
    names = {name: torch.tensor(i) for i, name in enumerate(made.state_dict())}
    theirs = list(names)
    original = diffusers_to_original(names)
    return {theirs[int(place)]: weights[name] for name, place in original.items()}


def whole_job(subject: model.Subject, pipeline: Pipeline, steps: int, runs: int) -> list[Row]:
    """Frames to frames: equal pictures, then frames per second with the window full."""
    g = subject.manifest.geometry
    scene = moving_scene(g.height, g.width, 16.0, 8.0)
    clip = np.stack([f.rgb for f in islice(scene, 5 + 4 * 11)])
    expected = streams.through_reference(
        streams.ReferenceStream(subject, steps, batched=False), clip
    )
    found = streams.through_ours(pipeline, subject, clip, steps)
    worst = int(np.abs(np.int16(found) - np.int16(expected)).max())
    seconds = Turns()
    for _ in range(runs):
        batch = streams.ReferenceStream(subject, steps, batched=True)
        head, tail = clip[: 5 + 4 * 6], clip[5 + 4 * 6 :]
        streams.through_reference(batch, head)
        chunks = np.split(tail, len(tail) // 4)
        seconds.of("package", lambda: [batch(chunk) for chunk in chunks])  # noqa: B023
        with pipeline.session(
            prompt=streams.prompt_file(subject), steps=steps, motion="off", sinks="fixed",
            positions="absolute",
        ) as session:  # fmt: skip
            frames = session.stream(list(np.concatenate([clip, tail])))
            for _ in range(len(clip)):
                next(frames)
            seconds.of("ours", lambda: list(frames))  # noqa: B023
    what = f"whole job, {steps} steps, {len(tail)} frames"
    return ratios(what, seconds, {"ours": worst / 127.5}, 1 / 127)


class Turns:
    """Seconds of each contestant, call by call."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def of(self, name: str, call: Callable[[], Any]) -> Any:
        """What `call` gives, its time noted under `name`. The one before is over: threads of the
        package go on spinning for some milliseconds, and would take a core from whoever comes next.
        """
        time.sleep(REST_S)
        start = time.perf_counter()
        result = call()
        self.seconds.setdefault(name, []).append(time.perf_counter() - start)
        return result

    def forget(self) -> None:
        """Drop what was noted while everything was warming up."""
        self.seconds.clear()

    def take(self, name: str) -> float:
        """The median of one that is no contestant, which then is forgotten."""
        return statistics.median(self.seconds.pop(name))

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])


def ratios(what: str, turns: Turns, worst: Mapping[str, float], bound: float = EQUAL) -> list[Row]:
    """Rows of one comparison; by `worst` the outputs of each of ours differ at most. Ends the
    program where that is too much: it was other work.
    """
    rows = []
    for name, difference in worst.items():
        if not difference <= bound:
            told = f"outputs differ by {difference:.2g}, at most {bound:.2g} is the same"
            sys.exit(f"error: {what}: {name}: {told}")
        note = f"outputs differ by {difference:.1e} at most"
        seconds = turns.seconds[name]
        rows.append(Row(f"{what}: {name}", turns.median(name) * 1e3, "ms", len(seconds), note=note))
    for other in turns.seconds.keys() - worst.keys():
        runs = len(turns.seconds[other])
        rows.append(Row(f"{what}: {other}", turns.median(other) * 1e3, "ms", runs))
        for name in worst:
            pairs = zip(turns.seconds[other], turns.seconds[name], strict=True)
            ratio = statistics.median(theirs / ours for theirs, ours in pairs)
            rows.append(Row(f"{what}: {other} / {name}", ratio, "x", runs))
    return rows


def main() -> None:
    p = Parser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--package", type=Path, default=Path("build/peers"), help="where it is")
    p.add_argument("--side", type=count, default=256, help="height and width in pixels")
    p.add_argument("--vae-width", type=count, default=16, help="Wan's own is 96")
    p.add_argument("--runs", type=count, default=15)
    p.add_argument("--steps", type=count, default=2)
    p.add_argument("--json", type=Path, default=Path("build/bench/peers.jsonl"))
    options = p.parse_args()
    reference.find(options.package)
    threads = devices.cores()
    torch.set_num_threads(threads)
    config = model.configuration(options.vae_width)
    folder = Path("build/engines")
    subject, rounded = (
        model.prepare(config, options.side, folder, precision) for precision in ("fp32", "int16")
    )
    ours = {
        "ours": Units(subject.directory, subject.manifest, threads),
        "ours int16": Units(rounded.directory, rounded.manifest, threads),
    }
    rows = [row for count in (1, 2) for row in dit_step(subject, ours, count, options.runs)]
    rows += vae_chunk(subject, ours["ours"], options.runs)
    with Pipeline.load(subject.directory, steps=options.steps) as pipeline:
        rows += whole_job(subject, pipeline, options.steps, max(3, options.runs // 5))
    title = f"peers: {options.side}x{options.side}, {threads} threads, float32"
    publish(title, rows, options.json)


if __name__ == "__main__":
    main()
