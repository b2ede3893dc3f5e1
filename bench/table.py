"""Rows of measurements: printed as a table, written as JSON with the machine that they were taken
on.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement. `value` is the median of `runs`; `limit` is what it is compared with, if
    anything.
    """

    name: str
    value: float
    unit: str
    runs: int
    limit: float | None = None
    note: str = ""


class Parser(argparse.ArgumentParser):
    """A mistake is one line on standard error, and exit code 2."""

    def __init__(self, *, prog: str | None = None, **rest: Any) -> None:
        spec = sys.modules["__main__"].__spec__
        if prog is None and spec is not None:
            prog = f"python -m {spec.name.removesuffix('.__main__')}"
        super().__init__(prog=prog, **rest)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def count(text: str) -> int:
    """For an option: a whole number, 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected a whole number above 0")
    return int(text)


def above(least: float) -> Callable[[str], float]:
    """For an option: a number above `least`."""

    def number(text: str) -> float:
        with contextlib.suppress(ValueError):
            if least < (value := float(text)) < math.inf:
                return value
        raise argparse.ArgumentTypeError(f"got {text}, expected a number above {least:g}")

    return number


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Paragraphs as they were written, and every default."""


def parser(description: str | None, name: str) -> Parser:
    """A benchmark's command line: what it does, and where its rows go."""
    p = Parser(description=description, formatter_class=_Help)
    p.add_argument("--json", type=Path, default=Path(f"build/bench/{name}.jsonl"))
    return p


def command(*words: str) -> str:
    """What a program prints, or "" where it is absent or fails."""
    if shutil.which(words[0]) is None:
        return ""
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)
    return done.stdout.strip() if done.returncode == 0 else ""


def machine() -> dict[str, str | int]:
    """What the numbers depend on. `kernel` is the one for matrix products, "" where there is none
    of ours: "Intel(R) Xeon(R) Processor" may be one with AMX or without. Where the sources are no
    repository, the variable COMMIT says which they are.
    """
    return {
        "processor": _processor(),
        "kernel": _kernel(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "commit": command("git", "rev-parse", "--short", "HEAD") or os.environ.get("COMMIT", ""),
        "date": time.strftime("%Y-%m-%d"),
    }


def publish(title: str, rows: Sequence[Row], path: Path) -> None:
    """Print `rows` and write them beside each other to `path`, one JSON object a line."""
    table = Table(title=title)
    for heading in ("measurement", "value", "unit", "runs", "share of limit", "note"):
        table.add_column(heading)
    for row in rows:
        share = "" if not row.limit else f"{row.value / row.limit:.2f}"
        table.add_row(row.name, f"{row.value:.4g}", row.unit, str(row.runs), share, row.note)
    Console(width=140).print(table)
    path.parent.mkdir(parents=True, exist_ok=True)
    about = machine()
    lines = [
        json.dumps({"benchmark": title, **dataclasses.asdict(row), "machine": about})
        for row in rows
    ]
    path.write_text("\n".join(lines) + "\n")
    print(f"written to {path}")


def _kernel() -> str:
    try:
        from rt.ops_matrix import matrix_kernels
    except ImportError:  # the extension is not built yet
        return ""
    return matrix_kernels()[0]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()
