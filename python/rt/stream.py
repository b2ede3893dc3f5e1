"""`python -m rt.stream`: a video in, a restyled video out, and an honest report.

One session of one pipeline. It owns Ctrl-C, exit codes and what is printed; it refuses to decide
anything about the stream itself.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from . import devices, media
from .command import INTERRUPTED, ended, whole
from .config import VERSION
from .errors import Error, SinkError, SourceError
from .frame import Frame
from .metrics import Distribution, Report
from .options import asked, check_report, parser, session_config
from .pipeline import Pipeline, Status
from .plot import write_plot
from .scheduler import Decision, Event
from .session import Session


def main(arguments: Sequence[str] | None = None, interrupt: Interrupt | None = None) -> int:
    """Exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted.

    Whatever goes wrong is told in one line on standard error.
    """
    with interrupt or Interrupt() as interrupt:
        one = functools.partial(run_from, arguments, interrupt)
        return ended(one, "no frame was written")


def run_from(arguments: Sequence[str] | None, interrupt: Interrupt) -> int:
    """`run` with what the command line says."""
    return run(parser().parse_args(arguments), interrupt)


PATIENCE_S = 1.0
"""How long Ctrl-C waits for the next frame before a second press may tear the stream off."""


class Interrupt:
    """Ctrl-C, while its `with` block lasts; `for_good` leaves it unheard afterwards, for a process
    on its way out.

    While an engine loads it raises KeyboardInterrupt. Once frames flow (`defer`) it is a flag that
    is read between two of them: no lock stays held, no picture is half written. Pressed again
    after a second it raises, for a source that keeps everybody waiting; then it does nothing.
    """

    def __init__(self, for_good: bool = False) -> None:
        self.pressed = False
        self._raises = True
        self._for_good = for_good
        self._heard = False
        self._first_s = float("inf")

    def defer(self) -> None:
        """From now on, only set `pressed`."""
        self._raises = False

    def __enter__(self) -> Self:
        # A shell starts background jobs with SIGINT ignored: that stays so.
        usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        self._heard = usual and threading.current_thread() is threading.main_thread()
        if self._heard:
            signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *_: object) -> None:
        if self._heard:
            after = signal.SIG_IGN if self._for_good else signal.default_int_handler
            signal.signal(signal.SIGINT, after)

    def _press(self, _number: int, _frame: FrameType | None) -> None:
        now_s, self.pressed = time.monotonic(), True
        self._first_s = min(self._first_s, now_s)
        if self._raises or now_s - self._first_s > PATIENCE_S:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            raise KeyboardInterrupt


# One stream


@dataclasses.dataclass(frozen=True, slots=True)
class End:
    """How a stream ended: frames in the output file, and the error or the key that ended it."""

    written: int
    failure: Error | None
    interrupted: bool

    @property
    def outcome(self) -> str:
        return "failed" if self.failure else "interrupted" if self.interrupted else "done"


def run(options: argparse.Namespace, interrupt: Interrupt) -> int:
    """One stream from `options`, start to report. All that can be refused is refused before the
    output is opened; a stream that began is reported, however it ended.
    """
    config = session_config(options)
    told, backoff = asked(options)
    names = devices.gpus(options.gpus) if options.gpus is not None else options.devices
    check_report(options)
    target = media.outlet(options.output)
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(
            media.moving_scene()
            if options.scene
            else media.open_source(media.inlet(options.input), told, backoff)
        )
        config = session_config(options, source.live)
        media.check_target(target, source)
        log = explain if options.explain else None
        loaded = Pipeline.load(options.engines, names, steps=options.steps, log=log)
        pipeline = stack.enter_context(loaded)
        interrupt.defer()
        fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
        session = stack.enter_context(pipeline.session(**fields))
        g = pipeline.manifest.geometry
        width = g.width * (2 if options.side_by_side else 1)
        sink = media.open_sink(target, source, g.height, width, backoff)
        end = _stream(options, source, session, sink, interrupt)
    session.remarks += [*source.remarks, *sink.remarks]
    report, status, failure = session.report(), pipeline.status(), end.failure
    try:
        if options.report is not None:
            content = as_json(report, status, session, options, end)
            with whole(options.report, "the report") as part:
                part.write_text(json.dumps(content, indent=1) + "\n")
        if options.plot is not None:
            write_plot(options.plot, report.chunks, config.motion)
    except SinkError as error:  # A full disk fails all; the video is what was asked for.
        failure = failure or error
    show(report, status, session, options, end)
    if failure is not None:
        raise failure
    if end.interrupted:
        where = f"{end.written} frames are in {target}"
        print("interrupted:", where if end.written else "no frame was written", file=sys.stderr)
        return INTERRUPTED
    return 0


def explain(entry: Event | Decision) -> None:
    """One line of `--explain`: what the controller decided, and why."""
    if isinstance(entry, Decision):
        print(entry, file=sys.stderr)


def _stream(
    options: argparse.Namespace,
    source: media.VideoSource,
    session: Session,
    sink: media.Sink,
    interrupt: Interrupt,
) -> End:
    """Source -> session -> sink. The output is there afterwards if the source was read to its end,
    as far as it could be read, or until Ctrl-C; never after another failure.
    """
    inputs: dict[int, NDArray[np.uint8]] = {}
    frames = paced(iter(source)) if options.realtime and not source.live else iter(source)
    if options.side_by_side:
        frames = _remembered(frames, inputs)
    # A session with an SLO paces its frames by itself.
    hold = media.Turn() if sink.live and session.config.slo is None else None
    written, failure = 0, None
    try:
        try:
            with (
                _progress(source.frame_count) as advance,
                contextlib.closing(session.stream(frames)) as restyled,
            ):
                for frame in restyled:
                    if options.side_by_side:
                        frame = _beside(frame, inputs)
                    if hold is not None:
                        time.sleep(hold.pause_s(frame.pts_s, time.monotonic()))
                    sink.write(frame)
                    written += 1
                    advance()
                    if interrupt.pressed:
                        break
        except SourceError as error:
            failure = error
        except KeyboardInterrupt:  # the second press: nothing came, so no flag was read
            interrupt.pressed = True
        sink.close()
    except Error as error:
        sink.abort()
        return End(0, error, interrupt.pressed)
    except BaseException:
        sink.abort()
        raise
    return End(written, failure, interrupt.pressed)


def paced(frames: Iterator[Frame]) -> Iterator[Frame]:
    """Frames of a file as a camera would give them: each at its pts, stamped with that moment
    however late it is taken, so that waiting for a slow pipeline counts as latency.
    """
    start_ns: int | None = None
    for frame in frames:
        now = time.perf_counter_ns()
        pts_ns = round(frame.pts_s * 1e9)
        if start_ns is None:
            start_ns = now - pts_ns
        due = start_ns + pts_ns
        if due > now:
            time.sleep((due - now) * 1e-9)
        yield dataclasses.replace(frame, captured_ns=due)


def _remembered(frames: Iterator[Frame], inputs: dict[int, NDArray[np.uint8]]) -> Iterator[Frame]:
    for frame in frames:
        inputs[frame.index] = frame.rgb
        yield frame


def _beside(frame: Frame, inputs: dict[int, NDArray[np.uint8]]) -> Frame:
    """The frame with its input to the left. Inputs of dropped frames before it are forgotten."""
    for index in [index for index in inputs if index < frame.index]:
        del inputs[index]
    both = media.side_by_side(inputs.pop(frame.index), frame.rgb)
    return dataclasses.replace(frame, rgb=both)


@contextlib.contextmanager
def _progress(total: int | None) -> Iterator[Callable[[], None]]:
    """A bar on a terminal, nothing elsewhere."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("frames", total=total)
        yield lambda: progress.advance(task)


# What is told afterwards


def as_json(
    report: Report, status: Status, session: Session, options: argparse.Namespace, end: End
) -> dict[str, Any]:
    """Everything that is known of a run, for `--report`."""
    chosen = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    # An address may hold a password.
    chosen["output"] = str(media.outlet(options.output))
    chosen["input"] = options.input and str(media.inlet(options.input))
    return {
        "version": VERSION,
        "outcome": end.outcome,
        "error": None if end.failure is None else str(end.failure),
        "frames_written": end.written,
        "options": chosen,
        "steps": session.steps,
        "remarks": session.remarks,
        "pipeline": dataclasses.asdict(status),
        **report.as_dict(),
    }


def show(
    report: Report, status: Status, session: Session, options: argparse.Namespace, end: End
) -> None:
    """The report as a table, and what the user should know, on standard output; on standard error
    where the frames themselves went to the former.
    """
    target = media.outlet(options.output)
    out = sys.stderr if target.kind in ("y4m", "raw") else sys.stdout
    title = str(target) if end.written else "no output"
    table = Table(show_header=False, title=Text(_printable(title)))
    for name, value in rows(report, status, session):
        table.add_row(name, Text(_printable(value)))
    console = Console()
    with console.capture() as drawn:
        console.print(table)
    print(drawn.get(), end="", file=out)
    for remark in session.remarks:
        print("note:", _printable(remark), file=out)
    out.flush()


def _printable(text: str) -> str:
    """A file name may hold bytes that are no text."""
    return text.encode(errors="backslashreplace").decode()


def rows(report: Report, status: Status, session: Session) -> Iterator[tuple[str, str]]:
    """Name and value of every line of the table."""
    counts = (report.frames_in, report.frames_emitted, report.frames_dropped)
    yield "frames in / out / dropped", " / ".join(map(str, counts))
    yield "frames late", "no SLO" if session.config.slo is None else str(report.frames_late)
    yield "FPS", "-" if report.fps is None else f"{report.fps:.1f}"
    yield "TTFF", "-" if report.ttff_s is None else f"{report.ttff_s * 1e3:.1f} ms"
    yield "latency p50 / p90 / p99", _percentiles(report.latency_ms)
    yield "jitter p50 / p90 / p99", _percentiles(report.jitter_ms)
    if report.chunks:
        scores = [c.motion_score for c in report.chunks]
        scales = [c.noise_scale for c in report.chunks]
        yield "motion score", f"{min(scores):.3f} .. {max(scores):.3f}"
        yield "noise scale", f"{min(scales):.3f} .. {max(scales):.3f}"
    yield "steps", str(session.steps)
    yield "backend", f"{status.backend} ({status.library})"
    for s in status.placement:
        units = f"{s.units[0]} .. {s.units[-1]} ({len(s.units)} units)"
        yield f"stage {s.stage}", f"{s.device}: {units}"


def _percentiles(values: Distribution) -> str:
    known = [v for v in (values.p50, values.p90, values.p99) if v is not None]
    return " / ".join(f"{v:.1f}" for v in known) + " ms" if known else "-"


if __name__ == "__main__":
    sys.exit(main(interrupt=Interrupt(for_good=True)))
