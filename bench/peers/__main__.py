"""One DiT step, one VAE chunk and the whole job: ours, the released package, eager diffusers.

    make bench-peers
    python -m bench.peers --device cuda:0

Weights, inputs and threads are equal, and so are the outputs: those of the package in float32 are
what all are compared with. The contestants take turns in one run, from arrays on the host to arrays
on the host; a ratio above 1 means that ours is faster. On the processor "ours" is an engine of
precision fp32; of "ours int16" the DiT may round factors to 16 bits, on processors with VNNI. On a
GPU all are of bfloat16, and ours is an engine for backend inductor; the package, where flash_attn
is not installed, attends to the prompt in bfloat16 always, and over a mask that hides nothing.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
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
from rt.devices import Device
from rt.errors import Error
from rt.frame import Array
from rt.media import moving_scene

WARM = 8
"""Chunks before timing: the window is full."""
REST_S = 0.02
"""Before each call."""


class Unequal(Exception):
    """Outputs that differ by too much: it was other work."""


def dit_step(subject: model.Subject, ours: Mapping[str, Units], rows: int, runs: int) -> list[Row]:
    """Ours against the package over a full window, `rows` rows at once."""
    theirs, exact = (streams.reference_dit(each, rows) for each in (subject, subject.exact))
    setting = subject.setting
    made = {name: OurDit(units, subject.embeddings.numpy(), rows) for name, units in ours.items()}
    g = subject.manifest.geometry
    rng = np.random.default_rng(1)
    shape = (rows, g.latent_channels, g.latent_height, g.latent_width)
    timestep = np.float32([700.0, 500.0, 400.0, 200.0][:rows])
    worst, seconds = Worst(setting), Turns()
    side = setting.product
    drawn = torch.randn(2, side, side, generator=torch.Generator().manual_seed(0))
    factors = setting.tensor(drawn)
    for index in range(WARM + runs):
        noisy = rng.standard_normal(shape).astype(np.float32)
        given = torch.from_numpy(noisy), torch.from_numpy(timestep)
        found = {
            "package": seconds.of("package", lambda: on_host(theirs(*given, index)))  # noqa: B023
        }
        for name, dit in made.items():
            found[name] = seconds.of(name, lambda: dit(noisy, timestep, index))  # noqa: B023
        worst.see(found, lambda: on_host(exact(*given, index)))  # noqa: B023
        seconds.of("product", lambda: multiplied(factors))
        if index + 1 == WARM:
            seconds.forget()
    what = f"DiT step, {rows} row{'s' * (rows > 1)}"
    rate = 2 * side**3 / seconds.take("product")
    limit = 1e3 * rows * step_operations(subject) / rate
    note = f"products of a step at {rate / 1e9:.0f} GFLOP/s, a large one's in this run"
    return [
        *ratios(what, seconds, worst),
        Row(f"{what}: the machine's limit", limit, "ms", runs, note=note),
        *(
            Row(f"{what}: {name} / limit", seconds.median(name) * 1e3 / limit, "x", runs)
            for name in made
        ),
    ]


def on_host(tensor: torch.Tensor) -> Array:
    """float32, when it is there."""
    return tensor.float().cpu().numpy()


def multiplied(factors: torch.Tensor) -> float:
    """A number of their product, which waits for it."""
    return float((factors[0] @ factors[1])[0, 0])


def step_operations(subject: model.Subject) -> int:
    """Floating-point operations of the matrix products of one row's step over a full window."""
    manifest, sizes = subject.manifest, subject.config.dit
    a, g = manifest.attention, manifest.geometry
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
        vae = model.wan_vae(subject.config)
        package, exact = (
            reference.ReferenceVae(vae, subject.vae, each.setting)
            for each in (subject, subject.exact)
        )
        eager, ours = Diffusers(subject, kind), OurVae(units, kind)
        call, exactly = (getattr(each, kind) for each in (package, exact))
        both = torch.from_numpy(np.concatenate(values[:2], axis=2))
        call(both), exactly(both)
        eager(values[0]), eager(values[1]), ours(values[0], "first"), ours(values[1])
        worst, seconds = Worst(subject.setting), Turns()
        for value in values[2:]:
            tensor = torch.from_numpy(np.ascontiguousarray(value))
            contestants = {
                "package": lambda: on_host(call(tensor)),  # noqa: B023
                "diffusers": lambda: eager(value),  # noqa: B023
                "ours": lambda: ours(value),  # noqa: B023
            }
            found = {name: seconds.of(name, run) for name, run in contestants.items()}
            worst.see(found, lambda: on_host(exactly(tensor)))  # noqa: B023
        rows += ratios(f"VAE {kind}, one chunk", seconds, worst)
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
        self._setting = subject.setting
        weights = self._setting.state(to_diffusers(subject.vae, made))
        made.load_state_dict(weights, strict=True, assign=True)
        self._vae: Any = made.eval().requires_grad_(False)
        self._vae.clear_cache()
        self._kind = kind
        shape = (1, vae.latent_channels, 1, 1, 1)
        latents = (torch.tensor(part).view(shape) for part in (WAN_LATENTS.mean, WAN_LATENTS.std))
        self._mean, self._std = map(self._setting.tensor, latents)
        self._first = True

    def __call__(self, value: Array) -> Array:
        """A chunk of pixels -> normalised latent, or the other way."""
        x, vae = self._setting.tensor(np.ascontiguousarray(value)), self._vae
        with torch.inference_mode():
            if self._kind == "encode":
                out = vae.encoder(x, feat_cache=vae._enc_feat_map, feat_idx=[0])
                mean = vae.quant_conv(out).chunk(2, dim=1)[0]
                return on_host((mean - self._mean) / self._std)
            z = vae.post_quant_conv(x * self._std + self._mean)
            more = {"first_chunk": True} if self._first else {}
            self._first = False
            return on_host(vae.decoder(z, feat_cache=vae._feat_map, feat_idx=[0], **more))


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

    def in_order(subject: model.Subject) -> Array:
        stream = streams.ReferenceStream(subject, steps, batched=False)
        return streams.through_reference(stream, clip) / 127.5 - 1

    # In float32 a grey level, to which all round.
    worst = Worst(replace(subject.setting, most=max(subject.setting.most, 1 / 127)))
    found = streams.through_ours(pipeline, subject, clip, steps) / 127.5 - 1
    worst.see({"package": in_order(subject), "ours": found}, lambda: in_order(subject.exact))
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
    return ratios(what, seconds, worst)


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


class Worst:
    """How far the outputs of each contestant were from the exact ones at most."""

    def __init__(self, setting: model.Setting) -> None:
        self._setting = setting
        self.apart: dict[str, float] = {}

    def see(self, found: Mapping[str, Array], exact: Callable[[], Array]) -> None:
        """Outputs by contestant. In float32 the package's are the exact ones."""
        expected = found["package"] if self._setting.dtype is torch.float32 else exact()
        for name, output in found.items():
            # np.maximum keeps a NaN, which is within no bound; max() may lose it.
            apart = np.maximum(self.apart.get(name, 0.0), self._setting.apart(output, expected))
            self.apart[name] = float(apart)

    @property
    def most(self) -> float:
        """As far as a peer may be, whose precision is the same, ours may be as well."""
        peers = (apart for name, apart in self.apart.items() if not name.startswith("ours"))
        return max(self._setting.most, *peers)


def ratios(what: str, turns: Turns, worst: Worst) -> list[Row]:
    """Rows of one comparison. Raises Unequal where outputs of ours are too far from the exact."""
    rows, most = [], worst.most
    for name, apart in worst.apart.items():
        if name.startswith("ours") and not apart <= most:
            told = f"outputs differ by {apart:.2g}, at most {most:.2g} is the same"
            raise Unequal(f"{what}: {name}: {told}")
        note = f"outputs differ by {apart:.1e} at most"
        runs = len(turns.seconds[name])
        rows.append(Row(f"{what}: {name}", turns.median(name) * 1e3, "ms", runs, note=note))
    ours = [name for name in worst.apart if name.startswith("ours")]
    for other in (name for name in worst.apart if name not in ours):
        runs = len(turns.seconds[other])
        for name in ours:
            pairs = zip(turns.seconds[other], turns.seconds[name], strict=True)
            ratio = statistics.median(theirs / ours for theirs, ours in pairs)
            rows.append(Row(f"{what}: {other} / {name}", ratio, "x", runs))
    return rows


def on_processor(options: argparse.Namespace) -> tuple[str, list[Comparison]]:
    """`tiny`'s DiT and a narrow VAE in float32, ours also with factors of 16 bits."""
    device = Device("cpu", 0, devices.cores())
    torch.set_num_threads(device.threads)
    side, folder = options.side or 256, Path("build/engines")
    config = model.configuration(options.vae_width or 16)
    subject, rounded = (
        model.prepare(config, side, folder, precision) for precision in ("fp32", "int16")
    )
    ours = {
        "ours": Units(subject.directory, subject.manifest, device),
        "ours int16": Units(rounded.directory, rounded.manifest, device),
    }
    title = f"peers: {side}x{side}, {device.threads} threads, float32"
    return title, comparisons(subject, ours, "cpu", options)


def on_gpu(options: argparse.Namespace) -> tuple[str, list[Comparison]]:
    """wan-1.3b at 480x832 in bfloat16, by the engine that `bench.gpu` streams: found, or built."""
    from bench.gpu.cases import Case
    from bench.gpu.sections import WIDE, WORK
    from bench.gpu.streams import build

    (device,) = devices.resolve(options.device)
    config, directory = PRESETS["wan-1.3b"], build(Case(*WIDE), WORK)
    torch.backends.cudnn.allow_tf32 = False  # What all are compared with has no ten bits.
    setting = replace(model.GPU, device=device.name)
    subject = model.subject(config, directory, setting)
    ours = {"ours": Units(directory, subject.manifest, device)}
    title = f"peers: wan-1.3b 480x832, bfloat16, {torch.cuda.get_device_name(device.index)}"
    return title, comparisons(subject, ours, device.name, options)


Comparison = Callable[[], list[Row]]


def comparisons(
    subject: model.Subject, ours: Mapping[str, Units], device: str, options: argparse.Namespace
) -> list[Comparison]:
    """The step at one row and at two, the VAE, the whole job."""

    def whole() -> list[Row]:
        with Pipeline.load(subject.directory, devices=device, steps=options.steps) as pipeline:
            return whole_job(subject, pipeline, options.steps, max(3, options.runs // 5))

    return [
        *(functools.partial(dit_step, subject, ours, rows, options.runs) for rows in (1, 2)),
        functools.partial(vae_chunk, subject, ours["ours"], options.runs),
        whole,
    ]


def main() -> int:
    p = Parser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--package", type=Path, default=Path("build/peers"), help="where it is")
    p.add_argument("--device", default="cpu", help="cpu or cuda:N")
    p.add_argument("--side", type=count, help="on the processor: height and width, else 256")
    p.add_argument("--vae-width", type=count, help="on the processor: else 16, where Wan has 96")
    p.add_argument("--runs", type=count, default=15)
    p.add_argument("--steps", type=count, default=2)
    p.add_argument("--json", type=Path, default=Path("build/bench/peers.jsonl"))
    options = p.parse_args()
    if options.device != "cpu" and (options.side or options.vae_width):
        p.error(
            "--side, --vae-width: got one for a GPU, expected none; the model there is wan-1.3b"
        )
    reference.find(options.package)
    try:
        title, todo = (on_processor if options.device == "cpu" else on_gpu)(options)
    except Error as error:
        sys.exit(f"error: {error}")
    rows: list[Row] = []
    unequal: list[str] = []
    for compare in todo:
        try:
            rows += compare()
        except Unequal as error:
            unequal.append(str(error))
    publish(title, rows, options.json)
    for told in unequal:
        print(f"error: {told}", file=sys.stderr)
    return 1 if unequal else 0


if __name__ == "__main__":
    raise SystemExit(main())
