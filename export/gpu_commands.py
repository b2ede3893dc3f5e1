"""The commands that only backends which compile for a GPU have: calibrate, a dry run, a trial. And
the progress bar of all commands.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from rt.errors import ConfigError

if TYPE_CHECKING:
    from export.options import Options


def calibration_of(arguments: argparse.Namespace) -> Path | None:
    """The file that is named, or the one in the checkpoint where a backend wants one for fp8."""
    from export.calibration import FILE_NAME
    from rt.backends.tensorrt import FLAVOURS

    given: Path | None = arguments.calibration
    wanted = arguments.backend in FLAVOURS and arguments.precision == "fp8"
    if given is None and wanted and arguments.checkpoint is not None:
        beside = _folder(arguments.checkpoint) / FILE_NAME
        return beside if beside.is_file() else None
    return given


def calibrate(arguments: argparse.Namespace) -> int:
    from export import calibration
    from export.build import open_chain, weights_digest
    from export.models.presets import PRESETS
    from export.options import Options

    if (arguments.checkpoint is None) == (arguments.seed is None):
        raise ConfigError("checkpoint, seed: got both or none, expected one")
    if arguments.out is None and arguments.checkpoint is None:
        raise ConfigError("out: got none, expected a file (there is no checkpoint to put it in)")
    out = arguments.out or _folder(arguments.checkpoint) / calibration.FILE_NAME
    options = Options(
        PRESETS[arguments.model], arguments.height, arguments.width, out.parent, "calibration",
        backend="tensorrt-rtx", checkpoint=arguments.checkpoint, seed=arguments.seed or 0,
        base=arguments.base, loras=tuple(arguments.lora),
    )  # fmt: skip
    with progress_bar() as report:
        amax = calibration.calibrate(options, open_chain(options), arguments.frames, report)
    calibration.write(out, weights_digest(options), amax)
    print(f"{out}: {len(amax)} layers, inputs up to {max(amax.values()):.3g}")
    return 0


def _folder(checkpoint: Path) -> Path:
    return checkpoint if checkpoint.is_dir() else checkpoint.parent


def dry_run(options: Options, arguments: argparse.Namespace) -> int:
    from export.trial import GB, memory_of

    memory = memory_of(options, arguments.seats, arguments.steps)
    table = Table("device memory", "GB")
    about = {"text": "text encoder", "sinks": "keys of sinks", "scratch": "scratch (estimated)"}
    for part in fields(memory):
        size = getattr(memory, part.name) / GB
        table.add_row(about.get(part.name, part.name), f"{size:.2f}")
    table.add_row("all", f"{memory.total / GB:.2f}")
    without = (memory.total - memory.text) / GB
    table.add_row("all, prompts as embeddings", f"{without:.2f}")
    Console().print(table)
    if (room := arguments.gpu_memory_gb) is None:
        return 0
    if memory.total / GB <= room:
        print(f"fits into {room:g} GB")
    elif without <= room:
        print(f"fits into {room:g} GB without the text encoder (prompts as embeddings)")
    else:
        print(f"does not fit into {room:g} GB")
    return 0 if without <= room else 1


def trial(options: Options, units: tuple[str, ...]) -> int:
    from export.trial import build_and_delete

    started = time.monotonic()
    with progress_bar() as report:
        done = build_and_delete(options, units, report)
    table = Table("unit", "engine MB", "weights MB", "seconds", "peak RSS MB", "layers")
    for name, e in done.found:
        sizes = (f"{e.bytes / 1e6:.1f}", f"{e.weights / 1e6:.1f}")
        numbers = (*sizes, f"{e.seconds:.1f}", f"{e.peak_bytes / 1e6:.0f}", str(e.layers))
        table.add_row(name, *numbers)
    Console().print(table)
    peak = done.peak_bytes / 1e6
    print(
        f"{time.monotonic() - started:.0f} s, peak RSS {peak:.0f} MB, "
        f"plan {done.share:.3f} x weights; nothing kept"
    )
    return 0


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error, where a terminal is attached."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<20}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def report(text: str, done: int, total: int) -> None:
            bar.update(task, description=text, completed=done, total=total)

        yield report
