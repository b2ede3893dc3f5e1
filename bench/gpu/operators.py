"""The device operators as readings: what `python -m bench.ops --device` prints."""

from __future__ import annotations

from collections.abc import Iterator

from bench.gpu.record import Reading
from bench.gpu.targets import MOVING, operator, share_of_copy
from bench.ops import device, on_device


def readings(runs: int = 15) -> Iterator[Reading]:
    """Each in ms; those that only move memory also as a share of the copy's rate."""
    for row in on_device(device()[0], runs):
        if row.limit is None:
            yield Reading(row.name, row.value, row.unit, runs)
            continue
        yield Reading(operator(row.name), float(row.note.split()[0]), "ms", runs)
        if row.name in MOVING:
            yield Reading(share_of_copy(row.name), row.value / row.limit, "of 1", runs, 1.0)
