"""Two live sessions while a third misbehaves: its source stalls, bursts or jumps in time, its
consumer blocks or vanishes, or passes of it raise or end their thread's work, at random events.
Do the two keep their SLO, do counts add up, is every thread gone afterwards?

    python -m bench.faults --events 50
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import rt
from bench.cameras import Viewer, camera, steady
from bench.scaling import even
from bench.soak import smallest_engine
from bench.stretched import stretched
from bench.table import Row, parser, publish
from rt import manifest as manifests

STAGES, STEPS, STAGE_MS = 2, 2, 40.0
FPS, BUDGET_MS = 15.0, 1000.0
"""Of each session: 15 % of what the stages do."""
MISSES = 0.001
Frames = Iterator[rt.Frame]


# The third session


def stalls(frames: Frames) -> Frames:
    """Nothing for 1.5 s, once in 2 s, and then all at once what was due meanwhile."""
    for frame in frames:
        if frame.index % round(2 * FPS) == 0:
            time.sleep(1.5)
        yield frame


def bursts(frames: Frames) -> Frames:
    """Frames by the forty."""
    held: list[rt.Frame] = []
    for frame in frames:
        held.append(frame)
        if len(held) == 40:
            yield from held
            held.clear()


def jumps(frames: Frames) -> Frames:
    """Time stamps that leap to and fro by up to a thousand seconds."""
    rng = np.random.default_rng(0)
    for frame in frames:
        leap = float(rng.choice([0.0, 0.0, 0.5, 3.0, -2.0, 1000.0, -1000.0]))
        stamp = frame.captured_ns - round(max(0.0, leap) * 1e9)
        yield rt.Frame(frame.rgb, frame.index, frame.pts_s + leap, stamp)


def blocks(session: rt.Session, frames: Frames) -> None:
    """A sink that takes a second for each frame."""
    for _ in session.stream(frames):
        time.sleep(1.0)


def vanishes(session: rt.Session, frames: Frames) -> None:
    """A consumer that takes five frames and is never seen again; the camera goes on."""
    for frame in frames:
        session.push(frame)
        if frame.index < 5:
            with contextlib.suppress(TimeoutError):
                session.pull(timeout_s=0.05)


def consumes(change: Callable[[Frames], Frames]) -> Callable[[rt.Session, Frames], None]:
    """A good consumer of a bad source."""

    def run(session: rt.Session, frames: Frames) -> None:
        for _ in session.stream(change(frames)):
            pass

    return run


BAD: dict[str, Callable[[rt.Session, Frames], None]] = {
    "source stalls": consumes(stalls),
    "source bursts": consumes(bursts),
    "source jumps in time": consumes(jumps),
    "sink blocks": blocks,
    "consumer vanishes": vanishes,
}


@dataclass
class Saboteur:
    """Lets the n-th pass from now that runs for `victim` alone fail with `error`."""

    victim: int = -1
    left: int = 0
    error: type[BaseException] = RuntimeError
    struck: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def watch(self, stage: Any) -> None:
        """Come between a stage and its passes."""
        inner = stage.run

        def run(task: Any, works: Any) -> Any:
            with self.lock:
                if self.left and all(job.session == self.victim for job in task.jobs):
                    self.left -= 1
                    if not self.left:
                        self.struck += 1
                        raise self.error("injected")
            return inner(task, works)

        stage.run = run


# The two others


def beside(pipeline: rt.Pipeline, seconds: float, bad: Callable[[], rt.Report]) -> Row:
    """Two good sessions for so long, and what they missed while `bad` went on."""
    size = pipeline.manifest.geometry.height
    done = threading.Event()

    def rate(at: float) -> float | None:
        return None if done.is_set() and at > seconds else FPS

    good = [Viewer(opened(pipeline), camera(rate, size)) for _ in range(2)]
    for viewer in good:
        viewer.start()
    try:
        reports = [bad()]
    finally:
        done.set()
    good_reports = [viewer.join() for viewer in good]
    for report in [*reports, *good_reports]:
        out = report.frames_on_time + report.frames_late + report.frames_dropped
        assert report.frames_in == out, "counts add up"
    taken = sum(r.frames_in for r in good_reports)
    missed = sum(r.frames_late + r.frames_dropped for r in good_reports)
    worst = max(r.latency_ms.maximum or 0.0 for r in good_reports)
    note = f"{missed} of {taken}; latency at most {worst:.0f} ms of {BUDGET_MS:.0f}"
    return Row("", missed / taken * 100, "%", taken, MISSES * 100, note)


def opened(pipeline: rt.Pipeline) -> rt.Session:
    slo = rt.SLO(fps=FPS, latency_ms=BUDGET_MS)
    return pipeline.session(prompt="faults", slo=slo, min_steps=STEPS, motion="off")


def misbehaves(
    pipeline: rt.Pipeline, seconds: float, bad: Callable[[rt.Session, Frames], None]
) -> rt.Report:
    """One bad session for so long."""
    session = opened(pipeline)
    frames = camera(steady(FPS, seconds), pipeline.manifest.geometry.height)
    threading.Timer(seconds + 1, session.close).start()  # Whoever blocks is not waited for.
    with contextlib.suppress(rt.Error):
        bad(session, frames)
    session.close()
    return session.report()


def fails(pipeline: rt.Pipeline, saboteur: Saboteur, events: int, seed: int) -> rt.Report:
    """One session after another, each until a random pass of it fails."""
    rng = np.random.default_rng(seed)
    size = pipeline.manifest.geometry.height
    for _ in range(events):
        session = opened(pipeline)
        saboteur.error = (RuntimeError, SystemExit)[int(rng.integers(2))]
        with saboteur.lock:
            saboteur.victim, saboteur.left = session.number, int(rng.integers(1, 25))
        viewer = Viewer(session, camera(steady(FPS, 10.0), size))
        with contextlib.suppress(rt.StageFailed), session:
            for _ in session.stream(viewer.frames):
                pass
        report = session.report()
        out = report.frames_on_time + report.frames_late + report.frames_dropped
        assert report.frames_in == out, "counts add up"
    return report


def measure(engines: Path, seconds: float, events: int, seed: int) -> list[Row]:
    """All that can go wrong, one after the other, on one pipeline."""
    manifest, threads = manifests.read(engines), threading.active_count()
    names, rows, saboteur = [f"cpu:{i}" for i in range(STAGES)], [], Saboteur()
    with (
        stretched(manifest, even(manifest, STAGES, STEPS, STAGES * STAGE_MS)),
        rt.Pipeline.load(engines, names, seats=3, steps=STEPS) as pipeline,
    ):
        for stage in pipeline.stages:
            saboteur.watch(stage)
        for name, bad in BAD.items():
            row = beside(pipeline, seconds, partial(misbehaves, pipeline, seconds, bad))
            rows.append(named(row, name))
        row = beside(pipeline, seconds, lambda: fails(pipeline, saboteur, events, seed))
        rows.append(named(row, f"{saboteur.struck} passes raise or exit"))
        free = len(pipeline._workers.free_seats)
    rows.append(Row("passes that failed", saboteur.struck, "", 1, float(events)))
    rows.append(Row("seats free at the end", free, "", 1, 3.0))
    deadline = time.monotonic() + 15
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.05)
    rows.append(Row("threads left behind", threading.active_count() - threads, "", 1))
    return rows


def named(row: Row, name: str) -> Row:
    return Row(f"missed while: {name}", row.value, row.unit, row.runs, row.limit, row.note)


def main() -> None:
    p = parser(__doc__, "faults")
    p.add_argument("--seconds", type=float, default=8.0, help="of each kind of misbehaviour")
    p.add_argument("--events", type=int, default=50, help="passes that fail")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--engines", type=Path, help="engine directory (default: the smallest)")
    options = p.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        engines = options.engines or smallest_engine(Path(directory))
        rows = measure(engines, options.seconds, options.events, options.seed)
    publish("faults: two sessions beside one that misbehaves", rows, options.json)


if __name__ == "__main__":
    main()
