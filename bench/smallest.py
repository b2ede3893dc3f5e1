"""The engines that live benchmarks run: those that were named, or the smallest there are, which are
built for the occasion.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.table import parser


def live_parser(description: str | None, name: str) -> argparse.ArgumentParser:
    """The command line of a benchmark that runs such engines."""
    p = parser(description, name)
    p.add_argument("--engines", type=Path, help="engine directory (default: the smallest)")
    return p


@contextlib.contextmanager
def engines_of(options: argparse.Namespace) -> Iterator[Path]:
    """The engine directory that was asked for."""
    with tempfile.TemporaryDirectory() as directory:
        yield options.engines or smallest_engine(Path(directory))


def smallest_engine(directory: Path) -> Path:
    """The tiny model at 64x64 pixels, built by another process: this one never loads torch."""
    size = ["--height", "64", "--width", "64", "--out", str(directory), "--name", "soak"]
    build = [sys.executable, "-m", "export", "build-engines", "--model", "tiny", *size]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    return directory / "soak"
