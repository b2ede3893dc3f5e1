"""Plots of the performance page: units against their limit, FPS against steps, latency, scaling.

A plot is drawn only where rows for it exist.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.gpu.record import Reading, Rows
from bench.gpu.targets import ALL

STEPS = re.compile(r"(?P<model>.+): FPS, (?P<steps>\d) steps")
SCALING = re.compile(r"(?P<model>.+): FPS of 1 sessions on (?P<devices>\d) logical devices")
SIMULATED = re.compile(r"(?P<model>.+): (?P<steps>\d) steps, (?P<devices>\d) GPUs")
UNIT = re.compile(r"(?P<model>.+): unit (?P<unit>\S+), batch 1")


Tables = Mapping[str, Sequence[Mapping[str, Any]]]


def draw(gpus: Sequence[Rows], cpus: Tables, simulated: Tables, folder: Path) -> list[str]:
    """File names of the plots, in the order of the page."""
    readings = [reading for rows in gpus for reading in _named(rows, len(gpus) > 1)]
    drawn = [
        _units(readings, folder),
        _fps(readings, folder),
        _latency(readings, folder),
        _scaling(readings, simulated, folder),
        _processor(cpus, folder),
    ]
    return [name for name in drawn if name]


def _named(rows: Rows, several: bool) -> list[Reading]:
    """What was measured on one GPU; with its name before it where there are several."""
    found = []
    for row in rows.newest().values():
        if row.reading.value is not None:
            gpu = f"{row.machine.get('name', '')}, " if several else ""
            found.append(replace(row.reading, name=gpu + row.reading.name))
    return found


def _figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    return figure, figure.subplots()


def _save(figure: Any, folder: Path, name: str) -> str:
    """SVG without a date and with fixed identifiers: equal rows give equal files."""
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "performance", "svg.fonttype": "none"}):
        figure.savefig(folder / name, metadata={"Date": None})
    return name


def _units(readings: Sequence[Reading], folder: Path) -> str:
    """Milliseconds of each unit at batch 1 beside what its work takes at the measured peak."""
    found = [(m, r) for r in readings if (m := UNIT.fullmatch(r.name)) and r.limit]
    if not found:
        return ""
    figure, axes = _figure()
    names = [f"{m['model']} {m['unit']}" for m, _ in found]
    axes.barh(names, [r.value for _, r in found], label="measured")
    axes.barh(names, [r.limit for _, r in found], height=0.4, label="at the measured peak")
    axes.set_xlabel("ms")
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=6)
    axes.legend()
    return _save(figure, folder, "performance-units.svg")


def _fps(readings: Sequence[Reading], folder: Path) -> str:
    """FPS end to end against steps, with the published numbers as crosses."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for r in readings:
        if (m := STEPS.fullmatch(r.name)) and r.value is not None:
            curves.setdefault(m["model"], []).append((int(m["steps"]), r.value))
    if not curves:
        return ""
    figure, axes = _figure()
    for model, points in curves.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=model)
    for target in ALL:
        if (m := STEPS.fullmatch(target.name)) and target.published is not None:
            axes.plot(int(m["steps"]), target.published, "kx")
    axes.plot([], [], "kx", label="published, one H100")
    axes.set_xlabel("denoising steps")
    axes.set_ylabel("frames/s")
    axes.set_ylim(bottom=0)
    axes.legend()
    return _save(figure, folder, "performance-fps.svg")


def _latency(readings: Sequence[Reading], folder: Path) -> str:
    """Share of frames that are at most so late."""
    found = [r for r in readings if r.distribution and "p50" in r.name]
    if not found:
        return ""
    figure, axes = _figure()
    for r in found:
        count = len(r.distribution)
        shares = [i / (count - 1) for i in range(count)]
        axes.plot(r.distribution, shares, label=r.name.replace("latency p50, ", ""))
    axes.set_xlabel("latency, ms")
    axes.set_ylabel("share of frames")
    axes.legend()
    return _save(figure, folder, "performance-latency.svg")


def _scaling(readings: Sequence[Reading], simulated: Tables, folder: Path) -> str:
    """FPS against devices: logical ones of one GPU, measured, and GPUs of a simulation, dashed."""
    curves: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for r in readings:
        if (m := SCALING.fullmatch(r.name)) and r.value is not None:
            label = f"measured, logical devices of one GPU: {m['model']}"
            curves.setdefault((label, "-"), []).append((int(m["devices"]), r.value))
    for row in (row for rows in simulated.values() for row in rows):
        if m := SIMULATED.fullmatch(row["name"]):
            label = f"simulated: {m['model']}, {m['steps']} steps"
            curves.setdefault((label, "--"), []).append((int(m["devices"]), row["value"]))
    if not curves:
        return ""
    figure, axes = _figure()
    for (label, line), points in curves.items():
        axes.plot(*zip(*sorted(points), strict=True), line, marker="o", label=label)
    axes.set_xlabel("devices")
    axes.set_ylabel("frames/s")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="x-small")
    return _save(figure, folder, "performance-scaling.svg")


def _processor(cpus: Tables, folder: Path) -> str:
    """Milliseconds a chunk spends in each unit of the demonstration engine, on each processor."""
    tables = {
        title: [(r["name"], r["value"]) for r in rows if r["unit"] == "ms/chunk"]
        for title, rows in cpus.items()
        if title.startswith("stream")
    }
    tables = {title: units for title, units in tables.items() if units}
    if not tables:
        return ""
    figure, axes = _figure()
    names = list(dict.fromkeys(name for units in tables.values() for name, _ in units))
    thick = 0.8 / len(tables)
    for i, (title, units) in enumerate(tables.items()):
        places = [names.index(name) + thick * (i - (len(tables) - 1) / 2) for name, _ in units]
        axes.barh(places, [value for _, value in units], thick, label=title)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("ms per chunk, on the processor")
    axes.invert_yaxis()
    axes.legend(fontsize="x-small")
    return _save(figure, folder, "performance-processor.svg")
