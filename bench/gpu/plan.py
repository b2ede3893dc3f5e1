"""What is measured, in which order and in how many sections: pure lists, nothing runs here.

A section is a process of its own and ends within `SECTION_S`. A measure is what is resumed: it is
taken or it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from bench.gpu.record import Reading

SECTION_S = 480
"""Most that one section may take."""
QUICK_S = 120
"""Most that the first section may take."""

Taking = Callable[[], Iterable[Reading]]


@dataclass(frozen=True, slots=True)
class Measure:
    """Something to take: `what` for a reader, `seconds` expected, `take` the work itself."""

    name: str
    what: str
    seconds: int
    take: Taking


@dataclass(frozen=True, slots=True)
class Section:
    """Measures that share a process."""

    name: str
    measures: tuple[Measure, ...]

    @property
    def seconds(self) -> int:
        return sum(m.seconds for m in self.measures)


def pack(name: str, measures: Sequence[Measure], limit: int = SECTION_S) -> tuple[Section, ...]:
    """Measures in order, cut into sections that are expected to end within 80 % of `limit`.

    Raises ValueError for a measure that is longer than that.
    """
    room = limit * 8 // 10
    bins: list[list[Measure]] = []
    for measure in measures:
        if measure.seconds > room:
            raise ValueError(f"{measure.name}: {measure.seconds} s, expected at most {room} s")
        if not bins or sum(m.seconds for m in bins[-1]) + measure.seconds > room:
            bins.append([])
        bins[-1].append(measure)
    numbered = len(bins) > 1
    return tuple(
        Section(f"{name}-{i}" if numbered else name, tuple(b)) for i, b in enumerate(bins, 1)
    )


def missing(sections: Sequence[Section], answered: Collection[str]) -> tuple[Section, ...]:
    """The sections that are left, each with what is left of it."""
    left = (
        Section(s.name, tuple(m for m in s.measures if m.name not in answered)) for s in sections
    )
    return tuple(section for section in left if section.measures)
