"""Pictures of measurements: what `--plot` writes.

It alone knows matplotlib, which is imported when a plot is asked for. It refuses, before anything
is run, a file that could not be written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .command import whole
from .config import Motion
from .errors import ConfigError
from .metrics import ChunkRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENDINGS = (".png", ".svg", ".pdf")


@dataclass(frozen=True, slots=True)
class Panel:
    """One set of axes. Lines by name, as (x, y); `stacked` draws bars on each other instead;
    `limits` are dashed levels by name; `logarithmic` is the vertical axis; a `whole`
    horizontal one counts things.
    """

    title: str
    across: str
    upwards: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    limits: Mapping[str, float] = field(default_factory=dict)
    stacked: bool = False
    logarithmic: bool = False
    whole: bool = False


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
    _save(figure, path)


def write_panels(path: Path, panels: Sequence[Panel], columns: int = 2) -> None:
    """Panels beside and below each other. Whole or not at all."""
    from matplotlib.figure import Figure

    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5.2 * columns, 3.4 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, panel in zip(axes[: len(panels)], panels, strict=True):
        floor: dict[float, float] = {}
        for name, points in panel.lines.items():
            across = [x for x, _ in points]
            if panel.stacked:
                axis.bar(
                    across,
                    [y for _, y in points],
                    0.7,
                    [floor.get(x, 0.0) for x in across],
                    label=name,
                )
                floor |= {x: floor.get(x, 0.0) + y for x, y in points}
            else:
                axis.plot(across, [y for _, y in points], marker=".", label=name)
        for number, (name, level) in enumerate(panel.limits.items()):
            axis.axhline(level, linestyle="--", color=f"{0.2 + 0.3 * number}", label=name)
        axis.set(title=panel.title, xlabel=panel.across, ylabel=panel.upwards)
        if panel.logarithmic:
            axis.set_yscale("log")
        else:
            axis.set_ylim(bottom=0)
        axis.xaxis.get_major_locator().set_params(integer=panel.whole)
        axis.legend(fontsize="small")
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with whole(path, "the plot") as part:
        figure.savefig(part, format=path.suffix[1:], dpi=100)
