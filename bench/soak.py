"""A long stream: does memory stay flat, does time per chunk? Or three live sessions on stretched
engines: are frames missed? Fails (exit 1) if resident memory moved by 2 % or more, or if more than
0.1 % of the frames are late or dropped.

    python -m bench.soak --frames 20000
    python -m bench.soak --minutes 10
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
from rt import manifest as manifests

SETTLED = 1000
"""Frames after which memory must not move any more."""
TOLERANCE = 0.02
MISSES = 0.001
"""Share of frames that may be late, and that may be dropped, in live sessions."""


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


def stream(engines: Path, frames: int) -> list[Row]:
    """One session as fast as it goes: resident memory and time per chunk."""
    process = psutil.Process()
    with rt.Pipeline.load(engines) as pipeline, pipeline.session(prompt="soak") as session:
        size = pipeline.manifest.geometry.height
        resident: list[int] = []
        stamps: list[float] = []
        for count, _ in enumerate(session.stream(pictures(frames, size)), 1):
            if count % 4 == 1:
                stamps.append(time.perf_counter())
            if count in (SETTLED, frames):
                resident.append(process.memory_info().rss)
        report = session.report()
    assert report.frames_in == report.frames_emitted == frames
    spans = [b - a for a, b in itertools.pairwise(stamps)]
    tenth = max(1, len(spans) // 10)
    early, late = statistics.median(spans[tenth : 2 * tenth]), statistics.median(spans[-tenth:])
    return [
        *memory(resident),
        Row("time per chunk, second tenth", early * 1e3, "ms", len(spans) // 10),
        Row("time per chunk, last tenth", late * 1e3, "ms", len(spans) // 10, early * 1e3),
    ]


def live(engines: Path, minutes: float, sessions: int = 3, utilisation: float = 0.8) -> list[Row]:
    """Live sessions on two stretched stages: misses, drops, resident memory."""
    from bench.cameras import Viewer, camera
    from bench.scaling import even
    from bench.stretched import stretched

    manifest, stage_ms, process = manifests.read(engines), 250.0, psutil.Process()
    fps = utilisation * 4e3 / stage_ms / sessions
    slo = rt.SLO(fps=fps, latency_ms=2500.0)
    resident: list[int] = []
    with (
        stretched(manifest, even(manifest, 2, 2, 2 * stage_ms)),
        rt.Pipeline.load(engines, ["cpu:0", "cpu:1"], seats=sessions, steps=2) as pipeline,
    ):

        def rate(at: float) -> float | None:
            return fps if at < 60 * minutes else None

        opened = [pipeline.session(prompt="soak", slo=slo) for _ in range(sessions)]
        viewers = [Viewer(s, camera(rate, manifest.geometry.height)) for s in opened]
        for viewer in viewers:
            viewer.start()
        for share in (0.1, 0.9):
            time.sleep(max(0.0, 60 * minutes * share))
            resident.append(process.memory_info().rss)
        reports = [viewer.join() for viewer in viewers]
    taken = sum(r.frames_in for r in reports)
    late = sum(r.frames_late for r in reports)
    dropped = sum(r.frames_dropped for r in reports)
    assert taken == late + dropped + sum(r.frames_on_time for r in reports), "counts add up"
    p99 = max(r.latency_ms.p99 or 0.0 for r in reports)
    return [
        *memory(resident),
        Row("frames late", late / taken * 100, "%", taken, MISSES * 100),
        Row("frames dropped", dropped / taken * 100, "%", taken, MISSES * 100),
        Row("latency p99, worst session", p99, "ms", taken, slo.latency_ms),
    ]


def memory(resident: list[int]) -> list[Row]:
    """Resident memory once it should have settled, at the end, and its growth."""
    growth = resident[-1] / resident[0] - 1
    return [
        Row("resident memory, settled", resident[0] / 2**20, "MiB", 1),
        Row("resident memory at the end", resident[-1] / 2**20, "MiB", 1, resident[0] / 2**20),
        Row("growth", growth * 100, "%", 1, TOLERANCE * 100),
    ]


def main() -> int:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    p.add_argument("--frames", type=int, default=20000)
    p.add_argument(
        "--minutes", type=float, help="three live sessions for so long instead of --frames"
    )
    p.add_argument(
        "--engines", type=Path, help="engine directory (default: build the smallest one)"
    )
    p.add_argument("--json", type=Path, default=Path("build/bench/soak.jsonl"))
    options = p.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        engines = options.engines or smallest_engine(Path(directory))
        if options.minutes:
            title, rows = (
                f"soak: 3 sessions, {options.minutes:g} min",
                live(engines, options.minutes),
            )
        else:
            title, rows = f"soak: {options.frames} frames", stream(engines, options.frames)
    publish(title, rows, options.json)
    bad = [
        row
        for row in rows
        if (row.name == "growth" and abs(row.value) >= TOLERANCE * 100)
        or (row.name.startswith("frames ") and row.value > MISSES * 100)
    ]
    for row in bad:
        told = f"{row.name} is {row.value:.2f} %, expected at most {row.limit:g} %"
        print(f"error: {told}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
