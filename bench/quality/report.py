"""Findings as lines with a bar, as JSON rows, and as sections of docs/quality.md that are written
between their marks and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from bench.quality.clips import Clip
from bench.table import Row, publish


@dataclass(frozen=True, slots=True)
class Line:
    """One number, and what it should be at least or at most."""

    name: str
    value: float
    unit: str
    least: float | None = None
    most: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """None without a bar."""
        if self.least is not None:
            return self.value >= self.least
        return None if self.most is None else self.value <= self.most

    @property
    def bar(self) -> str:
        if self.least is not None:
            return f"≥ {self.least:g}"
        return "" if self.most is None else f"≤ {self.most:g}"


@dataclass(frozen=True, slots=True)
class Section:
    """What one question gave: lines, at most one wider table (its first row is the heading), and
    pictures by the names under which they lie beside the document.
    """

    name: str
    lines: Sequence[Line]
    table: Sequence[Sequence[str]] = ()
    pictures: Sequence[str] = ()


def tell(section: Section, out: Path, document: Path | None) -> None:
    """Print a section, write its rows, and put it into the document."""
    rows = [
        Row(line.name, line.value, line.unit, 1, line.least or line.most, _told(line))
        for line in section.lines
    ]
    publish(f"quality: {section.name}", rows, out / f"quality-{section.name}.jsonl")
    for cells in section.table:
        print(" | ".join(cells))
    if document is not None:
        insert(document, section.name, markdown(section))


def markdown(section: Section) -> str:
    """A section as tables and pictures."""
    parts = []
    if section.table:
        parts.append(_grid(section.table))
    if section.lines:
        cells = [["measurement", "value", "bar", "", "note"]]
        for line in section.lines:
            verdict = {None: "", True: "met", False: "**not met**"}[line.met]
            value = f"{line.value:.4g} {line.unit}"
            cells.append([line.name, value, line.bar, verdict, line.note])
        parts.append(_grid(cells))
    parts += [f"![{section.name}]({name})" for name in section.pictures]
    return "\n\n".join(parts)


def insert(document: Path, name: str, text: str) -> None:
    """Put `text` between the marks of a section, which must be there once."""
    start, stop = f"<!-- {name}: written by bench.quality -->", f"<!-- /{name} -->"
    before, found, rest = document.read_text().partition(start)
    _, ended, after = rest.partition(stop)
    if not (found and ended):
        raise ValueError(f"{document}: got no marks {start} ... {stop}, expected both")
    document.write_text(f"{before}{start}\n\n{text}\n\n{stop}{after}")


def write_picture(path: Path, picture: Clip) -> None:
    """JPEG or PNG by its suffix; picture uint8 [H, W, 3] RGB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    quality = [cv2.IMWRITE_JPEG_QUALITY, 80] if path.suffix == ".jpg" else []
    if not cv2.imwrite(str(path), np.ascontiguousarray(picture[..., ::-1]), quality):
        raise OSError(f"{path}: the picture cannot be written")


def _told(line: Line) -> str:
    verdict = {None: "", True: "met", False: "NOT met"}[line.met]
    return " ".join(part for part in (line.bar, verdict, line.note) if part)


def _grid(cells: Sequence[Sequence[str]]) -> str:
    rule = ["---"] * len(cells[0])
    return "\n".join(f"| {' | '.join(row)} |" for row in [cells[0], rule, *cells[1:]])
