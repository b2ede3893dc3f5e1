"""A long stream: does memory stay flat, does time per chunk? Or three live sessions, on stretched
engines or real ones: are frames missed? Fails (exit 1) if resident memory moved by 2 % or more, or
if more than 0.1 % of the frames (of real engines 1 %) are late or dropped.

    python -m bench.soak --frames 20000
    python -m bench.soak --minutes 10 [--real]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil

import rt
from bench.smallest import engines_of
from bench.table import Parser, Row, above, count, publish
from rt import manifest as manifests

SETTLED = 1000
"""Frames after which memory must not move any more."""
TOLERANCE = 0.02
SESSIONS, STEPS, BUDGET_MS = 3, 2, 2500.0
MISSES, REAL = 0.001, 0.01
"""Share of frames that may be late or dropped in live sessions, on stretched and real engines."""


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


def live(engines: Path, minutes: float, real: bool) -> list[Row]:
    """Live sessions on two stretched stages, or on one of real engines."""
    from bench.cameras import control
    from bench.scaling import even
    from bench.stretched import stretched

    if real:
        with rt.Pipeline.load(engines, "cpu:0", seats=SESSIONS, steps=STEPS) as pipeline:
            fps, _ = control(pipeline, rt.SLO(fps=5.0, latency_ms=BUDGET_MS), 12.0, STEPS)
            return watch(pipeline, 0.6 * fps, minutes, REAL)
    manifest, stage_ms = manifests.read(engines), 250.0
    with (
        stretched(manifest, even(manifest, 2, STEPS, 2 * stage_ms)),
        rt.Pipeline.load(engines, ["cpu:0", "cpu:1"], seats=SESSIONS, steps=STEPS) as pipeline,
    ):
        return watch(pipeline, 0.75 * 4e3 / stage_ms, minutes, MISSES)


def watch(pipeline: rt.Pipeline, fps: float, minutes: float, most: float) -> list[Row]:
    """Misses, resident memory and utilisation while the sessions share `fps`."""
    from bench.cameras import misses, watched

    slo, process = rt.SLO(fps=fps / SESSIONS, latency_ms=BUDGET_MS), psutil.Process()
    viewers = watched(pipeline, [slo] * SESSIONS, 60 * minutes, STEPS)
    resident: list[int] = []
    busy: list[list[float]] = []
    for minute in (0.1 * minutes, 0.8 * minutes):  # From a tenth to nine tenths of the time.
        time.sleep(60 * minute)
        resident.append(process.memory_info().rss)
        busy.append([time.perf_counter(), *(s.busy_seconds for s in pipeline.status().placement)])
    spent_s, *worked_s = (b - a for a, b in zip(*busy, strict=True))
    reports = [viewer.join() for viewer in viewers]
    share, taken = misses(reports)
    p99 = max(r.latency_ms.p99 or 0.0 for r in reports)
    return [
        *memory(resident),
        Row("frames missed", share * 100, "%", taken, most * 100),
        Row("latency p99, worst session", p99, "ms", taken, BUDGET_MS),
        Row("share of the time that the busiest stage works", max(worked_s) / spent_s, "", 1, 0.85),
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
    p = Parser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--frames", type=count, default=20000)
    p.add_argument(
        "--minutes", type=above(0), help="three live sessions for so long instead of --frames"
    )
    p.add_argument("--real", action="store_true", help="engines of live sessions as they are")
    p.add_argument(
        "--engines", type=Path, help="engine directory (default: build the smallest one)"
    )
    p.add_argument("--json", type=Path, help="default: by what was run, in build/bench")
    options = p.parse_args()
    with engines_of(options) as engines:
        if options.minutes:
            name = "soak_real" if options.real else "soak_live"
            title = f"{name}: {SESSIONS} sessions, {options.minutes:g} min"
            rows = live(engines, options.minutes, options.real)
        else:
            name, title = "soak", f"soak: {options.frames} frames"
            rows = stream(engines, options.frames)
    publish(title, rows, options.json or Path(f"build/bench/{name}.jsonl"))
    bad = [
        row
        for row in rows
        if row.name in ("growth", "frames missed") and abs(row.value) > (row.limit or 0.0)
    ]
    for row in bad:
        told = f"{row.name} is {row.value:.2f} %, expected at most {row.limit:g} %"
        print(f"error: {told}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
