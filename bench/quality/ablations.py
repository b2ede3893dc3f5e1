"""What each mechanism buys: the same clips with and without it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from bench.quality import clips
from bench.quality.clips import Clip
from bench.quality.engines import restyle, varied
from bench.quality.measures import CHUNK, Flicker, filtered, psnr, reconstruct
from bench.quality.report import Line, Section
from rt import Pipeline, window

RESET_AT, RESET_TO = 50, 5
"""Latent frames at which the reference moves its absolute positions back, and where to."""
STYLES_SHOWN = ("comic", "oil painting")

Rows = list[tuple[str, ...]]


def measure(directory: Path, unseen: Clip, frames: int) -> Section:
    """`frames` for the short questions; sinks take twice, positions four times as many."""
    table: Rows = [("mechanism", "setting", "clip", "style", "PSNR, dB", "flicker, levels", "")]
    with Pipeline.load(directory, steps=4) as pipeline:
        size = pipeline.manifest.geometry.height
        table += _motion(pipeline, frames, size)
        table += _steps(pipeline, unseen)
        table += _positions(pipeline, 4 * frames, size)
    table += _sinks(directory, 2 * frames, size)
    return Section("ablations", _differences(table), table)


def _motion(pipeline: Pipeline, frames: int, size: int) -> Rows:
    scenes = {
        "slow pan": clips.panned(0.5, frames, size),
        "fast pan": clips.panned(8.0, frames, size),
        "flickering light": clips.flickering(frames, size),
    }
    rows: Rows = []
    for name, source in scenes.items():
        flicker = Flicker(source)
        for style in STYLES_SHOWN:
            truth = filtered(source, style)
            limit = psnr(reconstruct(pipeline.directory, pipeline.manifest, truth), truth)
            for motion in ("flow", "difference", "off"):
                with pipeline.session(prompt=style, motion=motion, steps=2) as session:
                    made = np.stack([f.rgb for f in session.stream(list(source))])
                    scales = [c.noise_scale for c in session.report().chunks]
                note = f"s {np.mean(scales):.3f} on average; VAE alone {limit:.1f} dB"
                rows.append(_row("motion", motion, name, style, made, truth, flicker, note))
    return rows


def _steps(pipeline: Pipeline, source: Clip) -> Rows:
    flicker, rows = Flicker(source), []
    for style in STYLES_SHOWN:
        truth = filtered(source, style)
        for steps in (1, 2, 4):
            made = restyle(pipeline, source, style, steps=steps)
            rows.append(_row("steps", str(steps), "unseen clip", style, made, truth, flicker))
    return rows


def _positions(pipeline: Pipeline, frames: int, size: int) -> Rows:
    """A slow clip from the first reset of the reference on, where the settings differ."""
    source = clips.looping(frames, size)
    after = min(CHUNK * RESET_AT + 1, frames // 2)
    flicker, rows = Flicker(source[after:]), []
    for style in STYLES_SHOWN:
        truth = filtered(source[after:], style)
        for name in ("window", "absolute", "absolute, reset"):
            with _reset() if "reset" in name else _as_is():
                made = restyle(
                    pipeline,
                    source,
                    style,
                    steps=2,
                    positions=name.partition(",")[0],
                    sinks="fixed",
                )
            title = "a long slow clip"
            rows.append(_row("positions", name, title, style, made[after:], truth, flicker))
    return rows


def _sinks(directory: Path, frames: int, size: int) -> Rows:
    """After a cut, the pinned frames show a scene that is gone."""
    source = clips.cut(frames, size)
    after = frames // 2 + 1
    flicker, rows = Flicker(source[after:]), []
    for name, pinned in (("adaptive", None), ("fixed", None), ("none", {"sinks": 0})):
        with varied(directory, window=pinned) as copy, Pipeline.load(copy) as pipeline:
            for style in STYLES_SHOWN:
                kept = "fixed" if name == "none" else name
                made = restyle(pipeline, source, style, sinks=kept)
                truth = filtered(source[after:], style)
                title = "after a cut"
                rows.append(_row("sinks", name, title, style, made[after:], truth, flicker))
    return rows


def _row(
    mechanism: str, setting: str, clip: str, style: str, made: Clip, truth: Clip,
    flicker: Flicker, note: str = "",
) -> tuple[str, ...]:  # fmt: skip
    numbers = f"{psnr(made, truth):.2f}", f"{flicker(made):.2f}"
    return mechanism, setting, clip, style, *numbers, note


def _differences(table: Rows) -> list[Line]:
    """How far the first setting of each question is above every other one, on average."""
    cells: dict[tuple[str, str, str], list[float]] = {}
    for mechanism, setting, clip, _, found, _, _ in table[1:]:
        cells.setdefault((mechanism, clip, setting), []).append(float(found))
    lines = []
    for (mechanism, clip, setting), values in cells.items():
        ours = {"motion": "flow", "steps": "2", "positions": "window", "sinks": "adaptive"}[
            mechanism
        ]
        if setting != ours:
            lead = float(np.mean(cells[mechanism, clip, ours]) - np.mean(values))
            lines.append(Line(f"{mechanism}: {ours} above {setting}, {clip}", lead, "dB"))
    return lines


@contextmanager
def _as_is() -> Iterator[None]:
    yield


@contextmanager
def _reset() -> Iterator[None]:
    """Positions as the reference gives them: at latent frame 50 back to 5, and so on."""
    usual = window.rope_time

    def moved_back(frame: int, pairs: int, theta: float) -> NDArray[np.float32]:
        if frame >= RESET_AT:
            frame = RESET_TO + (frame - RESET_AT) % (RESET_AT - RESET_TO)
        return usual(frame, pairs, theta)

    with patch.object(window, "rope_time", moved_back):
        yield
