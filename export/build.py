"""Checkpoint -> `engines/<name>/`: atomic, resumable, keyed.

A build goes on where an earlier one of the same key was cut, and a valid engine is never touched.
Owns the key and the records of the manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any

from export import checkpoints, random_weights, weights
from export.backends import BACKENDS
from export.models.dit import Dit
from export.models.presets import ModelConfig
from export.onnx import Stored
from export.staging import replace, staged, write_whole
from export.units import (
    Chain,
    Parts,
    PhaseSpec,
    UnitSpec,
    geometry_of,
    wan_chain,
)
from export.verify import parts_within, smoke
from rt import manifest as records
from rt.errors import CheckpointError, ConfigError, EngineMismatch, Error
from rt.manifest import Manifest, Plan, Unit

VERSION = "0.1.0"
TOKENIZER = "tokenizer.json"
TOLERANCE = {"fp32": 1e-4}
"""Largest absolute difference between a plan and its PyTorch unit, per precision."""
MOTION_SMOOTHING = 0.9
"""Weight of this chunk's noise scale against the last one's (the released code's constant)."""

Progress = Callable[[str, int, int], None]
"""Called with what is done now, the number of steps done, and the number of all steps."""


@dataclass(frozen=True, slots=True)
class Options:
    """What to build. Everything here but `out` decides whether an engine is still valid.

    `checkpoint` is a folder of weights, or an engine whose weights are used again. None means
    seeded random weights, written to `checkpoints` beside `out`.
    """

    config: ModelConfig
    height: int
    width: int
    out: Path
    name: str
    backend: str = "onnxruntime"
    precision: str = "fp32"
    max_batch: int = 4
    window: int | None = None
    sinks: int | None = None
    checkpoint: Path | None = None
    seed: int = 0

    @property
    def frames(self) -> int:
        """Window in latent frames."""
        return self.config.sampling.window if self.window is None else self.window

    @property
    def pinned(self) -> int:
        """Sinks among them."""
        return self.config.sampling.sinks if self.sinks is None else self.sinks


@dataclass(frozen=True, slots=True)
class Built:
    """What a build did: plan files written now, and plan files found finished."""

    directory: Path
    manifest: Manifest
    built: int
    reused: int
    up_to_date: bool = False


@dataclass(slots=True)
class _Build:
    options: Options
    chain: Chain
    staging: Path
    stored: dict[tuple[str, str], dict[str, Stored]]
    exported: dict[tuple[str, str], Any] = field(default_factory=dict)
    built: int = 0
    reused: int = 0


def build_engines(options: Options, progress: Progress = lambda *_: None) -> Built:
    """Make `options.out/options.name`, or find that it is up to date.

    Raises ConfigError for options that fit no engine, CheckpointError for a bad checkpoint.
    """
    check(options)
    checkpoint = options.checkpoint or _random_checkpoint(options)
    source = _engine_at(checkpoint)
    digest = _digest_of_files(checkpoint) if source is None else source.weights_sha256
    key = _key(options, digest)
    options.out.mkdir(parents=True, exist_ok=True)
    target = options.out / options.name
    with staged(options.out, options.name, key) as staging:
        if (manifest := _up_to_date(target, key)) is not None:
            return Built(target, manifest, 0, _count(manifest), up_to_date=True)
        fold_time = BACKENDS[options.backend].fold_time
        if source is None:
            parts = checkpoints.load_parts(
                options.config, checkpoint, options.height, options.width, fold_time=fold_time
            )
        else:
            parts = parts_again(options, source, checkpoint)
        chain = wan_chain(options.config, parts, options.height, options.width, options.frames)
        state = _Build(options, chain, staging, weights.write(chain, staging))
        units = _write_plans(state, progress)
        if (tokenizer := _tokenizer_of(checkpoint, source)) is not None:
            write_whole(staging / TOKENIZER, [tokenizer.read_bytes()])
        styles = checkpoints.styles_of(checkpoint) if source is None else source.text.styles
        manifest = _manifest(options, key, digest, chain, units, staging, styles)
        records.write(manifest, staging)
        smoke(manifest, staging)
        replace(staging, target)
    return Built(target, manifest, state.built, state.reused)


def check(options: Options) -> None:
    """Raise ConfigError for the first option that cannot be."""
    if options.backend not in BACKENDS:
        raise ConfigError(f"backend: got {options.backend!r}, expected one of {sorted(BACKENDS)}")
    if options.precision not in TOLERANCE:
        raise ConfigError(
            f"precision: got {options.precision!r}, expected one of {sorted(TOLERANCE)}"
        )
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


def exporter() -> str:
    """Version and hash of the sources that decide what a plan is."""
    here = Path(__file__).parent
    names = (
        "units",
        "onnx",
        "inductor",
        "backends",
        "weights",
        "staging",
        "build",
        "checkpoints",
        "formats",
    )
    sources = [here / f"{name}.py" for name in names] + sorted((here / "models").glob("*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources))
    return f"{VERSION}+{digest.hexdigest()[:12]}"


def _key(options: Options, weights_sha256: str) -> str:
    facts = asdict(options)
    del facts["out"], facts["checkpoint"], facts["seed"]
    facts |= {
        "schema": records.SCHEMA,
        "exporter": exporter(),
        "library": BACKENDS[options.backend].library,
        "gpu_architecture": BACKENDS[options.backend].gpu_architecture,
        "weights": weights_sha256,
        "window": options.frames,
        "sinks": options.pinned,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _digest_of_files(directory: Path) -> str:
    """Hash of the names and contents of all files of a checkpoint (or of one file)."""
    files = sorted(p for p in directory.rglob("*") if p.is_file()) if directory.is_dir() else []
    whole = hashlib.sha256()
    for path in files or [directory]:
        if not path.is_file():
            raise ConfigError(f"checkpoint: got {directory}, expected an existing file or folder")
        whole.update(f"{path.relative_to(directory)} {records.sha256_of(path)}\n".encode())
    return whole.hexdigest()


def _engine_at(path: Path) -> Manifest | None:
    """The manifest of an engine, or None if `path` is a checkpoint."""
    return records.read(path) if (path / records.FILE_NAME).is_file() else None


def parts_again(options: Options, source: Manifest, directory: Path) -> Parts:
    """The modules of an engine that was built before, for the size that is asked for now."""
    if source.model != options.config.name:
        raise ConfigError(
            f"checkpoint: {directory} is {source.model}, expected {options.config.name}"
        )
    records.check_files(source, directory)
    fold_time = BACKENDS[source.backend].fold_time
    try:
        parts = parts_within(source, directory, options.config, fold_time)
    except (KeyError, RuntimeError):
        raise CheckpointError(
            f"{directory}: its weights do not fit {source.model} as it is now; "
            "give --checkpoint, or --seed for random weights"
        ) from None
    geometry = geometry_of(options.config, options.height, options.width)
    dit = Dit(options.config.dit, geometry.latent_height, geometry.latent_width)
    checkpoints.fill_dit(dit, parts.dit.checkpoint())
    return replaced(parts, dit=dit)


def _tokenizer_of(checkpoint: Path, source: Manifest | None) -> Path | None:
    if source is None:
        return checkpoints.tokenizer_file(checkpoint)
    return checkpoint / source.text.tokenizer if source.text.tokenizer else None


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


def _write_plans(state: _Build, progress: Progress) -> dict[str, dict[str, Plan]]:
    """A plan file for each unit and phase that has none yet, and the records of all."""
    total = sum(len(unit.phases) for unit in state.chain.units)
    units: dict[str, dict[str, Plan]] = {}
    done = 0
    for unit in state.chain.units:
        for phase, spec in unit.phases.items():
            progress(f"{unit.name} {phase}", done, total)
            plan = _write_plan(state, unit, phase, spec)
            units.setdefault(unit.name, {})[phase] = plan
            done += 1
    progress("check", done, total)
    _check_weights_used(state, units)
    return units


def _write_plan(state: _Build, unit: UnitSpec, phase: str, spec: PhaseSpec) -> Plan:
    backend = BACKENDS[state.options.backend]
    name = unit.name if len(unit.phases) == 1 else f"{unit.name}.{phase}"
    path = state.staging / (name + backend.suffix)
    if path.is_file():
        state.reused += 1
    else:
        state.built += 1
        plan = backend.plan(_graph(state, unit, phase, spec), state.stored[unit.name, phase])
        write_whole(path, [plan])
    return Plan(
        file=path.name,
        sha256=records.sha256_of(path),
        graph_sha256=backend.graph_sha256(path),
        inputs=spec.inputs,
        outputs=spec.outputs,
        state=spec.state,
        flop=spec.flop,
        bytes=spec.bytes,
        tolerance=TOLERANCE[state.options.precision],
    )


def _graph(state: _Build, unit: UnitSpec, phase: str, spec: PhaseSpec) -> Any:
    """The graph of a unit, exported once for all units that share it."""
    place = unit.graph, phase
    if place not in state.exported:
        # Phase `first` starts from caches of zeros, and need not look at them.
        may_ignore = {s.input for s in spec.state} if phase == "first" else set()
        state.exported[place] = BACKENDS[state.options.backend].export(spec, may_ignore)
    return state.exported[place]


def _check_weights_used(state: _Build, units: Mapping[str, Mapping[str, Plan]]) -> None:
    """A weight that no phase of a unit reads is a fault of the unit."""
    weights_of = BACKENDS[state.options.backend].weights_of
    for unit in state.chain.units:
        used: set[str] = set()
        expected: set[str] = set()
        for phase, plan in units[unit.name].items():
            used |= set(weights_of(state.staging / plan.file))
            expected |= set(state.stored[unit.name, phase])
        if used != expected:
            raise Error(f"unit {unit.name}: no graph reads the weights {sorted(expected - used)}")


def _manifest(
    options: Options,
    key: str,
    weights_sha256: str,
    chain: Chain,
    plans: Mapping[str, Mapping[str, Plan]],
    staging: Path,
    styles: tuple[str, ...],
) -> Manifest:
    config, dit, sampling = options.config, options.config.dit, options.config.sampling
    file, tokenizer = staging / weights.FILE_NAME, staging / TOKENIZER
    tokenized = tokenizer.is_file()

    def units(specs: tuple[UnitSpec, ...]) -> tuple[Unit, ...]:
        return tuple(Unit(s.name, s.kind, s.index, plans[s.name]) for s in specs)

    return Manifest(
        schema=records.SCHEMA,
        name=options.name,
        model=config.name,
        exporter=exporter(),
        backend=options.backend,
        library=BACKENDS[options.backend].library,
        gpu_architecture=BACKENDS[options.backend].gpu_architecture,
        precision=options.precision,
        weights_sha256=weights_sha256,
        key=key,
        max_batch=options.max_batch,
        geometry=geometry_of(config, options.height, options.width),
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
        weights=(records.Weights(file.name, records.sha256_of(file), file.stat().st_size),),
        prompt=units(chain.prompt),
        chain=units(chain.chain),
    )
