"""Options of `python -m rt.stream`: parsed, and refused where they cannot mean anything.

It touches no engine and no video; a mistake raises ConfigError.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import get_args

from . import media
from .command import command
from .config import SLO, Fit, Motion, Positions, SessionConfig, Sinks, Start
from .errors import ConfigError
from .plot import ENDINGS, check_plot

DEFAULT_SLO_MS = 1000.0
"""Latency budget of live sources and of `--realtime` where none is given: the paper's own (section
5.2.4)."""


def parser() -> argparse.ArgumentParser:
    """The options. Every one that may be left out says in its help what it is then."""
    p = command("python -m rt.stream", "Restyle a video with a prompt.")
    shown = "(default: %(default)s)"
    source = p.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--input", metavar="PLACE", help=f"the video to restyle: {_literal(media.INPUTS)}"
    )
    source.add_argument(
        "--scene", action="store_true", help="make a moving scene instead of reading a file"
    )
    endings = ", ".join(media.CONTAINERS)
    p.add_argument(
        "--output",
        required=True,
        metavar="PLACE",
        help=f"where it goes: {_literal(media.OUTPUTS)}; files end in {endings}",
    )
    _add_input_facts(p)
    style = p.add_mutually_exclusive_group(required=True)
    style.add_argument(
        "--prompt",
        metavar="TEXT",
        help="what the video should look like (default: as --prompt-embedding says)",
    )
    style.add_argument(
        "--prompt-embedding",
        type=Path,
        metavar="FILE",
        help="the same, as encode-prompt wrote it (default: as --prompt says)",
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
        help="give the frames of a film at their times, as a camera would, and count late ones "
        "(default: as fast as they are taken)",
    )
    p.add_argument(
        "--slo-ms",
        type=float,
        metavar="MS",
        help="latency budget of a frame; those over it count as late "
        f"(default: none; live or with --realtime {DEFAULT_SLO_MS:g})",
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
    return p


def _literal(text: str) -> str:
    """`text` in a help, where argparse would replace what follows a %."""
    return text.replace("%", "%%")


def _add_input_facts(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--input-size",
        metavar="WxH",
        help="of raw: pictures, or asked of a camera (default: the camera's choice)",
    )
    p.add_argument(
        "--input-fps",
        type=float,
        metavar="N",
        help="of raw: or numbered pictures, or asked of a camera (default: numbered ones 25, the "
        "camera's choice)",
    )
    p.add_argument(
        "--patience-s",
        type=float,
        default=60.0,
        metavar="S",
        help="how long a live source or a server may stay away before it is given up "
        "(default: %(default)s)",
    )


def asked(options: argparse.Namespace) -> tuple[media.Asked, media.Backoff]:
    """What a source is told, and how long it is waited for. Raises ConfigError."""
    size = None if options.input_size is None else media.size(options.input_size)
    if not 0 <= options.patience_s < math.inf:
        raise ConfigError(f"patience-s: got {options.patience_s}, expected 0 or more seconds")
    told = media.Asked(size, options.input_fps)
    if options.input is not None:
        media.check_asked(media.inlet(options.input), told)
    elif told != media.Asked():
        raise ConfigError("input-size, input-fps: the scene has its own; leave them out")
    return told, media.Backoff(patience_s=options.patience_s)


def session_config(options: argparse.Namespace, live: bool = False) -> SessionConfig:
    """What the options say of the session, checked. A live source always has a budget."""
    slo_ms = options.slo_ms
    if slo_ms is None and (options.realtime or live):
        slo_ms = DEFAULT_SLO_MS
    return SessionConfig(
        prompt=options.prompt if options.prompt is not None else options.prompt_embedding,
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
    places = [media.outlet(options.output)]
    if options.input is not None:
        places.append(media.inlet(options.input))
    taken = {place.path.resolve(): "a video" for place in places if place.path is not None}
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
