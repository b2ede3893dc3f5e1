"""Two live sessions while a third misbehaves: its source stalls, bursts or jumps in time, its
consumer blocks or vanishes, or passes of it raise or end their thread's work, at random events; or
while passes of another pipeline hang (one that hangs ends all sessions of its own pipeline). Do the
two keep their SLO, do counts add up, is everything gone afterwards: threads, places, memory?

    python -m bench.faults --events 50
"""

from __future__ import annotations

import contextlib
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import rt
from bench.cameras import Viewer, camera, steady
from bench.scaling import even
from bench.smallest import engines_of, live_parser
from bench.stretched import stretched
from bench.table import Row, above, count, publish
from rt import manifest as manifests

STAGES, STEPS, STAGE_MS = 2, 2, 40.0
FPS, BUDGET_MS = 15.0, 1000.0
"""Of each session: 15 % of what the stages do."""
MISSES = 0.001
HANG_S = 1.0
"""When a pass counts as hanging: passes take 10 to 40 ms."""
GROWTH = 0.02
"""Of resident memory, from a tenth of the failures of one kind to the last."""
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
    """Lets the n-th pass from now that runs for `victim` alone fail with `error`, or where that is
    None hang until `release`.
    """

    victim: int = -1
    left: int = 0
    error: type[BaseException] | None = None
    struck: int = 0
    release: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def aim(self, victim: int, left: int, error: type[BaseException] | None) -> None:
        """What is to fail next."""
        with self.lock:
            self.victim, self.left, self.error = victim, left, error
            self.release.clear()

    def watch(self, stage: Any) -> None:
        """Come between a stage and its passes."""
        inner = stage.run

        def run(task: Any, works: Any) -> Any:
            if self._strikes(task):
                if self.error is not None:
                    raise self.error("injected")
                self.release.wait(60)
            return inner(task, works)

        stage.run = run

    def _strikes(self, task: Any) -> bool:
        with self.lock:
            if not self.left or any(job.session != self.victim for job in task.jobs):
                return False
            self.left -= 1
            self.struck += not self.left
            return not self.left


@dataclass
class Kept:
    """What is still there of sessions that failed, and the memory after each of them."""

    sessions: list[weakref.ref[rt.Session]] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)

    def note(self, session: rt.Session) -> None:
        """Another one failed."""
        self.sessions.append(weakref.ref(session))
        self.resident.append(psutil.Process().memory_info().rss)

    def rows(self, pipeline: rt.Pipeline, name: str) -> list[Row]:
        """To be asked when all are closed."""
        gc.collect()
        alive = sum(session() is not None for session in self.sessions)
        growth = self.resident[-1] / self.resident[len(self.resident) // 10] - 1
        count = len(self.sessions)
        return [
            Row(f"{name}: chunks, leases and places left behind", leftovers(pipeline), "", 1),
            Row(f"{name}: sessions left in memory", alive, "", count),
            Row(f"{name}: growth of memory", growth * 100, "%", count, GROWTH * 100),
        ]


def leftovers(pipeline: rt.Pipeline) -> int:
    """Chunks on their way, leases and full places of hand-over; 0 where nobody is served."""
    workers = pipeline._workers
    inboxes = [box for stage in pipeline.stages for box in stage._lanes.inboxes.values()]
    kept = (workers._works, workers.leases, workers._leaving, workers.hung)
    return sum(map(len, kept)) + sum(len(box._full) for box in inboxes)


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


def ended(session: rt.Session, frames: Frames) -> rt.Report:
    """Run a session until it fails."""
    with contextlib.suppress(rt.StageFailed), session:
        for _ in session.stream(frames):
            pass
    report = session.report()
    out = report.frames_on_time + report.frames_late + report.frames_dropped
    assert report.frames_in == out, "counts add up"
    return report


def fails(
    pipeline: rt.Pipeline, saboteur: Saboteur, kept: Kept, events: int, seed: int
) -> rt.Report:
    """One session after another, each until a random pass of it fails."""
    rng = np.random.default_rng(seed)
    size = pipeline.manifest.geometry.height
    for _ in range(events):
        session = opened(pipeline)
        error = (RuntimeError, SystemExit)[int(rng.integers(2))]
        saboteur.aim(session.number, int(rng.integers(1, 25)), error)
        report = ended(session, camera(steady(FPS, 10.0), size))
        kept.note(session)
    return report


def hangs(
    pipeline: rt.Pipeline, saboteur: Saboteur, kept: Kept, events: int, seed: int
) -> rt.Report:
    """The same, until a random pass hangs; it returns when the watchdog has ended the session and
    nobody is let in. Then the pipeline is whole again.
    """
    rng = np.random.default_rng(seed)
    size = pipeline.manifest.geometry.height
    for _ in range(events):
        session = opened(pipeline)
        saboteur.aim(session.number, int(rng.integers(1, 25)), None)
        report = ended(session, camera(steady(FPS, 10.0), size))
        kept.note(session)
        try:
            opened(pipeline).close()
            raise AssertionError("a session was let in while a stage hangs")
        except rt.StageFailed:
            saboteur.release.set()
        with pipeline.changed:
            assert pipeline.changed.wait_for(lambda: not leftovers(pipeline), 30)
    return report


def measure(engines: Path, seconds: float, events: int, seed: int) -> list[Row]:
    """All that can go wrong, one after the other."""
    manifest, threads = manifests.read(engines), threading.active_count()
    names, rows = [f"cpu:{i}" for i in range(STAGES)], []
    failing, hanging, failed, hung = Saboteur(), Saboteur(), Kept(), Kept()
    with (
        stretched(manifest, even(manifest, STAGES, STEPS, STAGES * STAGE_MS)),
        rt.Pipeline.load(engines, names, seats=3, steps=STEPS) as pipeline,
        rt.Pipeline.load(engines, names, seats=1, steps=STEPS, hang_s=HANG_S) as other,
    ):
        for saboteur, sabotaged in ((failing, pipeline), (hanging, other)):
            for stage in sabotaged.stages:
                saboteur.watch(stage)
        for name, bad in BAD.items():
            row = beside(pipeline, seconds, partial(misbehaves, pipeline, seconds, bad))
            rows.append(named(row, name))
        row = beside(pipeline, seconds, lambda: fails(pipeline, failing, failed, events, seed))
        rows.append(named(row, f"{failing.struck} passes raise or exit"))
        row = beside(pipeline, seconds, lambda: hangs(other, hanging, hung, events, seed))
        rows.append(named(row, f"{hanging.struck} passes of another pipeline hang"))
        free = len(pipeline._workers.free_seats) + len(other._workers.free_seats)
        rows += failed.rows(pipeline, "raised or exited") + hung.rows(other, "hung")
    rows.append(Row("passes that raised or exited", failing.struck, "", 1, float(events)))
    rows.append(Row("passes that hung, each seen by the watchdog", hanging.struck, "", 1, events))
    rows.append(Row("seats free at the end", free, "", 1, 4.0))
    deadline = time.monotonic() + 15
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.05)
    rows.append(Row("threads left behind", threading.active_count() - threads, "", 1))
    return rows


def named(row: Row, name: str) -> Row:
    return Row(f"missed while: {name}", row.value, row.unit, row.runs, row.limit, row.note)


def main() -> None:
    p = live_parser(__doc__, "faults")
    p.add_argument("--seconds", type=above(0), default=8.0, help="of each kind of misbehaviour")
    p.add_argument("--events", type=count, default=50, help="passes that fail, and that hang")
    p.add_argument("--seed", type=int, default=0)
    options = p.parse_args()
    with engines_of(options) as engines:
        rows = measure(engines, options.seconds, options.events, options.seed)
    publish("faults: two sessions beside one that misbehaves", rows, options.json)


if __name__ == "__main__":
    main()
