"""Streams on a GPU through the runtime: FPS, time to the first frame, latency, jitter, memory, host
synchronisations; several stages and several sessions on one GPU as logical devices.

Engines have seeded random weights and no text encoder: prompts are embeddings.
"""

from __future__ import annotations

import functools
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from pathlib import Path
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from bench.gpu.cases import Case, checkpoint
from bench.gpu.packages import Packages
from bench.gpu.record import Reading, failed, refused
from export import build as builds
from export import inductor
from export.options import Options
from export.prompts import Encoded, write
from rt import SLO, AdmissionRefused, Frame, Pipeline, Report, devices
from rt.errors import ConfigError, Error

FPS_IN = (16.0, 30.0)
LATENCY_MS = 500.0
LIVE = (
    "TTFF", "latency p50", "latency p99", "jitter p99", "presentation jitter p99",
    "service time p99 / p50", "misses",
)  # fmt: skip
FILLING = 10
"""Chunks whose service time does not count: the window fills, and costs are learnt."""
Pictures = list[NDArray[np.uint8]]


def names(case: Case, steps: int) -> list[str]:
    """The readings of a case, also where none can be taken."""
    found = [f"{case.name}: FPS, {steps} steps", f"{case.name}: memory in use, {steps} steps"]
    if steps == 2:
        found += [_live(case, name, steps, fps) for fps in FPS_IN for name in LIVE]
        found.append(f"{case.name}: host synchronisations per chunk")
    return found


def _live(case: Case, name: str, steps: int, fps: float) -> str:
    return f"{case.name}: {name}, {steps} steps, {fps:g} fps"


def readings(case: Case, steps: int, root: Path) -> Iterator[Reading]:
    """One case at one number of steps; refused as a whole where the runtime takes no GPU, or the
    GPU lacks the precision.
    """
    try:
        devices.resolve("cuda:0")
        inductor.check_precision(case.precision)
    except ConfigError as error:
        yield from (refused(name, error) for name in names(case, steps))
        return
    engines = build(case, root)
    with tempfile.TemporaryDirectory() as folder:
        prompt = embeddings(case, Path(folder))
        with Pipeline.load(engines, devices="cuda:0", steps=steps) as pipeline:
            yield saturated(case, pipeline, prompt, steps)
            yield Reading(f"{case.name}: memory in use, {steps} steps", _in_use_gb(), "GB")
            if steps == 2:
                for fps in FPS_IN:
                    yield from kept(
                        _live(case, "live", steps, fps),
                        functools.partial(live, case, pipeline, prompt, steps, fps),
                    )
                yield synchronisations(case, pipeline, prompt)


def kept(name: str, take: Callable[[], Iterable[Reading]]) -> Iterator[Reading]:
    """What `take` gives; where the runtime refuses or breaks, that as a reading, so that what comes
    after is still taken.
    """
    try:
        yield from take()
    except AdmissionRefused as error:
        yield refused(name, error)
    except (Error, RuntimeError) as error:  # of torch and CuPy: no memory
        yield failed(name, error)


@functools.cache
def build(case: Case, root: Path) -> Path:
    """The engine of a case: finished, gone on with, or made of the packages that are there."""
    options = Options(
        case.config(), case.height, case.width, root / "engines", case.name.replace(" ", "-"),
        backend="inductor", precision=case.precision, checkpoint=checkpoint(case, root),
    )  # fmt: skip
    with (
        Packages(case, root).for_builds(),
        # Plans of this size take a minute to be run once on what the host draws for them. That they
        # give pictures is seen in the stream.
        patch.object(builds, "smoke", lambda *_: None),
    ):
        return builds.build_engines(options).directory


def built(case: Case, root: Path) -> Iterator[Reading]:
    """What building took; a later stream finds the engine. Refused where nothing is to be built."""
    name = f"{case.name}: engine built"
    start = time.perf_counter()
    try:
        directory = build(case, root)
    except ConfigError as error:
        yield refused(name, error)
        return
    yield Reading(name, time.perf_counter() - start, "s", reason="of compiled packages")
    stored = sum(path.stat().st_size for path in directory.iterdir())
    yield Reading(f"{case.name}: bytes of the engine", stored / 1e9, "GB")


def build_all(cases: Sequence[Case], root: Path) -> Iterator[Reading]:
    """Engines beside each other: a build keeps one core busy with hashes and casts."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(cases), mp_context=context) as pool:
        jobs = {pool.submit(_built, case, root): case for case in cases}
        for job in as_completed(jobs):
            error = job.exception()
            if error is None:
                yield from job.result()
            else:
                yield failed(f"{jobs[job].name}: engine built", error)


def _built(case: Case, root: Path) -> list[Reading]:
    return list(built(case, root))


def embeddings(case: Case, folder: Path) -> Path:
    """A file with a prompt of 32 random tokens."""
    path = folder / "prompt.safetensors"
    width = case.config().dit.text_width
    rows = np.random.default_rng(0).standard_normal((32, width)).astype(np.float32)
    write(Encoded("random", rows, "bench", ""), path)
    return path


def pictures(case: Case, count: int) -> Pictures:
    """Random pictures: nothing here depends on what they show."""
    rng = np.random.default_rng(1)
    shape = (case.height, case.width, 3)
    some = [rng.integers(0, 255, shape, dtype=np.uint8) for _ in range(8)]
    return [some[i % len(some)] for i in range(count)]


def warm(pipeline: Pipeline) -> int:
    """Frames until the window is full, and four chunks more."""
    return 1 + 4 * (pipeline.manifest.window.frames + 4)


def saturated(case: Case, pipeline: Pipeline, prompt: Path, steps: int) -> Reading:
    """FPS end to end when frames are always there, window full."""
    before = warm(pipeline)
    frames = pictures(case, before + 240)
    start, levels = 0, 0
    with pipeline.session(prompt=prompt, steps=steps) as session:
        for count, frame in enumerate(session.stream(frames), 1):
            if count == before:
                start, levels = time.perf_counter_ns(), int(np.ptp(frame.rgb))
        took = (time.perf_counter_ns() - start) * 1e-9
    if not levels:
        raise RuntimeError(f"{case.name}: frame {before} is of one grey: these are no pictures")
    name = f"{case.name}: FPS, {steps} steps"
    return Reading(name, 240 / took, "frames/s", 240, reason=f"after {before} frames of warm-up")


def live(case: Case, pipeline: Pipeline, prompt: Path, steps: int, fps: float) -> Iterator[Reading]:
    """Frames at the pace of a camera for 20 s."""
    frames = pictures(case, int(20 * fps))

    def camera() -> Iterator[Frame]:
        start = time.perf_counter_ns()
        for index, picture in enumerate(frames):
            due = start + round(index / fps * 1e9)
            time.sleep(max(0.0, (due - time.perf_counter_ns()) * 1e-9))
            yield Frame(picture, index, index / fps, due)

    slo = SLO(fps=fps, latency_ms=LATENCY_MS)
    late: list[float] = []
    with pipeline.session(prompt=prompt, steps=steps, slo=slo) as session:
        for frame in session.stream(camera()):
            late.append((time.perf_counter_ns() - frame.captured_ns) * 1e-6)
        report = session.report()
    spread: tuple[float, ...] = ()
    if late:
        spread = tuple(float(v) for v in np.quantile(late, np.linspace(0, 1, 101)).round(3))
    for name, (value, unit) in told(report).items():
        title = _live(case, name, steps, fps)
        if value is None:
            yield failed(title, f"{report.frames_emitted} of {report.frames_in} frames came out")
        else:
            curve = spread if name.startswith("latency") else ()
            yield Reading(title, value, unit, len(late), distribution=curve)


def told(report: Report) -> dict[str, tuple[float | None, str]]:
    """The readings of `LIVE` and their units."""
    ratio = None
    times = [chunk.service_ms for chunk in report.chunks[FILLING:]]
    if times and (middle := float(np.quantile(times, 0.5))) > 0:
        ratio = float(np.quantile(times, 0.99)) / middle
    share = (report.frames_late + report.frames_dropped) / max(1, report.frames_in)
    values = (
        (report.ttff_s, "s"),
        (report.latency_ms.p50, "ms"),
        (report.latency_ms.p99, "ms"),
        (report.jitter_ms.p99, "ms"),
        (report.presentation_jitter_ms.p99, "ms"),
        (ratio, "x"),
        (100 * share, "%"),
    )
    return dict(zip(LIVE, values, strict=True))


def synchronisations(case: Case, pipeline: Pipeline, prompt: Path) -> Reading:
    """Calls that make the host wait for the GPU, per chunk, by torch's profiler."""
    import torch

    before, chunks = warm(pipeline), 20
    frames = pictures(case, before + 4 * chunks + 16)
    profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
    with pipeline.session(prompt=prompt, steps=2) as session:
        for count, _ in enumerate(session.stream(frames), 1):
            if count == before:
                profiler.start()
            if count == before + 4 * chunks:
                profiler.stop()
    name = f"{case.name}: host synchronisations per chunk"
    return waits(name, {e.key: e.count for e in profiler.key_averages()}, chunks)


def waits(name: str, calls: Mapping[str, int], chunks: int) -> Reading:
    """Of the calls by name. A profiler that saw no launch saw no wait either: that is no answer."""
    if not any("Launch" in call for call in calls):
        return failed(name, f"the profiler saw no launch, only {sorted(calls)[:5]}")
    waited = {call: n for call, n in calls.items() if "Synchronize" in call or call == "cudaMemcpy"}
    reason = ", ".join(f"{call} {n}" for call, n in sorted(waited.items()))
    return Reading(name, sum(waited.values()) / chunks, "calls", chunks, reason=reason)


def _in_use_gb() -> float:
    """Of the whole GPU, whoever allocated it."""
    import torch

    free, total = torch.cuda.mem_get_info()
    return (total - free) / 1e9


def logical(case: Case, root: Path) -> Iterator[Reading]:
    """Stages and sessions that share the GPU: what hand-over and competition cost."""
    layouts = [("cuda:0", 1), ("cuda:0,cuda:0", 1), ("cuda:0,cuda:0,cuda:0,cuda:0", 1)]
    layouts += [("cuda:0", 2), ("cuda:0", 4)]
    told = {
        (where, sessions): f"{case.name}: FPS of {sessions} sessions on {where.count(',') + 1} "
        "logical devices"
        for where, sessions in layouts
    }
    try:
        devices.resolve("cuda:0,cuda:0")
    except ConfigError as error:
        yield from (refused(name, error) for name in told.values())
        return
    engines = build(case, root)
    with tempfile.TemporaryDirectory() as folder:
        prompt = embeddings(case, Path(folder))

        def one(where: str, sessions: int, name: str) -> Iterator[Reading]:
            with Pipeline.load(engines, devices=where, seats=sessions, steps=2) as pipeline:
                fps = together(case, pipeline, prompt, sessions)
            yield Reading(name, fps, "frames/s", 240 * sessions)

        for (where, sessions), name in told.items():
            yield from kept(name, functools.partial(one, where, sessions, name))


def together(case: Case, pipeline: Pipeline, prompt: Path, sessions: int) -> float:
    """Frames per second of all sessions, from the last window that filled to the first end."""
    before = warm(pipeline)

    def one() -> list[int]:
        with pipeline.session(prompt=prompt, steps=2) as session:
            frames = session.stream(pictures(case, before + 240))
            return [time.perf_counter_ns() for _ in frames]

    with ThreadPoolExecutor(sessions) as pool:
        ended = [job.result() for job in [pool.submit(one) for _ in range(sessions)]]
    return rate([times[before - 1 :] for times in ended])


def rate(ended: Sequence[Sequence[int]]) -> float:
    """Frames per second while all sessions ran, of the ns at which each frame of each ended."""
    start, stop = max(times[0] for times in ended), min(times[-1] for times in ended)
    if start >= stop:
        raise RuntimeError("the sessions did not run beside each other")
    return sum(start < t <= stop for times in ended for t in times) / ((stop - start) * 1e-9)
