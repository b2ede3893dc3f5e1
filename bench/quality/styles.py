"""Each style against its filter: how near, how near the VAE alone could come, and what a cheap fit
reaches; flicker; a sheet to look at.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bench.quality.clips import Clip
from bench.quality.engines import restyle
from bench.quality.fit import Fit, applied
from bench.quality.measures import Flicker, filtered, psnr, reconstruct
from bench.quality.report import Line, Section, write_picture
from export.tiny.styles import STRUCTURAL, STYLES
from rt import Pipeline

GAP_DB, LEAD_DB, FLICKER_RATIO, VAE_DB = 3.0, 1.0, 1.5, 26.0
HEADING = (
    "clip", "style", "model", "VAE alone", "gap", "source", "colour fit", "flicker of the model",
    "of the VAE alone", "of the filter", "ratio",
)  # fmt: skip


def measure(
    pipeline: Pipeline,
    clips: Mapping[str, Clip],
    fits: Mapping[str, Fit],
    pictures: Path,
) -> Section:
    """Every clip in every style. Sheets are written to the folder `pictures`."""
    table, lines, sheets = [HEADING], [], []
    for name, source in clips.items():
        flicker, made_of = Flicker(source), {}
        for style in STYLES:
            truth, made = filtered(source, style), restyle(pipeline, source, style)
            made_of[style] = made
            alone = reconstruct(pipeline.directory, pipeline.manifest, truth)
            limit = psnr(alone, truth)
            found, plain = psnr(made, truth), psnr(source, truth)
            fit = psnr(applied(fits[style], source), truth)
            shaky, calm = flicker(made), flicker(truth)
            ratio = shaky / calm
            numbers = [f"{found:.1f}", f"{limit:.1f}", f"{limit - found:.1f}"]
            numbers += ["" if style == "realistic" else f"{value:.1f}" for value in (plain, fit)]
            numbers += [f"{shaky:.2f}", f"{flicker(alone):.2f}", f"{calm:.2f}", f"{ratio:.2f}"]
            table.append((name, style, *numbers))
            lines += _lines(f"{name}, {style}", style, found, limit, plain, fit, ratio)
        file = f"quality-{name}.jpg"
        write_picture(pictures / file, sheet(source, made_of))
        sheets.append(file)
    return Section("styles", lines, table, sheets)


def _lines(
    name: str, style: str, found: float, limit: float, plain: float, fit: float, ratio: float
) -> list[Line]:
    lines = [
        Line(f"{name}: below the VAE alone", limit - found, "dB", most=GAP_DB),
        Line(f"{name}: flicker against the filter's", ratio, "x", most=FLICKER_RATIO),
    ]
    if style == "realistic":
        lines.append(Line(f"{name}: VAE alone", limit, "dB", least=VAE_DB))
    else:
        lines.append(Line(f"{name}: above the source", found - plain, "dB", least=0.0))
    if style in STRUCTURAL:
        lines.append(Line(f"{name}: above the colour fit", found - fit, "dB", least=LEAD_DB))
    return lines


def sheet(source: Clip, made: Mapping[str, Clip]) -> Clip:
    """One frame: the source, then each style as the filter makes it, above what the model made."""
    at = len(source) * 2 // 3
    columns = [np.vstack([source[at], source[at]])]
    for style, pictures in made.items():
        columns.append(np.vstack([STYLES[style](source[at]), pictures[at]]))
    half = (len(columns) + 1) // 2
    rows = [np.hstack(columns[:half]), np.hstack(columns[half:])]
    width = max(row.shape[1] for row in rows)
    padded = [
        np.pad(r, ((0, 0), (0, width - r.shape[1]), (0, 0)), constant_values=255) for r in rows
    ]
    return np.vstack(padded)
