"""`python -m rt.stream`: a video in, a restyled video out, and an honest report. One session of one
pipeline.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from . import devices, media
from .config import SLO, VERSION, SessionConfig
from .errors import ConfigError, Error, SinkError, SourceError
from .frame import Frame
from .metrics import Report
from .pipeline import Pipeline, Status
from .session import Session

DEFAULT_SLO_MS = 1000.0
"""Latency budget of `--realtime` where none is given: the paper's own (section 5.2.4)."""


def parser() -> argparse.ArgumentParser:
    """The options, with their defaults in `--help`."""
    p = argparse.ArgumentParser(
        prog="python -m rt.stream",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    source = p.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", type=Path, metavar="FILE", help="the video to restyle")
    source.add_argument(
        "--scene", action="store_true", help="make a moving scene instead of reading a file"
    )
    p.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="the video to write (.mp4)"
    )
    p.add_argument("--prompt", required=True, help="what the video should look like")
    p.add_argument(
        "--engines", type=Path, default=Path("engines/tiny"), metavar="DIR", help="engine directory"
    )
    where = p.add_mutually_exclusive_group()
    where.add_argument(
        "--devices",
        default="auto",
        help="device names, comma separated, one stage each: cpu:0,cpu:1",
    )
    where.add_argument("--gpus", type=int, metavar="N", help="run on the first N GPUs")
    p.add_argument(
        "--steps", type=int, metavar="N", help="denoising steps (default: the model's own)"
    )
    p.add_argument("--seed", type=int, default=0, help="seed of the noise")
    p.add_argument(
        "--motion",
        choices=["flow", "difference", "off"],
        default="flow",
        help="what sets the noise",
    )
    p.add_argument(
        "--start",
        choices=["fast", "full"],
        default="fast",
        help="begin after one frame, or after five",
    )
    p.add_argument(
        "--positions", choices=["window", "absolute"], default="window", help="rotary positions"
    )
    p.add_argument(
        "--sinks", choices=["adaptive", "fixed"], default="adaptive", help="pinned frames"
    )
    p.add_argument(
        "--fit",
        choices=["crop", "stretch"],
        default="crop",
        help="how the picture meets the engine's size",
    )
    p.add_argument(
        "--realtime", action="store_true", help="pace the file by its pts and apply the SLO"
    )
    p.add_argument(
        "--slo-ms",
        type=float,
        metavar="MS",
        help="latency budget per frame; later frames count as missed",
    )
    p.add_argument("--side-by-side", action="store_true", help="write the input beside the output")
    p.add_argument("--report", type=Path, metavar="FILE", help="write everything measured as JSON")
    p.add_argument("--version", action="version", version=f"streamdiffusion-rt {VERSION}")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    options = parser().parse_args(arguments)
    try:
        return run(options)
    except Error as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def run(options: argparse.Namespace) -> int:
    """One stream from `options`, start to report."""
    config = _session_config(options)
    names = devices.gpus(options.gpus) if options.gpus is not None else options.devices
    if options.report is not None and not options.report.parent.is_dir():
        raise ConfigError(
            f"report: there is no directory {options.report.parent} for {options.report.name}"
        )
    with contextlib.ExitStack() as stack:
        source = (
            media.moving_scene()
            if options.scene
            else stack.enter_context(media.open_source(options.input))
        )
        pipeline = stack.enter_context(Pipeline.load(options.engines, names, steps=options.steps))
        session = stack.enter_context(pipeline.session(**_fields(config)))
        interrupted = _stream(options, source, pipeline, session)
        report, status = session.report(), pipeline.status()
    show(report, status, session, options)
    if options.report is not None:
        text = json.dumps(as_json(report, status, session, options), indent=1)
        options.report.write_text(text + "\n")
    return 130 if interrupted else 0


def _stream(
    options: argparse.Namespace, source: media.VideoSource, pipeline: Pipeline, session: Session
) -> bool:
    """Source -> session -> sink. Returns whether Ctrl-C ended it; the file plays either way."""
    geometry = pipeline.manifest.geometry
    height, width = geometry.height, geometry.width * (2 if options.side_by_side else 1)
    sink = media.open_sink(options.output, source, height, width)
    inputs: dict[int, NDArray[np.uint8]] = {}
    frames: Iterator[Frame] = iter(source)
    if options.realtime:
        frames = paced(frames)
    if options.side_by_side:
        frames = _remember(frames, inputs)
    try:
        with _progress(source.frame_count) as advance:
            for frame in session.stream(frames):
                picture = frame.rgb
                if options.side_by_side:
                    picture = media.side_by_side(inputs.pop(frame.index), picture)
                sink.write(dataclasses.replace(frame, rgb=picture))
                advance()
    except KeyboardInterrupt:
        sink.close()
        return True
    except SourceError:
        # What was readable is delivered, then the error is told.
        if session.report().frames_emitted:
            sink.close()
        else:
            sink.abort()
        raise
    except BaseException:
        sink.abort()
        raise
    sink.close()
    return False


def paced(frames: Iterator[Frame]) -> Iterator[Frame]:
    """Frames of a file as a camera would give them: each at its pts, stamped when it is due."""
    start_ns: int | None = None
    for frame in frames:
        now = time.perf_counter_ns()
        if start_ns is None:
            start_ns = now - round(frame.pts_s * 1e9)
        due = start_ns + round(frame.pts_s * 1e9)
        if due > now:
            time.sleep((due - now) * 1e-9)
        yield dataclasses.replace(frame, captured_ns=max(due, now) if due > now else now)


def _remember(frames: Iterator[Frame], inputs: dict[int, NDArray[np.uint8]]) -> Iterator[Frame]:
    for frame in frames:
        inputs[frame.index] = frame.rgb
        yield frame


def _session_config(options: argparse.Namespace) -> SessionConfig:
    slo_ms = (
        options.slo_ms if options.slo_ms is not None or not options.realtime else DEFAULT_SLO_MS
    )
    return SessionConfig(
        prompt=options.prompt,
        slo=None if slo_ms is None else SLO(fps=None, latency_ms=slo_ms),
        seed=options.seed,
        steps=options.steps,
        motion=options.motion,
        start=options.start,
        positions=options.positions,
        sinks=options.sinks,
        fit=options.fit,
    )


def _fields(config: SessionConfig) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


@contextlib.contextmanager
def _progress(total: int | None) -> Iterator[Any]:
    """A bar on a terminal, nothing elsewhere."""
    console = Console(stderr=True)
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    ]
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("frames", total=total)
        yield lambda: progress.advance(task)


def as_json(
    report: Report, status: Status, session: Session, options: argparse.Namespace
) -> dict[str, Any]:
    """Everything that is known of a run, for `--report`."""
    chosen = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    return {
        "version": VERSION,
        "options": chosen,
        "steps": session.steps,
        "remarks": session.remarks,
        "pipeline": dataclasses.asdict(status),
        **report.as_dict(),
    }


def show(report: Report, status: Status, session: Session, options: argparse.Namespace) -> None:
    """The report as a table."""
    console = Console()
    table = Table(show_header=False, title=str(options.output))
    for name, value in rows(report, status, session):
        table.add_row(name, value)
    console.print(table)
    for remark in session.remarks:
        console.print(f"note: {remark}", highlight=False)


def rows(report: Report, status: Status, session: Session) -> Iterator[tuple[str, str]]:
    """Name and value of every line of the table."""

    def ms(value: float | None) -> str:
        return "-" if value is None else f"{value:.1f} ms"

    yield (
        "frames in / out / dropped",
        f"{report.frames_in} / {report.frames_emitted} / {report.frames_dropped}",
    )
    yield "frames late", "no SLO" if session.config.slo is None else str(report.frames_late)
    yield "FPS", "-" if report.fps is None else f"{report.fps:.1f}"
    yield "TTFF", "-" if report.ttff_s is None else f"{report.ttff_s * 1e3:.1f} ms"
    lat, jit = report.latency_ms, report.jitter_ms
    yield (
        "latency p50 / p90 / p99 / max",
        f"{ms(lat.p50)} / {ms(lat.p90)} / {ms(lat.p99)} / {ms(lat.maximum)}",
    )
    yield "jitter p50 / p99", f"{ms(jit.p50)} / {ms(jit.p99)}"
    if report.chunks:
        scores = [c.motion_score for c in report.chunks]
        scales = [c.noise_scale for c in report.chunks]
        yield "motion score", f"{min(scores):.3f} .. {max(scores):.3f}"
        yield "noise scale", f"{min(scales):.3f} .. {max(scales):.3f}"
    yield "steps", str(session.steps)
    yield "backend", f"{status.backend} ({status.library})"
    for stage in status.placement:
        yield (
            f"stage {stage.stage}",
            f"{stage.device}: {stage.units[0]} .. {stage.units[-1]} ({len(stage.units)} units)",
        )


if __name__ == "__main__":
    sys.exit(main())


__all__ = ["SinkError", "main", "paced", "parser", "run"]
