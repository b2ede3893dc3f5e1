"""Which chunks take a denoising step together: those that stand in adjacent rows and are ready. It
knows who sits where and chooses nobody to begin with.
"""

from __future__ import annotations

from .forecast import Forecast
from .line import Line, Passage


class Batches:
    """Owns the order of the seats."""

    def __init__(self, rows_per_seat: int, max_batch: int, forecast: Forecast) -> None:
        self._rows_per_seat = rows_per_seat
        self._max_batch = max_batch
        self._forecast = forecast
        self._on_seat: dict[int, Line] = {}

    def open(self, line: Line) -> None:
        """A session takes its seat."""
        assert line.seat not in self._on_seat
        self._on_seat[line.seat] = line

    def close(self, line: Line) -> None:
        """It leaves it."""
        del self._on_seat[line.seat]

    def around(self, line: Line, passage: Passage, now_ns: int) -> list[tuple[Line, Passage]]:
        """The run of adjacent ready rows around a job, as long as the profiles allow and as the
        batch still meets the deadline of every member that could meet it alone. Where a batch
        gains no time, whoever has a deadline goes alone.
        """
        members = [(line, passage)]
        if passage.deadline_ns is not None and not self._forecast.batches_gain:
            return members
        first = last = line.job(passage).row
        least = self._slack(passage, now_ns)
        while len(members) < self._max_batch:
            joins, at = self._in_row(first - 1), 0
            if joins is None:
                joins, at = self._in_row(last + 1), len(members)
            if joins is None:
                break
            least = min(least, self._slack(joins[1], now_ns))
            if self._forecast.pass_ns("denoise", len(members) + 1)[1] > least:
                break
            members.insert(at, joins)
            first, last = (first - 1, last) if at == 0 else (first, last + 1)
        return members

    def _slack(self, passage: Passage, now_ns: int) -> float:
        """How long its next pass may take; no limit where it is late anyhow."""
        if passage.deadline_ns is None:
            return float("inf")
        after = self._forecast.path_ns(passage.steps, passage.station + 1)
        slack = passage.deadline_ns - now_ns - after
        return slack if self._forecast.pass_ns("denoise", 1)[1] <= slack else float("inf")

    def _in_row(self, row: int) -> tuple[Line, Passage] | None:
        """The chunk that is ready for the step of `row`, if any."""
        seat, step = divmod(row, self._rows_per_seat)
        line = self._on_seat.get(seat)
        for passage in () if line is None else line.ready():
            if passage.station == step + 1 and passage.kind == "denoise":
                assert line is not None
                return line, passage
        return None
