"""Motion and noise along a clip as a picture: what `--plot` writes.

It alone knows matplotlib, which is imported when a plot is asked for. It refuses, before anything
is streamed, a file that could not be written.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from .config import Motion
from .errors import ConfigError, SinkError
from .metrics import ChunkRecord

ENDINGS = (".png", ".svg", ".pdf")


def check_plot(path: Path) -> None:
    """Raises ConfigError where a plot could not be made: no matplotlib, or no kind of picture."""
    if path.suffix not in ENDINGS:
        raise ConfigError(f"plot: got {path}, expected a name that ends in {', '.join(ENDINGS)}")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"plot: needs matplotlib ({error}); run: pip install matplotlib"
        ) from error


def write_plot(path: Path, chunks: Sequence[ChunkRecord], motion: Motion) -> None:
    """Score and noise scale of every chunk, one above the other. Whole or not at all."""
    from matplotlib.figure import Figure

    unit = {"flow": "motion, px (p90)", "difference": "motion, RMS", "off": "motion (off)"}[motion]
    indices = [chunk.index for chunk in chunks]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    above.step(indices, [chunk.motion_score for chunk in chunks], where="mid")
    above.set_ylabel(unit)
    above.set_ylim(bottom=0)
    below.step(indices, [chunk.noise_scale for chunk in chunks], where="mid", color="tab:orange")
    below.set_ylabel("noise scale s")
    below.set_xlabel("chunk")
    part = path.with_name(f".{path.name}.part")
    try:
        figure.savefig(part, format=path.suffix[1:], dpi=100)
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise SinkError(
            f"{path}: the plot cannot be written ({error.strerror}); expected a place with room "
            "and the right to write: free space or choose another"
        ) from error
