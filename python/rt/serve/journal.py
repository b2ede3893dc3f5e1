"""What the server says while it runs: one line per event, plain or JSON. No prompts, no pictures,
no addresses of clients.
"""

from __future__ import annotations

import json
import sys
import threading
import time
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
