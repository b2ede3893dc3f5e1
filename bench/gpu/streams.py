"""Streams on a GPU through the runtime: FPS, time to the first frame, latency, jitter, memory, host
synchronisations; several stages and several sessions on one GPU as logical devices.

Engines have seeded random weights and no text encoder: prompts are embeddings.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.gpu.record import Reading, refused
from bench.gpu.units import Case
from export.prompts import Encoded, write
from rt import SLO, Frame, Pipeline, devices
from rt.errors import ConfigError

FPS_IN = (16.0, 30.0)
LATENCY_MS = 500.0
Pictures = list[NDArray[np.uint8]]


def names(case: Case, steps: int) -> list[str]:
    """The readings of a case, also where none can be taken."""
    found = [f"{case.name}: FPS, {steps} steps"]
    if steps == 2:
        for fps in FPS_IN:
            told = ("TTFF", "latency p50", "latency p99", "presentation jitter p99", "misses")
            found += [f"{case.name}: {name}, {steps} steps, {fps:g} fps" for name in told]
        found.append(f"{case.name}: host synchronisations per chunk")
    return found


def readings(case: Case, steps: int, root: Path, precision: str) -> Sequence[Reading]:
    """One case at one number of steps; refused as a whole where the runtime takes no GPU."""
    try:
        devices.resolve("cuda:0")
    except ConfigError as error:
        return [refused(name, error) for name in names(case, steps)]
    engines = build(case, root, precision)
    with tempfile.TemporaryDirectory() as folder:
        prompt = embeddings(case, Path(folder))
        with Pipeline.load(engines, devices="cuda:0", steps=steps) as pipeline:
            found = [saturated(case, pipeline, prompt, steps)]
            if steps == 2:
                for fps in FPS_IN:
                    found += live(case, pipeline, prompt, steps, fps)
                found.append(synchronisations(case, pipeline, prompt))
    return found


def build(case: Case, root: Path, precision: str) -> Path:
    """The engine of a case: finished, gone on with, or made."""
    from export.build import Options, build_engines
    from export.random_weights import write_random

    config = case.config()
    weights = root / "checkpoints" / f"{config.name}-random-0"
    if not weights.is_dir():
        partial = weights.with_suffix(".partial")
        write_random(config, partial, 0, text=False)
        partial.rename(weights)
    name = case.name.replace(" ", "-")
    options = Options(
        config, case.height, case.width, root / "engines", name,
        backend="inductor", precision=precision, checkpoint=weights,
    )  # fmt: skip
    return build_engines(options).directory


def built(case: Case, root: Path, precision: str) -> Sequence[Reading]:
    """What building took; a later stream finds the engine. Refused where nothing is to be built."""
    name = f"{case.name}: engine built"
    start = time.perf_counter()
    try:
        directory = build(case, root, precision)
    except ConfigError as error:
        return [refused(name, error)]
    took = time.perf_counter() - start
    stored = sum(path.stat().st_size for path in directory.iterdir())
    return [
        Reading(name, took, "s"),
        Reading(f"{case.name}: bytes of the engine", stored / 1e9, "GB"),
    ]


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
    start = 0
    with pipeline.session(prompt=prompt, steps=steps) as session:
        for count, _ in enumerate(session.stream(frames), 1):
            if count == before:
                start = time.perf_counter_ns()
    took = (time.perf_counter_ns() - start) * 1e-9
    return Reading(f"{case.name}: FPS, {steps} steps", 240 / took, "frames/s", 240)


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
    end, count = f"{steps} steps, {fps:g} fps", len(late)
    if report.ttff_s is not None:
        yield Reading(f"{case.name}: TTFF, {end}", report.ttff_s, "s")
    spread = tuple(float(v) for v in np.quantile(late, np.linspace(0, 1, 101)).round(3))
    latency, jitter = report.latency_ms, report.presentation_jitter_ms
    for name, value in (("p50", latency.p50), ("p99", latency.p99)):
        if value is not None:
            title = f"{case.name}: latency {name}, {end}"
            yield Reading(title, value, "ms", count, distribution=spread)
    if jitter.p99 is not None:
        yield Reading(f"{case.name}: presentation jitter p99, {end}", jitter.p99, "ms", count)
    share = (report.frames_late + report.frames_dropped) / max(1, report.frames_in)
    yield Reading(f"{case.name}: misses, {end}", 100 * share, "%", count)


def synchronisations(case: Case, pipeline: Pipeline, prompt: Path) -> Reading:
    """Calls that make the host wait for the GPU, per chunk, by torch's profiler."""
    import torch

    before, chunks = warm(pipeline), 20
    frames = pictures(case, before + 4 * chunks)
    profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
    with pipeline.session(prompt=prompt, steps=2) as session:
        for count, _ in enumerate(session.stream(frames), 1):
            if count == before:
                profiler.start()
    profiler.stop()
    waits = sum(e.count for e in profiler.key_averages() if "Synchronize" in e.key)
    name = f"{case.name}: host synchronisations per chunk"
    return Reading(name, waits / chunks, "calls", chunks)


def logical(case: Case, root: Path, precision: str) -> Sequence[Reading]:
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
        return [refused(name, error) for name in told.values()]
    engines = build(case, root, precision)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        prompt = embeddings(case, Path(folder))
        for (where, sessions), name in told.items():
            with Pipeline.load(engines, devices=where, seats=sessions, steps=2) as pipeline:
                fps = together(case, pipeline, prompt, sessions)
            found.append(Reading(name, fps, "frames/s", 240 * sessions))
    return found


def together(case: Case, pipeline: Pipeline, prompt: Path, sessions: int) -> float:
    """Frames per second of all sessions, from the slowest start to the first end."""
    before = warm(pipeline)
    spans: list[tuple[int, int]] = []

    def one() -> None:
        start = 0
        with pipeline.session(prompt=prompt, steps=2) as session:
            for count, _ in enumerate(session.stream(pictures(case, before + 240)), 1):
                if count == before:
                    start = time.perf_counter_ns()
        spans.append((start, time.perf_counter_ns()))

    threads = [threading.Thread(target=one) for _ in range(sessions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(240 / ((stop - start) * 1e-9) for start, stop in spans)
