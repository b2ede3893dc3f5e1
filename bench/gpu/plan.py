"""What is measured, in which order and in how many sections: pure lists, nothing runs here.

A section is a process of its own and ends within `SECTION_S`. A measure is what is resumed: it is
taken to its end, or again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.gpu.record import Reading

SECTION_S = 480
"""Most that one section may take."""
QUICK_S = 120
"""Most that the first section is expected to take."""

Taking = Callable[[], Iterable[Reading]]


@dataclass(frozen=True, slots=True)
class Measure:
    """Something to take: `what` for a reader, `seconds` expected, `take` the work itself.

    `product` is what it leaves for the measures that name it in `needs`. A machine may have the
    rows of another that is gone, but not its products.
    """

    name: str
    what: str
    seconds: int
    take: Taking
    needs: tuple[str, ...] = ()
    product: Path | None = None

    @property
    def limit_s(self) -> int:
        """When it is stopped: no expectation here has been measured, so at twice the time, and not
        before libraries are read from a disk that nobody has read yet.
        """
        return min(SECTION_S - 20, max(60, 2 * self.seconds))


@dataclass(frozen=True, slots=True)
class Section:
    """Measures that share a process."""

    name: str
    measures: tuple[Measure, ...]

    @property
    def seconds(self) -> int:
        return sum(m.seconds for m in self.measures)

    @property
    def limit_s(self) -> int:
        """When the process is killed, if it has not stopped its measures itself."""
        return min(SECTION_S, sum(m.limit_s for m in self.measures) + 20)


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


def missing(
    sections: Sequence[Section], answered: Collection[str], wanted: Collection[str] | None = None
) -> tuple[Section, ...]:
    """The sections that are left, each with what is left of it: what is not answered in those that
    are `wanted` (None: all), and what that needs and is not there.
    """
    left: set[str] = set()
    for section in reversed(sections):
        for m in reversed(section.measures):
            if m.name not in answered and (wanted is None or section.name in wanted):
                left.add(m.name)
            elif m.name in left and m.product is not None and m.product.exists():
                left.remove(m.name)
            if m.name in left:
                left.update(m.needs)
    cut = (replace(s, measures=tuple(m for m in s.measures if m.name in left)) for s in sections)
    return tuple(section for section in cut if section.measures)
