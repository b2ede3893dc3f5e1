"""The chunks of one session on their way along its stations.

Station 0 = arrived, 1 + step = waits for a denoising step, `rows + 1` = waits to be decoded,
`rows + 2` = out; a chunk of few steps skips rows. A station has a few places; chunk c uses place
c modulo their number, so nothing queues without bound and no place is ever searched for. A pass
reserves its landing place when it begins, which is why passes on their way can always land.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..frame import Job, Kind
from .records import Terms

ARRIVED = 0

LOSSES_KEPT = 0.9
LOSS_NS = 250_000_000
ARRIVALS_KEPT = 4
"""Arrivals that tell the rate of a session: about a second of a live stream."""
LEAST_SPAN_NS = 50_000_000
"""Between the first and the last of them."""


@dataclass(slots=True)
class Passage:
    """A chunk on its way. `station` is where it waits, or where its running pass began."""

    chunk: int
    steps: int
    deadline_ns: int | None
    due_ns: int
    """The deadline, or for want of one the end of its patience."""
    order: int
    station: int = ARRIVED
    running: bool = False
    position: int = 0
    """Of the stage in its route that the running pass has reached."""
    predicted_ns: float | None = None
    """When it will have left, as thought when its encoding began."""

    @property
    def kind(self) -> Kind:
        """Of the pass that takes it onwards."""
        if self.station == ARRIVED:
            return "encode"
        return "denoise" if self.station <= self.steps else "decode"


@dataclass(slots=True)
class Line:
    """One session. `passages` are in the order of its chunks."""

    session: int
    seat: int
    terms: Terms
    rows: int
    places: int
    passages: dict[int, Passage] = field(default_factory=dict)
    held: dict[tuple[int, int], int] = field(default_factory=dict)
    """(Station, place) -> the chunk that occupies or has reserved it."""
    losses: float = 0.0
    """Chunks dropped, forgotten by and by as others begin."""
    arrivals_ns: deque[int] = field(default_factory=lambda: deque(maxlen=ARRIVALS_KEPT))

    def job(self, passage: Passage) -> Job:
        """The pass that takes a chunk onwards, as a record."""
        step = passage.station - 1 if passage.station <= self.rows else passage.steps
        row = self.seat * self.rows + step
        return Job(
            self.session, self.seat, passage.chunk, step, passage.steps, row, passage.deadline_ns
        )

    def waiting(self) -> Passage | None:
        """The chunk that waits to be encoded: at most one."""
        if not self.passages:
            return None
        last = next(reversed(self.passages.values()))
        return last if last.station == ARRIVED and not last.running else None

    def begun(self) -> Iterator[Passage]:
        """The chunks that do not wait to be encoded any more."""
        return (p for p in self.passages.values() if p.station != ARRIVED or p.running)

    def arrive(self, passage: Passage) -> None:
        """A new chunk waits to be encoded."""
        assert self.waiting() is None
        self.passages[passage.chunk] = passage

    def drop(self, passage: Passage) -> None:
        """A waiting chunk is not encoded. Its index is the next one's, so indices have no gap."""
        del self.passages[passage.chunk]
        self.losses += 1

    def turn(self, passage: Passage) -> tuple[int, float, int]:
        """What the turn of a waiting chunk goes by, smaller is sooner: priority, then earliest due
        first, but who lost more comes sooner, which evens out the share that equals lose.
        """
        due_ns = passage.due_ns - self.losses * LOSS_NS
        return -self.terms.priority, due_ns, passage.order

    def rate_per_ns(self, now_ns: int) -> float:
        """Chunks that arrive per ns, of late; not more than the last gap, or the one that there is
        now, says: a slow source is known to be slow before it has sent as many chunks again. 0 of
        what came at once: that is no rate.
        """
        times = self.arrivals_ns
        if not times or times[-1] - times[0] < LEAST_SPAN_NS:
            return 0.0
        mean_ns = (times[-1] - times[0]) / (len(times) - 1)
        return 1 / max(mean_ns, times[-1] - times[-2], now_ns - times[-1])

    def ready(self) -> Iterator[Passage]:
        """Chunks whose next pass may begin, oldest first: at most one per station. Nothing
        overtakes: a chunk of few steps waits for its elders before it may go to be decoded.
        """
        seen: set[int] = set()
        elders_decode = True
        for passage in self.passages.values():
            target = self._target(passage)
            if not passage.running and passage.station not in seen:
                seen.add(passage.station)
                landing = self._place(target, passage)
                if landing not in self.held and (elders_decode or target <= self.rows):
                    yield passage
            elders_decode &= target > self.rows and (passage.running or target > self.rows + 1)

    def begin(self, passage: Passage) -> None:
        """Its pass begins: the landing place is reserved. Frames travel in the task, so a further
        chunk may arrive.
        """
        passage.running = True
        passage.position = 0
        self.held[self._place(self._target(passage), passage)] = passage.chunk
        if passage.station == ARRIVED:
            self.losses *= LOSSES_KEPT

    def leave(self, passage: Passage) -> None:
        """The first stage of its route has read its inputs."""
        self.held.pop(self._place(passage.station, passage), None)

    def land(self, passage: Passage) -> bool:
        """The last stage of its route is done. Returns whether the chunk has left the chain."""
        passage.station = self._target(passage)
        passage.running = False
        if passage.station <= self.rows + 1:
            return False
        del self.held[self._place(passage.station, passage)]
        del self.passages[passage.chunk]
        return True

    def _target(self, passage: Passage) -> int:
        station = passage.station
        if station <= self.rows:
            return station + 1 if station < passage.steps else self.rows + 1
        return station + 1

    def _place(self, station: int, passage: Passage) -> tuple[int, int]:
        return station, passage.chunk % self.places
