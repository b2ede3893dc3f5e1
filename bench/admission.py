"""Four live sessions of different rates and budgets fill the pipeline: do they keep their SLO, is a
fifth refused with the numbers, and admitted once one has left? On stretched engines, and on real
ones beside a control: a slow session alone, which says what the machine itself misses.

    python -m bench.admission
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import rt
from bench.cameras import control, misses, watched
from bench.scaling import even
from bench.smallest import engines_of, live_parser
from bench.stretched import stretched
from bench.table import Row, above, publish
from rt import manifest as manifests
from rt.scheduler.admission import MOST

STEPS, STAGES = 2, 2
SHARES = ((0.17, 1500.0), (0.21, 1200.0), (0.13, 1800.0), (0.17, 1400.0))
"""(Share of the capacity, budget in ms) of each session: 68 % in all, of 85 that may be given. The
second is the one that leaves.
"""
CONTROL_FPS, FIFTH_MS = 5.0, 1800.0
STRETCHED, REAL = 0.001, 0.01
"""Share of the frames that may be missed."""


def offers(capacity: float) -> list[rt.SLO]:
    """What the four ask for, of a pipeline that does `capacity` frames/s."""
    return [rt.SLO(fps=share * capacity, latency_ms=ms) for share, ms in SHARES]


def four_and_a_fifth(
    pipeline: rt.Pipeline, slos: Sequence[rt.SLO], seconds: float, name: str, most: float
) -> list[Row]:
    """The four; a fifth that wants what is left and half of what the second has; and again when the
    second has gone.
    """
    viewers = watched(pipeline, slos, seconds, STEPS)
    taken_fps = sum(slo.fps or 0.0 for slo in slos)
    free_fps = MOST * taken_fps / works(pipeline, 0.6 * seconds) - taken_fps
    fifth = rt.SLO(max(0.0, free_fps) + (slos[1].fps or 0.0) / 2, FIFTH_MS)
    refused, _ = asked(pipeline, fifth)
    reports = [viewers[1].join()]
    again, now = asked(pipeline, fifth)
    reports += [v.join() for v in viewers if v is not viewers[1]]
    share, taken = misses(reports)
    return [
        Row(f"{name}: frames missed by the four", share * 100, "%", taken, most * 100),
        Row(f"{name}: a fifth is refused", float(bool(refused)), "", 1, 1.0, refused),
        Row(f"{name}: sessions once one has left and the fifth came", now, "", 1, 4.0, again),
    ]


def asked(pipeline: rt.Pipeline, slo: rt.SLO) -> tuple[str, int]:
    """Why a session is refused, or "", and how many there are with it."""
    try:
        with pipeline.session(prompt="fifth", slo=slo):
            return "", pipeline.status().sessions
    except rt.AdmissionRefused as error:
        return str(error), pipeline.status().sessions


def works(pipeline: rt.Pipeline, seconds: float) -> float:
    """Share of the time for which the busiest stage works."""
    before = [stage.busy_seconds for stage in pipeline.status().placement]
    time.sleep(seconds)
    after = [stage.busy_seconds for stage in pipeline.status().placement]
    return max(b - a for a, b in zip(before, after, strict=True)) / seconds


def stretched_rows(engines: Path, seconds: float, stage_ms: float) -> list[Row]:
    """On engines of known time."""
    manifest = manifests.read(engines)
    names = [f"cpu:{i}" for i in range(STAGES)]
    with (
        stretched(manifest, even(manifest, STAGES, STEPS, STAGES * stage_ms)),
        rt.Pipeline.load(engines, names, seats=5, steps=STEPS) as pipeline,
    ):
        slos = offers(4e3 / stage_ms)
        return four_and_a_fifth(pipeline, slos, seconds, "stretched", STRETCHED)


def real_rows(engines: Path, seconds: float) -> list[Row]:
    """On engines as they are. Their capacity is what the pipeline makes of the control's load."""
    with rt.Pipeline.load(engines, "cpu:0", seats=5, steps=STEPS) as pipeline:
        slo = rt.SLO(fps=CONTROL_FPS, latency_ms=SHARES[1][1])
        capacity, report = control(pipeline, slo, seconds, STEPS)
        share, taken = misses([report])
        rows = [
            Row("real: capacity", capacity, "frames/s", 1),
            Row("real: frames missed by one alone", share * 100, "%", taken, REAL * 100),
        ]
        slos = offers(0.7 * capacity)  # Together they cost more than the control says.
        return rows + four_and_a_fifth(pipeline, slos, seconds, "real", REAL)


def main() -> None:
    p = live_parser(__doc__, "admission")
    p.add_argument("--seconds", type=above(0), default=30.0)
    p.add_argument("--stage-ms", type=above(0), default=100.0, help="work of a chunk on each stage")
    options = p.parse_args()
    with engines_of(options) as engines:
        rows = stretched_rows(engines, options.seconds, options.stage_ms)
        rows += real_rows(engines, options.seconds)
    publish("admission: four sessions and a fifth", rows, options.json)


if __name__ == "__main__":
    main()
