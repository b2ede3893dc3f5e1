"""Checkpoint -> `engines/<name>/`: atomic, resumable, keyed.

A build goes on where an earlier one of the same key was cut, and a valid engine is never touched.
Owns the key and the records of the manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from dataclasses import replace as replaced
from pathlib import Path

from export import calibration, checkpoints, inductor, lora, random_weights, tensorrt
from export.backends import BACKENDS
from export.given import Given, given_of, has_random_text
from export.models.dit import Dit
from export.models.presets import latents_of
from export.options import Made, Options, Progress, Work
from export.sources import Opened, from_files, from_modules
from export.staging import replace, staged, write_whole
from export.units import Chain, Parts, UnitSpec, geometry_of, wan_chain
from export.verify import parts_within, smoke
from rt import manifest as records
from rt.backends.tensorrt import FLAVOURS
from rt.errors import CheckpointError, ConfigError, EngineMismatch
from rt.manifest import Manifest, Unit

VERSION = "0.1.0"
TOKENIZER = "tokenizer.json"
TOLERANCE = {"fp32": 1e-4, "int16": 1e-3, "fp16": 2e-2, "bf16": 8e-2, "fp8": 2e-1}
"""Largest absolute difference between a plan and its PyTorch unit, per precision."""
MOTION_SMOOTHING = 0.9
"""Weight of this chunk's noise scale against the last one's (the released code's constant)."""


@dataclass(frozen=True, slots=True)
class Built:
    """What a build did: plan files written now, and plan files found finished."""

    directory: Path
    manifest: Manifest
    built: int
    reused: int
    up_to_date: bool = False


def build_engines(options: Options, progress: Progress = lambda *_: None) -> Built:
    """Make `options.out/options.name`, or find that it is up to date.

    Raises ConfigError for options that fit no engine, CheckpointError for a bad checkpoint.
    """
    check(options)
    backend = BACKENDS[options.backend]
    checkpoint = options.checkpoint
    if checkpoint is None and not backend.hollow:
        checkpoint = _random_checkpoint(options)
    given = given_of(options, checkpoint)
    options = given.options
    digest = given.digest()
    key = _key(options, digest)
    options.out.mkdir(parents=True, exist_ok=True)
    target = options.out / options.name
    with staged(options.out, options.name, key) as staging:
        if (manifest := _up_to_date(target, key)) is not None:
            return Built(target, manifest, 0, _count(manifest), up_to_date=True)
        opened = _open(given, text=has_random_text(options))
        work = work_of(options, opened, staging, digest)
        made = backend.make(work, progress)
        if checkpoint is None and has_random_text(options):
            checkpoints.make_tokenizer(staging / TOKENIZER)
        elif (tokenizer := given.tokenizer()) is not None:
            write_whole(staging / TOKENIZER, [tokenizer.read_bytes()])
        styles = given.styles()
        manifest = _manifest(options, key, digest, opened.chain, made, staging, styles)
        records.write(manifest, staging)
        if backend.runs_here():
            smoke(manifest, staging)
        replace(staging, target)
    return Built(target, manifest, made.built, made.reused)


def open_chain(options: Options) -> Opened:
    """The chain of a backend that takes its weights one by one, of a checkpoint or of a seed; with
    a text encoder of random weights, which a build that keeps nothing does not store.
    """
    return _open(given_of(options, options.checkpoint), text=True)


def weights_digest(options: Options) -> str:
    """Hash of all that decides the weights of `options`."""
    return given_of(options, options.checkpoint).digest()


def trial_key(options: Options) -> str:
    """What decides whether something measured earlier is still true."""
    given = given_of(options, options.checkpoint)
    return _key(given.options, given.digest())


def work_of(options: Options, opened: Opened, staging: Path, weights_sha256: str) -> Work:
    """A build of `options` in `staging`. Raises ConfigError for a calibration that does not fit."""
    amax = {}
    if options.calibration is not None:
        amax = calibration.read(options.calibration, weights_sha256)
    return Work(options, opened, staging, TOLERANCE[options.precision], amax)


def _open(given: Given, *, text: bool) -> Opened:
    """The chain, and its weights: in modules, or in files where a backend takes them singly.

    `text`: whether random weights have a text encoder.
    """
    options, files = given.options, given.files
    backend = BACKENDS[options.backend]
    config, size = options.config, (options.height, options.width)
    fold_time, loras = backend.fold_time, options.loras
    if given.source is not None and given.engine is not None:
        parts = parts_again(options, given.source, given.engine)
    elif files is None:
        parts, dit, encoder = checkpoints.open_random(
            config, options.seed, *size, fold_time=fold_time, text=text
        )
        return from_files(wan_chain(config, parts, *size, options.frames), dit, encoder)
    elif backend.hollow:
        parts, dit, encoder = checkpoints.open_parts(
            config, files, *size, fold_time=fold_time, loras=loras
        )
        return from_files(wan_chain(config, parts, *size, options.frames), dit, encoder)
    else:
        parts = checkpoints.load_parts(config, files, *size, fold_time=fold_time, loras=loras)
    return from_modules(wan_chain(config, parts, *size, options.frames))


def check(options: Options) -> None:
    """Raise ConfigError for the first option that cannot be."""
    if options.backend not in BACKENDS:
        raise ConfigError(f"backend: got {options.backend!r}, expected one of {sorted(BACKENDS)}")
    precisions = BACKENDS[options.backend].precisions
    if options.precision not in precisions:
        raise ConfigError(
            f"precision: got {options.precision!r}, expected one of {sorted(precisions)}"
        )
    if bool(options.compute_capability) != (options.backend in FLAVOURS):
        raise ConfigError(
            f"compute-capability: got {list(options.compute_capability)} for {options.backend}, "
            f"expected the GPUs to build for with {sorted(FLAVOURS)}, else none"
        )
    calibrated = options.backend in FLAVOURS and options.precision == "fp8"
    if calibrated != (options.calibration is not None):
        raise ConfigError(
            f"calibration: got {options.calibration} for {options.precision}, expected the file "
            f"of `python -m export calibrate` for fp8 of {sorted(FLAVOURS)}, else none"
        )
    if options.backend == "inductor":
        inductor.check_precision(options.precision)
    if options.backend in FLAVOURS:
        tensorrt.check_capabilities(options.backend, options.compute_capability, options.precision)
    for name, size in (("height", options.height), ("width", options.width)):
        if size < 16 or size % 16:
            raise ConfigError(f"{name}: got {size}, expected a multiple of 16 pixels")
    if options.max_batch < 1:
        raise ConfigError(f"max-batch: got {options.max_batch}, expected at least 1")
    if not 0 <= options.pinned < options.frames:
        raise ConfigError(
            f"window, sinks: got {options.frames}, {options.pinned}, expected 0 <= sinks < window"
        )
    if not options.name or options.name.startswith(".") or "/" in options.name:
        raise ConfigError(f"name: got {options.name!r}, expected the name of a folder")


NO_PLAN = frozenset({
    "__init__", "__main__", "calibration", "commands", "fetch", "gpu_commands", "inspect",
    "options", "prepare", "prompts", "random_weights", "replay", "trial", "twins", "verify",
})  # fmt: skip
"""Modules of the exporter that decide nothing about a plan; all others are part of its key."""


def exporter() -> str:
    """Version and hash of the sources that decide what a plan is."""
    here = Path(__file__).parent
    sources = sorted(path for path in here.glob("*.py") if path.stem not in NO_PLAN)
    sources += sorted((here / "models").glob("*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources))
    return f"{VERSION}+{digest.hexdigest()[:12]}"


def _key(options: Options, weights_sha256: str) -> str:
    facts = asdict(options)
    for name in ("out", "checkpoint", "seed", "base", "loras", "latents"):
        del facts[name]
    if options.calibration is not None:
        facts["calibration"] = records.sha256_of(options.calibration)
    facts |= {
        "schema": records.SCHEMA,
        "exporter": exporter(),
        "library": BACKENDS[options.backend].library(),
        "gpu_architecture": BACKENDS[options.backend].gpu_architecture(options),
        "weights": weights_sha256,
        "window": options.frames,
        "sinks": options.pinned,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def parts_again(options: Options, source: Manifest, directory: Path) -> Parts:
    """The modules of an engine that was built before, for the size that is asked for now."""
    if source.model != options.config.name:
        raise ConfigError(
            f"checkpoint: {directory} is {source.model}, expected {options.config.name}"
        )
    records.check_files(source, directory)
    if BACKENDS[source.backend].hollow:
        raise ConfigError(
            f"checkpoint: {directory} is for {source.backend} and holds its weights rounded to "
            f"{source.precision}, expected a folder of weights or an engine for onnxruntime"
        )
    fold_time = BACKENDS[options.backend].fold_time
    try:
        parts = parts_within(source, directory, options.config, fold_time)
    except (KeyError, RuntimeError):
        raise CheckpointError(
            f"{directory}: its weights do not fit {source.model} as it is now; "
            "give --checkpoint, or --seed for random weights"
        ) from None
    geometry = geometry_of(options.config, options.height, options.width)
    dit = Dit(options.config.dit, geometry.latent_height, geometry.latent_width)
    checkpoints.fill_dit(dit, lora.merged(parts.dit.checkpoint(), options.loras))
    return replaced(parts, dit=dit)


def _random_checkpoint(options: Options) -> Path:
    """Seeded random weights in the original format, written once per code that makes them."""
    maker = Path(random_weights.__file__).read_bytes() + repr(options.config).encode()
    made_by = hashlib.sha256(maker).hexdigest()[:8]
    folder = options.out.parent / "checkpoints"
    target = folder / f"{options.config.name}-random-{options.seed}-{made_by}"
    if not target.is_dir():
        partial = folder / f".{target.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        checkpoints.write_random(options.config, partial, options.seed)
        os.rename(partial, target)
    return target


def _up_to_date(target: Path, key: str) -> Manifest | None:
    if not (target / records.FILE_NAME).is_file():
        return None
    try:
        manifest = records.read(target)
        if manifest.key != key:
            return None
        records.check_files(manifest, target)
    except EngineMismatch:
        return None
    return manifest


def _count(manifest: Manifest) -> int:
    return sum(len(unit.plans) for unit in (*manifest.prompt, *manifest.chain))


def _file(path: Path) -> records.Weights:
    return records.Weights(path.name, records.sha256_of(path), path.stat().st_size)


def _manifest(
    options: Options,
    key: str,
    weights_sha256: str,
    chain: Chain,
    made: Made,
    staging: Path,
    styles: tuple[str, ...],
) -> Manifest:
    config, dit, sampling = options.config, options.config.dit, options.config.sampling
    tokenizer = staging / TOKENIZER
    tokenized = tokenizer.is_file()

    def units(specs: tuple[UnitSpec, ...]) -> tuple[Unit, ...]:
        return tuple(Unit(s.name, s.kind, s.index, made.plans[s.name]) for s in specs)

    return Manifest(
        schema=records.SCHEMA,
        name=options.name,
        model=config.name,
        exporter=exporter(),
        backend=options.backend,
        library=BACKENDS[options.backend].library(),
        gpu_architecture=BACKENDS[options.backend].gpu_architecture(options),
        precision=options.precision,
        weights_sha256=weights_sha256,
        key=key,
        max_batch=options.max_batch,
        geometry=geometry_of(config, options.height, options.width),
        latents=latents_of(config),
        attention=records.Attention(
            blocks=dit.blocks,
            heads=dit.heads,
            head_dim=dit.head_dim,
            rope_time_pairs=dit.rope_pairs[0],
            rope_theta=dit.rope_theta,
        ),
        window=records.Window(options.frames, options.pinned, sampling.sink_threshold),
        noise=records.Noise(
            timesteps=sampling.timesteps,
            default_steps=sampling.default_steps,
            shift=sampling.shift,
            s_max=sampling.s_max,
            s_min=sampling.s_min,
            smoothing=MOTION_SMOOTHING,
            timestep_offset=sampling.timestep_offset,
        ),
        text=records.Text(
            length=dit.text_length,
            width=dit.text_width,
            tokenizer=TOKENIZER if tokenized else None,
            tokenizer_sha256=records.sha256_of(tokenizer) if tokenized else None,
            styles=styles,
        ),
        weights=tuple(_file(staging / name) for name in made.files),
        prompt=units(chain.prompt),
        chain=units(chain.chain),
    )
