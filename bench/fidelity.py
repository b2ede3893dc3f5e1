"""The simulator against the real runtime: three live sessions on four devices whose engines take
known times. The machine is calibrated, simulated from what that measured, and then run.

    python -m bench.fidelity

It wants a calm machine: what else runs here delays the real runtime and not the simulated one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np

import rt
from bench.smallest import engines_of, live_parser
from bench.stretched import known, stretched
from bench.table import Row, above, publish
from rt import calibrate, costfile
from rt import manifest as manifests
from rt.cost import Costs
from rt.devices import Device
from rt.manifest import Manifest
from rt.pace import Pace
from rt.placement import place
from rt.scheduler import Terms
from rt.simulate import Machine, Run, Stream, quantile, simulate

STEPS, SLO_MS, DEVICES, ROUNDS = 2, 1500.0, 4, 10
FPS = (7.0, 9.0, 12.0)
P50, P99, MISSES = 0.05, 0.15, 0.01
"""How far the prediction may be off: shares of the latencies, and of the frames."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Latencies in ms of the frames that came out, of `offered` that went in."""

    ms: Sequence[float]
    offered: int

    @property
    def misses(self) -> float:
        """Share of the frames that came late or never."""
        return 1 - sum(ms <= SLO_MS for ms in self.ms) / self.offered


def uneven(manifest: Manifest, chunk_ms: float) -> Costs:
    """Times in proportion to the work of each unit, `chunk_ms` for a chunk in all."""
    costs = costfile.modelled(manifest, Device("cpu", 0, 1))
    alone = place([costs], STEPS).slowest_ms
    return known(manifest, [u.timings[0].p50_ms * chunk_ms / alone for u in costs.units])


def offered(seconds: float) -> list[Stream]:
    """Sessions of different rates, that begin a little apart."""
    return [
        Stream(
            fps,
            round(fps * seconds),
            Terms(STEPS, STEPS, fps=fps, latency_ns=round(SLO_MS * 1e6)),
            begin_s=0.1 * n,
        )
        for n, fps in enumerate(FPS)
    ]


def simulated(costs: Costs, seconds: float) -> Seen:
    """What the simulator says, from measured costs."""
    placement = place([costs] * DEVICES, STEPS, len(FPS))
    run: Run = simulate(Machine.of([costs] * DEVICES, placement, STEPS), offered(seconds), seed=1)
    ms = [(c.done_ns - t) * 1e-6 for c in run.done() if c.done_ns for t in c.captured_ns]
    return Seen(ms, sum(s.frames for s in offered(seconds)))


def camera(stream: Stream, start_ns: int, picture: np.ndarray) -> Iterator[rt.Frame]:
    """Frames at their times."""
    for i in range(stream.frames):
        due = start_ns + round((stream.begin_s + i / stream.fps) * 1e9)
        time.sleep(max(0.0, (due - time.perf_counter_ns()) * 1e-9))
        yield rt.Frame(picture, i, i / stream.fps, due)


def real(engines: Path, costs: Costs, seconds: float) -> Seen:
    """The runtime, told the same costs, with a thread that pushes and one that pulls for each
    session. Frames are not paced: their latency ends where they can be pulled.
    """
    streams = offered(seconds)
    taken: list[list[float]] = [[] for _ in streams]
    names = [f"cpu:{i}" for i in range(DEVICES)]
    with (
        patch.object(costfile, "of", lambda *_: costs),
        rt.Pipeline.load(engines, names, seats=len(streams), steps=STEPS) as pipeline,
    ):
        g = pipeline.manifest.geometry
        picture = np.zeros((g.height, g.width, 3), np.uint8)

        def push(session: rt.Session, stream: Stream, start_ns: int) -> None:
            for frame in camera(stream, start_ns, picture):
                session.push(frame)
            session.finish()

        def pull(session: rt.Session, into: list[float]) -> None:
            while (frame := session.pull()) is not None:
                into.append((time.perf_counter_ns() - frame.captured_ns) * 1e-6)

        sessions = [
            pipeline.session(
                prompt="fidelity",
                steps=STEPS,
                min_steps=STEPS,
                slo=rt.SLO(fps=s.fps, latency_ms=SLO_MS),
            )
            for s in streams
        ]
        for session in sessions:
            session.pace = Pace(None)
        start_ns = time.perf_counter_ns() + 200_000_000
        threads = [
            threading.Thread(target=push, args=(session, stream, start_ns))
            for session, stream in zip(sessions, streams, strict=True)
        ]
        threads += [
            threading.Thread(target=pull, args=pair) for pair in zip(sessions, taken, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for session in sessions:
            session.close()
    return Seen([ms for one in taken for ms in one], sum(s.frames for s in streams))


def compared(real_: Seen, predicted: Seen) -> list[Row]:
    """Each number beside its prediction; the share of the limit is the error's."""
    rows = []
    for name, share, most in (("p50", 0.5, P50), ("p99", 0.99, P99)):
        seen, said = quantile(real_.ms, share), quantile(predicted.ms, share)
        note = f"simulated {said:.1f} ms, runtime {seen:.1f} ms"
        rows.append(Row(f"error of {name}", abs(said / seen - 1), "share", 1, most, note))
    note = f"simulated {predicted.misses:.2%}, runtime {real_.misses:.2%}"
    error = abs(predicted.misses - real_.misses)
    rows.append(Row("error of misses", error, "share", 1, MISSES, note))
    return rows


def main() -> None:
    p = live_parser(__doc__, "fidelity")
    p.add_argument("--seconds", type=above(0), default=60.0)
    p.add_argument("--chunk-ms", type=above(0), default=400.0, help="work of one chunk, all stages")
    options = p.parse_args()
    with engines_of(options) as engines:
        manifest = manifests.read(engines)
        costs = uneven(manifest, options.chunk_ms)
        with stretched(manifest, costs):
            measured = calibrate.measure(manifest, engines, Device("cpu", 0, 1), ROUNDS)
            seen = real(engines, measured, options.seconds)
        rows = compared(seen, simulated(measured, options.seconds))
    title = f"simulator against runtime: {DEVICES} devices, {len(FPS)} sessions"
    publish(title, rows, options.json)


if __name__ == "__main__":
    main()
