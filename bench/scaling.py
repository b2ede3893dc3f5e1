"""Throughput of one session on 1 to N stages, with engines stretched to known times and the work
evenly cut.

    python -m bench.scaling
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

import rt
from bench.smallest import engines_of, live_parser
from bench.stretched import known, laps, stretched
from bench.table import Row, above, count, publish
from rt import costfile, placement
from rt import manifest as manifests
from rt.cost import Costs
from rt.devices import Device
from rt.manifest import Manifest

GAIN = 3.6
"""What four stages of equal work have to reach against one."""


def even(manifest: Manifest, stages: int, steps: int, chunk_ms: float) -> Costs:
    """Costs of which `stages` of equal work can be cut, `chunk_ms` for a chunk in all."""
    modelled = costfile.modelled(manifest, Device("cpu", 0, 1))
    unit_ms: list[float] = []
    for units in placement.place([modelled] * stages, steps).ranges:
        visits = sum(laps(manifest.chain[u].kind, steps) for u in units)
        unit_ms += [chunk_ms / stages / visits] * len(units)
    return known(manifest, unit_ms)


def frames_per_second(engines: Path, stages: int, steps: int, costs: Costs, frames: int) -> float:
    """Of one session, saturated, once the window is full."""
    names = [f"cpu:{i}" for i in range(stages)]
    with (
        stretched(manifests.read(engines), costs),
        rt.Pipeline.load(engines, names, steps=steps) as pipeline,
        pipeline.session(prompt="scaling", steps=steps, motion="off") as session,
    ):
        g, warm = pipeline.manifest.geometry, 1 + 4 * pipeline.manifest.window.frames
        picture = np.zeros((g.height, g.width, 3), np.uint8)
        start = 0.0
        for count, _ in enumerate(session.stream([picture] * (warm + frames)), 1):
            if count == warm:
                start = time.perf_counter()
        return frames / (time.perf_counter() - start)


def measure(engines: Path, options: argparse.Namespace) -> list[Row]:
    """FPS on 1 to N stages and the gain over one."""
    costs = even(manifests.read(engines), options.stages, options.steps, options.chunk_ms)
    rows: list[Row] = []
    for stages in range(1, options.stages + 1):
        runs = [
            frames_per_second(engines, stages, options.steps, costs, options.frames)
            for _ in range(options.runs)
        ]
        fps = statistics.median(runs)
        bound = 4e3 / placement.place([costs] * stages, options.steps).slowest_ms
        limit = GAIN if stages == options.stages else None
        rows.append(Row(f"{stages} stages", fps, "frames/s", len(runs), bound))
        gain = fps / rows[0].value
        rows.append(Row(f"gain of {stages} stages", gain, "x", len(runs), limit))
    return rows


def main() -> None:
    p = live_parser(__doc__, "scaling")
    p.add_argument("--stages", type=count, default=4)
    p.add_argument("--steps", type=count, default=2)
    p.add_argument(
        "--chunk-ms", type=above(0), default=1000.0, help="work of one chunk, all stages"
    )
    p.add_argument("--frames", type=count, default=160)
    p.add_argument("--runs", type=count, default=1)
    options = p.parse_args()
    with engines_of(options) as engines:
        rows = measure(engines, options)
    publish(f"one session, {options.steps} steps, stretched engines", rows, options.json)


if __name__ == "__main__":
    main()
