"""A long stream: does memory stay flat, does time per chunk? Fails (exit 1) if resident memory
moved by 2 % or more.

    python -m bench.soak --frames 20000
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil

import rt
from bench.table import Row, publish

SETTLED = 1000
"""Frames after which memory must not move any more."""
TOLERANCE = 0.02


def smallest_engine(directory: Path) -> Path:
    """The tiny model at 64x64 pixels, built by another process: this one never loads torch."""
    size = ["--height", "64", "--width", "64", "--out", str(directory), "--name", "soak"]
    build = [sys.executable, "-m", "export", "build-engines", "--model", "tiny", *size]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    return directory / "soak"


def pictures(count: int, size: int) -> Iterator[np.ndarray]:
    """A texture that slides for ever, without an allocation that grows."""
    texture = np.random.default_rng(0).integers(0, 255, (size, size + 64, 3), dtype=np.uint8)
    for i in range(count):
        yield texture[:, i % 64 : i % 64 + size]


def main() -> int:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    p.add_argument("--frames", type=int, default=20000)
    p.add_argument(
        "--engines", type=Path, help="engine directory (default: build the smallest one)"
    )
    p.add_argument("--json", type=Path, default=Path("build/bench/soak.jsonl"))
    options = p.parse_args()
    process = psutil.Process()
    with tempfile.TemporaryDirectory() as directory:
        engines = options.engines or smallest_engine(Path(directory))
        with rt.Pipeline.load(engines) as pipeline, pipeline.session(prompt="soak") as session:
            size = pipeline.manifest.geometry.height
            resident: list[int] = []
            stamps: list[float] = []
            for count, _ in enumerate(session.stream(pictures(options.frames, size)), 1):
                if count % 4 == 1:
                    stamps.append(time.perf_counter())
                if count == SETTLED or count == options.frames:
                    resident.append(process.memory_info().rss)
            report = session.report()
    assert report.frames_in == report.frames_emitted == options.frames
    spans = [b - a for a, b in itertools.pairwise(stamps)]
    tenth = max(1, len(spans) // 10)
    early, late = statistics.median(spans[tenth : 2 * tenth]), statistics.median(spans[-tenth:])
    growth = resident[-1] / resident[0] - 1
    publish(
        f"soak: {options.frames} frames",
        [
            Row(f"resident memory after {SETTLED} frames", resident[0] / 2**20, "MiB", 1),
            Row("resident memory at the end", resident[-1] / 2**20, "MiB", 1, resident[0] / 2**20),
            Row("growth", growth * 100, "%", 1, TOLERANCE * 100),
            Row("time per chunk, second tenth", early * 1e3, "ms", len(spans) // 10),
            Row("time per chunk, last tenth", late * 1e3, "ms", len(spans) // 10, early * 1e3),
        ],
        options.json,
    )
    if abs(growth) >= TOLERANCE:
        told = f"memory moved by {growth:.1%}, expected less than {TOLERANCE:.0%}"
        print(f"error: {told}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
