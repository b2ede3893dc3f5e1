"""What a session needs of its pipeline, and what it tells of itself."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from .metrics import Report
from .work import Work


class Changed(threading.Condition):
    """The one condition of a pipeline. Event loops listen to it beside the threads that wait."""

    def __init__(self) -> None:
        super().__init__()
        self.listeners: set[Callable[[], None]] = set()

    def notify_all(self) -> None:
        super().notify_all()
        for listener in self.listeners:
            listener()


class Host(Protocol):
    """What a session needs of its pipeline. Methods are called with `changed` held."""

    changed: Changed

    def accepts(self, session: int) -> bool:
        """Whether a further chunk may be submitted."""
        ...

    def submit(self, work: Work, deadline_ns: int | None) -> None:
        """A chunk waits to be encoded."""
        ...

    def withdraw(self, session: int) -> None:
        """A newer chunk is complete: the one that waits may be dropped."""
        ...

    def steps(self, session: int) -> tuple[int, int]:
        """(Steps that its next chunk gets, level of degradation)."""
        ...

    def release(self, session: int) -> None:
        """The session ends; returns once nothing of it runs, or a stage hangs."""
        ...


State = Literal["open", "finished", "failed", "closed"]


@dataclass(frozen=True, slots=True)
class SessionStatus:
    """A session now: `steps` are those that the next chunk gets at this `level` of degradation (0 =
    none); motion score and noise scale are of the newest chunk, None before there is one.
    """

    number: int
    state: State
    steps: int
    level: int
    motion_score: float | None
    noise_scale: float | None
    report: Report
