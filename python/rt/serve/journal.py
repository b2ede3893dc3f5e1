"""What the server says while it runs: one line per event, plain or JSON. No prompts, no pictures,
no addresses of clients.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Literal, TextIO

Style = Literal["text", "json", "off"]


class Journal:
    """Events on standard error, or on `out`."""

    def __init__(self, style: Style, out: TextIO | None = None) -> None:
        self._style = style
        self._out = out or sys.stderr
        self._lock = threading.Lock()

    def note(self, event: str, **values: str | float | bool) -> None:
        """One event with its numbers."""
        if self._style == "off":
            return
        if self._style == "json":
            line = json.dumps({"time_s": round(time.time(), 3), "event": event, **values})
        else:
            line = " ".join([event, *(f"{name}={value}" for name, value in values.items())])
        with self._lock:
            print(line, file=self._out, flush=True)


class Lines(logging.Handler):
    """What libraries log, as events of the journal. Of an exception only its type and place: its
    words may hold what a client sent.
    """

    def __init__(self, journal: Journal) -> None:
        super().__init__(logging.WARNING)
        self._journal = journal

    def emit(self, record: logging.LogRecord) -> None:
        said = {"level": record.levelname.lower(), "source": record.name}
        if record.exc_info is not None and (error := record.exc_info[1]) is not None:
            place = traceback.extract_tb(error.__traceback__)[-1:]
            said["error"] = " ".join(
                [type(error).__name__, *(f"{Path(p.filename).name}:{p.lineno}" for p in place)]
            )
        else:
            said["text"] = record.getMessage().splitlines()[0]
        self._journal.note("log", **said)
