"""The batch controller: given events and a clock it decides what each stage runs next. It touches
no device; production and simulation call the same object, and the caller serialises the calls.

Events go in, times in ns of one clock that never goes back:

    open(session, seat, terms)                      a session begins on a seat
    arrived(session, chunk, deadline_ns, now_ns)    a chunk waits to be encoded (`accepts` said so)
    withdraw(session, now_ns) -> dropped?           a newer chunk is there: drop the waiting one
    finished(stage, task, now_ns) -> jobs           a stage ran its part; jobs whose chunk has left
    failed(stage, task)                             a stage gave up on a task
    close(session)                                  what it still had waiting is forgotten

Tasks come out: `next(stage, now_ns)` is what an idle stage runs now, taken as begun, or None. A
stage that was told None asks again after the next event. A task visits the stages of
`routes.of(task.kind)` in order, each of which gets it from its own `next`, which may also drop a
chunk that would come too late: `dropped()` tells which since it was last asked. The index of a
dropped chunk is the next one's. `admit(terms, now_ns)` says whether one more session fits.

Predictions are a `cost.Timetable`, corrected by what `finished` reports; without one they are
learnt. A `log` is told every event and every decision; `replay` plays it back.
"""

from .admission import Admission
from .controller import Scheduler
from .journal import replay
from .records import HANDOVER_DEPTH, Decision, Event, Log, Routes, Task, Terms

__all__ = [
    "HANDOVER_DEPTH",
    "Admission",
    "Decision",
    "Event",
    "Log",
    "Routes",
    "Scheduler",
    "Task",
    "Terms",
    "replay",
]
