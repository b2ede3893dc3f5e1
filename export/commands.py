"""The exporter's command line: build-engines, verify, list, inspect, fetch, encode-prompt,
train-tiny.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Column, Table

from export import prepare
from export.gpu_commands import calibrate, calibration_of, dry_run, progress_bar, trial
from rt import manifest as records
from rt.command import Parser, command, ended
from rt.errors import ConfigError, EngineMissing, Error
from rt.manifest import Manifest, Unit

if TYPE_CHECKING:
    from export.verify import Difference


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    return ended(lambda: _run(arguments), NOTHING)


def _run(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    return ended(lambda: int(options.run(options)), options.interrupted)


NOTHING = "nothing was written"
"""What is true after Ctrl-C of a command that does not say otherwise."""


def _parser() -> Parser:
    from export.backends import BACKENDS
    from export.build import TOLERANCE
    from export.models.presets import PRESETS

    parser = command("python -m export", __doc__ or "")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    build = _command(commands, "build-engines", _build, "checkpoint -> engines/<name>/")
    build.set_defaults(interrupted="what is finished is kept; the same command goes on")
    build.add_argument("--model", choices=sorted(PRESETS), default="tiny", help="dimensions")
    build.add_argument("--checkpoint", type=Path, help="folder of weights, or an engine")
    build.add_argument("--base", type=Path, help="folder of what is not beside the checkpoint")
    build.add_argument("--seed", type=int, help="random weights instead")
    build.add_argument(
        "--lora", type=_lora, action="append", default=[], metavar="PATH[:WEIGHT]", help="to merge"
    )
    build.add_argument(
        "--latents", choices=("auto", "normalised", "raw"), default="auto", help="of the encoder"
    )
    build.add_argument(
        "--backend", choices=sorted(BACKENDS), default="onnxruntime", help="what runs the engine"
    )
    build.add_argument(
        "--precision", choices=sorted(TOLERANCE), help="of values (default: the backend's own)"
    )
    build.add_argument(
        "--compute-capability",
        type=lambda text: tuple(text.split(",")),
        default=(),
        help="of the GPUs to compile for, e.g. 8.9 or 8.9,12.0 (TensorRT)",
    )
    build.add_argument("--height", type=int, default=256, help="pixels, a multiple of 16")
    build.add_argument("--width", type=int, default=256, help="pixels, a multiple of 16")
    build.add_argument("--max-batch", type=int, default=4, help="most rows in one batch")
    build.add_argument("--window", type=int, help="latent frames (default: the model's own)")
    build.add_argument("--sinks", type=int, help="pinned latent frames (default: the model's own)")
    build.add_argument("--out", type=Path, default=Path("engines"), help="folder of engines")
    build.add_argument("--name", help="folder of this engine (default: of the model and backend)")

    build.add_argument(
        "--calibration", type=Path, help="for fp8 (default: fp8.json in the checkpoint)"
    )
    build.add_argument("--keep", choices=("all", "none"), default="all", help="of what is built")
    build.add_argument(
        "--units", type=lambda text: tuple(text.split(",")), default=(), help="with --keep none"
    )
    build.add_argument("--dry-run", action="store_true", help="device memory, nothing is built")
    build.add_argument("--steps", type=int, default=2, help="of denoising, for --dry-run")
    build.add_argument("--seats", type=int, default=1, help="sessions at once, for --dry-run")
    build.add_argument("--gpu-memory-gb", type=float, help="of the GPU, for --dry-run")

    calibrated = _command(commands, "calibrate", calibrate, "sizes of inputs, for fp8")
    calibrated.add_argument("--model", choices=sorted(PRESETS), required=True, help="dimensions")
    calibrated.add_argument("--checkpoint", type=Path, help="folder of weights")
    calibrated.add_argument("--seed", type=int, help="random weights instead")
    calibrated.add_argument("--base", type=Path, help="folder of what is not beside the checkpoint")
    calibrated.add_argument(
        "--lora", type=_lora, action="append", default=[], metavar="PATH[:WEIGHT]", help="to merge"
    )
    calibrated.add_argument("--frames", type=int, default=7, help="latent frames to run")
    calibrated.add_argument("--height", type=int, default=128, help="pixels, a multiple of 16")
    calibrated.add_argument("--width", type=int, default=128, help="pixels, a multiple of 16")
    calibrated.add_argument("--out", type=Path, help="file (default: fp8.json in the checkpoint)")

    check = _command(commands, "verify", _verify, "plans against their PyTorch units")
    check.set_defaults(interrupted="no verdict; the same command begins again")
    check.add_argument("--engines", type=Path, default=Path("engines/tiny"), help="one engine")
    check.add_argument("--chunks", type=int, default=8, help="of the stream it is compared along")
    check.add_argument(
        "--model", choices=sorted(PRESETS), help="instead of an engine: graphs, random weights"
    )
    check.add_argument("--seed", type=int, default=0, help="of these weights")
    check.add_argument("--height", type=int, default=256, help="pixels, with --model")
    check.add_argument("--width", type=int, default=256, help="pixels, with --model")
    check.add_argument(
        "--units", type=lambda text: tuple(text.split(",")), default=(), help="with --model"
    )

    listing = _command(commands, "list", _list, "the engines in a folder")
    listing.add_argument("--out", type=Path, default=Path("engines"), help="folder of engines")

    prepare.add_to(commands, _command)

    train = _command(commands, "train-tiny", _train, "the demonstration model, from nothing")
    train.set_defaults(interrupted="the same command goes on from the last state that was kept")
    train.add_argument("--minutes", type=float, default=120, help="then stop; a later call goes on")
    train.add_argument(
        "--stage", choices=("vae", "decoder", "dit", "all"), default="all", help="part"
    )
    train.add_argument("--seed", type=int, default=0, help="of data, noise and first weights")
    train.add_argument("--threads", type=int, default=0, help="of the CPU (0: all)")
    train.add_argument(
        "--out", type=Path, default=Path("checkpoints/tiny"), help="folder of weights"
    )
    return parser


def _lora(text: str) -> tuple[Path, float]:
    """PATH or PATH:WEIGHT."""
    path, _, weight = text.rpartition(":")
    return (Path(path), float(weight)) if path else (Path(text), 1.0)


class _Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Shows every default but None, whose meaning is in the text of the option."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def _command(
    commands: argparse._SubParsersAction[Parser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
) -> Parser:
    made = commands.add_parser(
        name, help=text, description=text, formatter_class=_Defaults, allow_abbrev=False
    )
    made.set_defaults(run=run, interrupted=NOTHING)
    return made


def _build(arguments: argparse.Namespace) -> int:
    from export.backends import BACKENDS
    from export.build import build_engines
    from export.models.presets import PRESETS
    from export.options import Options

    if arguments.checkpoint is not None and arguments.seed is not None:
        raise ConfigError("checkpoint, seed: got both, expected one")
    if arguments.checkpoint is None and arguments.seed is None and arguments.model != "tiny":
        raise ConfigError(
            "checkpoint: got none, expected a folder of weights (or --seed N for random ones)"
        )
    backend = BACKENDS[arguments.backend]
    suffix = "" if arguments.backend == "onnxruntime" else f"-{arguments.backend}"
    name = arguments.name or arguments.model + suffix
    if arguments.checkpoint is None and arguments.seed is None:
        # an engine that is built again keeps its weights; one for TensorRT does not give them back
        own = arguments.out / (arguments.model if backend.hollow else name)
        arguments.checkpoint = own if (own / records.FILE_NAME).is_file() else None
    options = Options(
        config=PRESETS[arguments.model],
        height=arguments.height,
        width=arguments.width,
        out=arguments.out,
        name=name,
        backend=arguments.backend,
        precision=arguments.precision or backend.precisions[0],
        max_batch=arguments.max_batch,
        window=arguments.window,
        sinks=arguments.sinks,
        checkpoint=arguments.checkpoint,
        seed=arguments.seed or 0,
        base=arguments.base,
        loras=tuple(arguments.lora),
        latents=arguments.latents,
        compute_capability=arguments.compute_capability,
        calibration=calibration_of(arguments),
    )
    if (arguments.dry_run or arguments.keep == "none") and not backend.hollow:
        raise ConfigError(
            f"dry-run, keep: got them for {arguments.backend}, expected a TensorRT backend"
        )
    if arguments.dry_run:
        return dry_run(options, arguments)
    if arguments.keep == "none":
        return trial(options, arguments.units)
    with progress_bar() as report:
        built = build_engines(options, report)
    if built.up_to_date:
        print(f"{built.directory}: up to date, {built.reused} plans")
    else:
        print(f"{built.directory}: {built.built} plans built, {built.reused} found finished")
    if options.checkpoint is None and arguments.seed is None:
        print(
            f"note: the weights are random, for no engine was at {built.directory}; those of the "
            "repository: git checkout engines/tiny, or --checkpoint engines/tiny"
        )
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    table = Table("unit", "phase", "inputs", "rows", "max abs difference", "tolerance", "")
    failed = 0
    engine = arguments.model is None
    found = _of_engine(arguments.engines, arguments.chunks) if engine else _of_graphs(arguments)
    for d in found:
        failed += not d.passed
        numbers = (f"{d.maximum:.2e}", f"{d.tolerance:.0e}")
        verdict = "ok" if d.passed else "FAILED"
        table.add_row(d.unit, d.phase, d.inputs, str(d.rows), *numbers, verdict)
    Console().print(table)
    if failed:
        raise Error(f"{failed} differences exceed the tolerance; build the engine again")
    return 0


def _of_engine(directory: Path, chunks: int) -> Iterator[Difference]:
    from export import verify
    from export.backends import BACKENDS
    from export.models.presets import PRESETS

    manifest = _read(directory)
    if manifest.model not in PRESETS:
        raise ConfigError(f"model: got {manifest.model!r}, expected one of {sorted(PRESETS)}")
    if chunks < 1:
        raise ConfigError(f"chunks: got {chunks}, expected at least 1")
    fold_time = BACKENDS[manifest.backend].fold_time
    units = verify.twin(manifest, directory, PRESETS[manifest.model], fold_time).units
    yield from verify.verify(manifest, directory, units)
    yield from verify.verify_stream(manifest, directory, units, chunks)
    yield from verify.hidden_slots(manifest, directory)


def _of_graphs(arguments: argparse.Namespace) -> Iterator[Difference]:
    from export.models.presets import PRESETS
    from export.options import Options
    from export.twins import verify_graphs

    options = Options(
        config=PRESETS[arguments.model],
        height=arguments.height,
        width=arguments.width,
        out=Path("."),
        name=arguments.model,
        seed=arguments.seed,
    )
    with progress_bar() as report:
        yield from verify_graphs(options, arguments.units, report)


def _train(arguments: argparse.Namespace) -> int:
    from export.tiny.run import run

    with progress_bar() as report:
        done = run(
            arguments.out,
            arguments.stage,
            arguments.minutes,
            arguments.seed,
            arguments.threads,
            report,
        )
    print(f"{arguments.out}: {'trained' if done else 'not finished; the same command goes on'}")
    return 0


def _list(arguments: argparse.Namespace) -> int:
    found = sorted(path.parent for path in arguments.out.glob(f"*/{records.FILE_NAME}"))
    if not found:
        raise EngineMissing(
            f"no engine in {arguments.out}; expected a folder of engines, such as engines of the "
            "repository: name it with --out, or build one with python -m export build-engines"
        )
    # Names are what is asked for: on a narrow terminal they are folded, never cut.
    backend = Column("backend", min_width=len("tensorrt-rtx"))
    names = (Column("engine", overflow="fold"), "model", backend)
    others = ("size", "precision", "window, sinks", "MB")
    table = Table(*names, *others, title=str(arguments.out))
    for directory in found:
        manifest = records.read(directory)
        geometry, window = manifest.geometry, manifest.window
        table.add_row(
            directory.name,
            manifest.model,
            f"{manifest.backend}\n{manifest.library.removeprefix(manifest.backend).strip()}",
            f"{geometry.width}x{geometry.height}",
            manifest.precision,
            f"{window.frames}, {window.sinks}",
            f"{sum(file.bytes for file in manifest.weights) / 1e6:.1f}",
        )
    Console().print(table)
    return 0


def _units(manifest: Manifest) -> tuple[Unit, ...]:
    return (*manifest.prompt, *manifest.chain)


def _read(directory: Path) -> Manifest:
    manifest = records.read(directory)
    records.check_files(manifest, directory)
    return manifest
