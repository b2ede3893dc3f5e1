"""What goes into the controller and what comes out of it, as frozen records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..frame import Job, Kind

HANDOVER_DEPTH = 2
"""Passes that may be at a later stage of a route at once: one running, one waiting."""


@dataclass(frozen=True, slots=True)
class Routes:
    """The stages that each kind of pass visits, in order. Every route has at least one stage."""

    encode: tuple[int, ...]
    denoise: tuple[int, ...]
    decode: tuple[int, ...]

    def of(self, kind: Kind) -> tuple[int, ...]:
        return {"encode": self.encode, "denoise": self.denoise, "decode": self.decode}[kind]

    @property
    def places(self) -> int:
        """Chunks that may stand at a station or be on their way to it: one for every stage of the
        route that leads there, so that all of them can work at once, and two that wait, so that
        batches of unlike size leave no gap.
        """
        return 2 + max(len(self.encode), len(self.denoise))

    @property
    def stages(self) -> int:
        return 1 + max(*self.encode, *self.denoise, *self.decode)


@dataclass(frozen=True, slots=True)
class Terms:
    """What a session asks for. `steps` per chunk, under load down to `min_steps`; a session of
    higher `priority` keeps its steps and its chunks longer. Without `latency_ns` (capture of a
    frame to its emission) there are no deadlines, drops or fewer steps; `fps` None: as they come.
    """

    steps: int
    min_steps: int = 1
    priority: int = 0
    fps: float | None = None
    latency_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """A decision: run this pass. Jobs of a denoising pass occupy the rows from `jobs[0].row`
    upwards, without a gap.
    """

    number: int
    kind: Kind
    jobs: tuple[Job, ...]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that the controller was told, for a log that can be replayed."""

    at_ns: int
    name: str
    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """Something that the controller decided: "run", "drop", "degrade", "recover", "admit" or
    "refuse", and why, in words with numbers.
    """

    at_ns: int
    what: str
    why: str
    session: int | None = None
    chunk: int | None = None
    stage: int | None = None

    def __str__(self) -> str:
        where = "" if self.stage is None else f" stage {self.stage}"
        whom = "" if self.session is None else f" session {self.session}"
        whom += "" if self.chunk is None else f" chunk {self.chunk}"
        return f"{self.at_ns * 1e-6:.1f} ms {self.what}{where}{whom}: {self.why}"


Log = Callable[[Event | Decision], None]
