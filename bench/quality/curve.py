"""PSNR against the strength of the noise: how much of the source the noise leaves."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt

from bench.quality.clips import Clip
from bench.quality.engines import restyle, varied
from bench.quality.measures import filtered, psnr
from bench.quality.report import Line, Section
from rt import Pipeline

SCALES = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8)
SHOWN = ("realistic", "pencil sketch", "comic", "neon edges", "oil painting", "thermal")


def measure(directory: Path, source: Clip, name: str, picture: Path) -> Section:
    """The same clip at noise scales held fixed, also outside of the range of the manifest."""
    found: dict[str, list[float]] = {style: [] for style in SHOWN}
    truths = {style: filtered(source, style) for style in SHOWN}
    for scale in SCALES:
        with (
            varied(directory, noise={"s_max": scale, "s_min": scale}) as copy,
            Pipeline.load(copy) as pipeline,
        ):
            allowed = pipeline.manifest.noise
            for style in SHOWN:
                found[style].append(psnr(restyle(pipeline, source, style), truths[style]))
    with Pipeline.load(directory) as pipeline:
        allowed = pipeline.manifest.noise
    _draw(found, allowed.s_min, allowed.s_max, picture)
    heading = ("style", *(f"s = {scale:g}" for scale in SCALES))
    table = [heading, *((s, *(f"{v:.1f}" for v in values)) for s, values in found.items())]
    lines = [
        Line(
            f"{name}, {style}: s {SCALES[0]:g} to {SCALES[-1]:g}", values[0] - values[-1], "dB lost"
        )
        for style, values in found.items()
    ]
    return Section("curve", lines, table, [picture.name])


def _draw(found: dict[str, list[float]], low: float, high: float, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    axes.axvspan(low, high, color="0.92", label="range of the manifest")
    for style, values in found.items():
        axes.plot(SCALES, values, marker="o", markersize=3, label=style)
    axes.set(xlabel="noise scale s", ylabel="PSNR to the filter, dB")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)
