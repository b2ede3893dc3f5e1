"""Readings and the file that keeps them: one JSON object a line, appended as soon as it is known.

A reading is a value, or the reason why there is none. Nothing is overwritten; the newest row of a
name and key counts.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Outcome = Literal["measured", "refused", "failed"]
"""A value; no value for a reason that another run would find again; no value for one that it may
not.
"""


@dataclass(frozen=True, slots=True)
class Reading:
    """One number (median of `runs`), or the reason for none. `limit` is the best possible value.

    `distribution` holds what a single number hides: latencies in ms, sorted.
    """

    name: str
    value: float | None
    unit: str
    runs: int = 1
    limit: float | None = None
    reason: str = ""
    outcome: Outcome = "measured"
    distribution: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if (self.value is None) != (self.outcome != "measured"):
            raise ValueError(f"{self.name}: got {self.value}, which is not {self.outcome}")
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"{self.name}: got {self.value}, expected a finite number")
        if self.value is None and not self.reason:
            raise ValueError(f"{self.name}: got no value and no reason, expected one of them")


def refused(name: str, reason: object) -> Reading:
    """What this machine or this version cannot do."""
    return Reading(name, None, "", 0, reason=one_line(reason), outcome="refused")


def failed(name: str, reason: object) -> Reading:
    """What broke: the next run tries again."""
    return Reading(name, None, "", 0, reason=one_line(reason), outcome="failed")


def one_line(reason: object) -> str:
    """The first line of a message, with the kind of error before it."""
    text = (
        f"{type(reason).__name__}: {reason}" if isinstance(reason, BaseException) else str(reason)
    )
    return (text.strip().splitlines() or ["no message"])[0][:300]


@dataclass(frozen=True, slots=True)
class Row:
    """A reading with where it comes from. `key` names machine, libraries and code; `last` says that
    its measure ended with it.
    """

    section: str
    measure: str
    key: str
    reading: Reading
    machine: Mapping[str, str]
    last: bool = True


class Rows:
    """The rows of one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows = list(read(path)) if path.is_file() else []

    def __iter__(self) -> Any:
        return iter(self._rows)

    def append(self, rows: Iterable[Row]) -> None:
        """Write rows down before anything else is measured; a line that was cut before is ended."""
        rows = list(rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                file.write(b"" if file.read() == b"\n" else b"\n")
            for row in rows:
                fields = dataclasses.asdict(row)
                line = json.dumps(fields | fields.pop("reading"), sort_keys=True)
                file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._rows += rows

    def answered(self, measure: str, key: str) -> bool:
        """Whether a measure was taken to its end with a key that begins so, and nothing broke the
        last time.
        """
        answered = broken = False
        for row in self._rows:
            if row.measure == measure and row.key.startswith(key):
                broken |= row.reading.outcome == "failed"
                if row.last:
                    answered, broken = not broken, False
        return answered

    def newest(self) -> dict[str, Row]:
        """The last row of every name, without failures of a measure that was taken since."""
        return {
            row.reading.name: row
            for row in self._rows
            if row.reading.outcome != "failed" or not self.answered(row.measure, row.key)
        }


def read(path: Path) -> Iterable[Row]:
    """Rows of a file. A line that was cut, as that of a process that was killed, is left out; any
    other that is no row raises ValueError with its number.
    """
    fields = {f.name for f in dataclasses.fields(Reading)}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            data = json.loads(line)
        except json.JSONDecodeError:
            continue
        try:
            inner = {name: data.pop(name) for name in fields}
            inner["distribution"] = tuple(inner["distribution"])
            yield Row(reading=Reading(**inner), **data)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}:{number}: {one_line(error)}; expected a row") from None
