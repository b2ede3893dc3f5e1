"""What goes into the controller and what comes out of it, as frozen records."""

from __future__ import annotations

from dataclasses import dataclass

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
