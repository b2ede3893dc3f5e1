"""Options of `python -m rt.stream`: parsed, and refused where they cannot mean anything.

It touches no engine and no video; a mistake raises ConfigError.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn, get_args

from . import media
from .config import SLO, VERSION, Fit, Motion, Positions, SessionConfig, Sinks, Start
from .errors import ConfigError
from .plot import ENDINGS, check_plot

DEFAULT_SLO_MS = 1000.0
"""Latency budget of `--realtime` where none is given: the paper's own (section 5.2.4)."""


class Parser(argparse.ArgumentParser):
    """Raises ConfigError for a mistake, so that it is told in one line as any other."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def parser() -> argparse.ArgumentParser:
    """The options. Every one that may be left out says in its help what it is then."""
    p = Parser(
        prog="python -m rt.stream",
        description="Restyle a video with a prompt.",
        epilog="Exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted.",
        allow_abbrev=False,
    )
    shown = "(default: %(default)s)"
    source = p.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", type=Path, metavar="FILE", help="the video to restyle")
    source.add_argument(
        "--scene", action="store_true", help="make a moving scene instead of reading a file"
    )
    endings = ", ".join(media.CONTAINERS)
    p.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help=f"the video to write: {endings}"
    )
    p.add_argument(
        "--prompt", required=True, metavar="TEXT", help="what the video should look like"
    )
    p.add_argument(
        "--engines",
        type=Path,
        default=Path("engines/tiny"),
        metavar="DIR",
        help=f"engine directory {shown}",
    )
    where = p.add_mutually_exclusive_group()
    where.add_argument(
        "--devices",
        default="auto",
        metavar="NAMES",
        help=f"one stage each, separated by commas: cpu:0,cpu:1 {shown}",
    )
    where.add_argument(
        "--gpus", type=int, metavar="N", help="the first N GPUs (default: as --devices says)"
    )
    p.add_argument(
        "--steps", type=int, metavar="N", help="denoising steps (default: the model's own)"
    )
    p.add_argument("--seed", type=int, default=0, metavar="N", help=f"of the noise {shown}")
    for name, kind, default, text in (
        ("--motion", Motion, "flow", "what sets the noise"),
        ("--start", Start, "fast", "begin after one frame, or after five"),
        ("--positions", Positions, "window", "rotary positions"),
        ("--sinks", Sinks, "adaptive", "pinned frames"),
        ("--fit", Fit, "crop", "how a picture of another shape meets the engine's size"),
    ):
        p.add_argument(name, choices=get_args(kind), default=default, help=f"{text} {shown}")
    p.add_argument(
        "--realtime",
        action="store_true",
        help="give the frames at their times, as a camera would, and count late ones "
        "(default: as fast as they are taken)",
    )
    p.add_argument(
        "--slo-ms",
        type=float,
        metavar="MS",
        help="latency budget of a frame; those over it count as late "
        f"(default: none; with --realtime {DEFAULT_SLO_MS:g})",
    )
    p.add_argument(
        "--side-by-side",
        action="store_true",
        help="write the input to the left of the output (default: the output alone)",
    )
    p.add_argument(
        "--report",
        type=Path,
        metavar="FILE",
        help="write all that was measured as JSON, also of a stream that fails or is interrupted "
        "(default: no report)",
    )
    p.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw motion and noise scale of every chunk, as a picture: "
        f"{', '.join(ENDINGS)}; needs matplotlib (default: no plot)",
    )
    p.add_argument(
        "--explain",
        action="store_true",
        help="write every decision of the batch controller and its reason to standard error "
        "(default: no)",
    )
    p.add_argument("--version", action="version", version=f"streamdiffusion-rt {VERSION}")
    return p


def session_config(options: argparse.Namespace) -> SessionConfig:
    """What the options say of the session, checked."""
    slo_ms = options.slo_ms
    if slo_ms is None and options.realtime:
        slo_ms = DEFAULT_SLO_MS
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


def check_report(options: argparse.Namespace) -> None:
    """Raises ConfigError for a report or a plot that could not be written, or would overwrite what
    else belongs to the run.
    """
    videos = (options.input, options.output)
    taken = {video.resolve(): "a video" for video in videos if video is not None}
    for name, path in (("report", options.report), ("plot", options.plot)):
        if path is None:
            continue
        _check_place(name, path)
        if (what := taken.get(path.resolve())) is not None:
            raise ConfigError(f"{name}: got {path}, which is {what} of this run; name another file")
        taken[path.resolve()] = f"the {name}"
    if options.plot is not None:
        check_plot(options.plot)


def _check_place(name: str, path: Path) -> None:
    if not path.parent.is_dir():
        raise ConfigError(
            f"{name}: got {path}, but {path.parent} is no directory; create it or name another"
        )
    if path.is_dir():
        raise ConfigError(f"{name}: got {path}, a directory; expected a file name")
