"""Rows -> what is printed: every reading, and the comparison with what others and we ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from bench.gpu.record import Row
from bench.gpu.targets import ALL, GPU, PUBLISHED, TARGETS, Target


@dataclass(frozen=True, slots=True)
class Compared:
    """One target and what was measured of it; None where nothing was."""

    target: Target
    value: float | None
    reason: str
    gpu: str = GPU

    @property
    def verdict(self) -> str:
        """Which mark was reached, best first. There are none for another GPU."""
        if self.value is None:
            return "not measured"
        if GPU not in self.gpu:
            return f"no mark for {self.gpu}"
        asked = {"moonshot": self.target.moonshot, "commit": self.target.commit}
        marks = {name: mark for name, mark in asked.items() if mark is not None}
        for name, mark in marks.items():
            if _reaches(self.value, mark, self.target.larger_is_better):
                return name
        return "missed" if marks else "no mark"

    @property
    def share(self) -> float | None:
        """Of the limit: 1 is the limit, less is slower."""
        return _ratio(self.value, self.target.limit, self.target.larger_is_better)

    @property
    def gain(self) -> float | None:
        """Against the published number: above 1 is better."""
        return _ratio(self.value, self.target.published, self.target.larger_is_better)


def _reaches(value: float, mark: float, larger: bool) -> bool:
    return value >= mark if larger else value <= mark


def _ratio(value: float | None, other: float | None, larger: bool) -> float | None:
    if value is None or other is None or min(value, other) <= 0:
        return None
    return value / other if larger else other / value


def compare(rows: Mapping[str, Row], targets: Sequence[Target] = ALL) -> tuple[Compared, ...]:
    """Every target with its newest row."""
    found = []
    for target in targets:
        row = rows.get(target.name)
        if row is None:
            found.append(Compared(target, None, "no row"))
            continue
        reading = row.reading
        if reading.value is not None and reading.unit != target.unit:
            raise ValueError(f"{target.name}: got {reading.unit}, expected {target.unit}")
        gpu = row.machine.get("name", "")
        found.append(Compared(target, reading.value, reading.reason, gpu))
    return tuple(found)


def number(value: float | None) -> str:
    """Three figures, or a dash."""
    return "–" if value is None else f"{value:.3g}"


def print_all(rows: Mapping[str, Row], console: Console) -> None:
    """One table of readings, one of the comparison."""
    table = Table("measurement", "value", "unit", "share of limit", "remark", title="readings")
    for name, row in rows.items():
        r = row.reading
        share = None if r.value is None or r.limit is None else r.limit / r.value
        if r.unit in ("GB/s", "TFLOP/s", "frames/s", "of 1") and share:
            share = 1 / share
        table.add_row(name, number(r.value), r.unit, number(share), r.reason)
    console.print(table)
    headings = ("target", "unit", "ours", "published", "commit", "moonshot", "limit", "verdict")
    table = Table(*headings, title=f"published: {PUBLISHED}; the rest: {TARGETS}")
    for c in compare(rows):
        t = c.target
        numbers = (c.value, t.published, t.commit, t.moonshot, t.limit)
        table.add_row(t.name, t.unit, *map(number, numbers), c.verdict)
    console.print(table)
