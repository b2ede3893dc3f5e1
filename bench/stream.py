"""The main job on this machine: seconds per unit, FPS end to end, TTFF, latency, time outside
engines and ops.

python -m bench.stream --engines engines/tiny
"""

from __future__ import annotations

import argparse
import statistics
import time
from itertools import islice
from pathlib import Path

import numpy as np

from bench.table import Parser, Row, above, count, publish
from rt import SLO, Frame, Pipeline
from rt.media import moving_scene

FPS, TTFF_MS, OUTSIDE_PERCENT = 16.0, 500.0, 5.0
"""What the demonstration model has to reach on two cores; the table shows the share of each."""


def pictures(pipeline: Pipeline, count: int) -> list[np.ndarray]:
    """`count` pictures of the demo's scene at the engine's size."""
    g = pipeline.manifest.geometry
    scene = moving_scene(g.height, g.width, 16.0, count / 16.0)
    found = [frame.rgb for frame in islice(scene, count)]
    assert len(found) == count
    return found


def throughput(
    pipeline: Pipeline, frames: list[np.ndarray], steps: int
) -> tuple[float, float, dict[str, float]]:
    """Saturated: (FPS after the window is full, share of time outside engines and ops, ms per chunk
    of each unit).
    """
    warm = 1 + 4 * (pipeline.manifest.window.frames + 1)
    start_ns, seconds, outside = 0, {}, 0.0
    with pipeline.session(prompt="a pencil sketch", steps=steps) as session:
        for count, _ in enumerate(session.stream(frames), 1):
            if count == warm:
                start_ns, seconds = time.perf_counter_ns(), busy(pipeline)
        elapsed = (time.perf_counter_ns() - start_ns) * 1e-9
    spent = {name: value - seconds[name] for name, value in busy(pipeline).items()}
    chunks = (len(frames) - warm) / pipeline.manifest.geometry.frames_per_chunk
    outside = 1 - sum(spent.values()) / elapsed
    return (len(frames) - warm) / elapsed, outside, {n: s / chunks * 1e3 for n, s in spent.items()}


def busy(pipeline: Pipeline) -> dict[str, float]:
    """Seconds spent so far in each unit, in prompt units and in the ops."""
    total: dict[str, float] = {}
    for stage in pipeline.status().placement:
        total.update(stage.unit_seconds)
        total["prompt_kv"] = total.get("prompt_kv", 0.0) + stage.prompt_seconds
        total["ops"] = total.get("ops", 0.0) + stage.ops_seconds
    return total


def live(pipeline: Pipeline, frames: list[np.ndarray], steps: int, fps: float) -> dict[str, float]:
    """Frames at the pace of a camera: TTFF and latency in ms."""

    def camera() -> object:
        start = time.perf_counter_ns()
        for index, picture in enumerate(frames):
            due = start + round(index / fps * 1e9)
            time.sleep(max(0.0, (due - time.perf_counter_ns()) * 1e-9))
            yield Frame(picture, index, index / fps, due)

    with pipeline.session(
        prompt="a pencil sketch", steps=steps, slo=SLO(fps=fps, latency_ms=500.0)
    ) as session:
        for _ in session.stream(camera()):
            pass
        report = session.report()
    assert report.ttff_s is not None
    latency = report.latency_ms
    return {
        "TTFF": report.ttff_s * 1e3,
        "latency p50": latency.p50,
        "latency p90": latency.p90,
        "latency p99": latency.p99,
        "late frames (budget 500 ms)": float(report.frames_late),
    }


def main() -> None:
    p = Parser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--engines", type=Path, default=Path("engines/tiny"))
    p.add_argument("--steps", type=count, default=2)
    p.add_argument("--frames", type=count, default=209)
    p.add_argument("--runs", type=count, default=5)
    p.add_argument("--fps", type=above(0), default=16.0, help="rate of the simulated camera")
    p.add_argument("--json", type=Path, default=Path("build/bench/stream.jsonl"))
    options = p.parse_args()
    rows: list[Row] = []
    with Pipeline.load(options.engines, steps=options.steps) as pipeline:
        frames = pictures(pipeline, options.frames)
        runs = [throughput(pipeline, frames, options.steps) for _ in range(options.runs)]
        n = options.runs
        rows.append(
            Row(
                "FPS end to end, saturated",
                statistics.median(r[0] for r in runs),
                "frames/s",
                n,
                FPS,
            )
        )
        outside = statistics.median(r[1] for r in runs) * 100
        rows.append(Row("time outside engines and ops", outside, "%", n, OUTSIDE_PERCENT))
        for unit in runs[0][2]:
            rows.append(Row(unit, statistics.median(r[2][unit] for r in runs), "ms/chunk", n))
        lives = [live(pipeline, frames, options.steps, options.fps) for _ in range(min(3, n))]
        for name in lives[0]:
            unit = "frames" if name.startswith("late frames") else "ms"
            rows.append(
                Row(
                    f"{name} at {options.fps:g} fps",
                    statistics.median(x[name] for x in lives),
                    unit,
                    len(lives),
                    TTFF_MS if name == "TTFF" else None,
                )
            )
    publish(f"stream: {options.engines}, {options.steps} steps", rows, options.json)


if __name__ == "__main__":
    main()
