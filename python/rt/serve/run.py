"""One `rt.Session` fed from a live source: a mailbox of one frame, and two threads.

The newest frame replaces one that waits; frames are decoded only when they are taken. It owns its
session and ends with it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import Error
from ..frame import Frame
from ..session import Session
from . import pace

Pixels = Callable[[], NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class Waiting:
    """A frame in the mailbox: its pixels are made when they are needed."""

    pixels: Pixels
    pts_s: float
    captured_ns: int


class Run:
    """From the first frame of one session to its end.

    `show` is called on a thread of the run for every restyled frame, `failed` once for an error of
    the source or of a stage.
    """

    def __init__(
        self,
        session: Session,
        fps: float,
        frames_per_chunk: int,
        show: Callable[[Frame], None],
        failed: Callable[[Error], None],
    ) -> None:
        self.session = session
        self.fps = fps
        self.replaced = 0
        self._frames_per_chunk = frames_per_chunk
        self._show, self._failed = show, failed
        self._changed = threading.Condition()
        self._waiting: Waiting | None = None
        self._over = False
        self._spacing_s = pace.SLACK / fps
        self._last_pts_s: float | None = None
        self._threads = [
            threading.Thread(target=work, name=f"live-{session.number}-{name}", daemon=True)
            for name, work in (("in", self._feed), ("out", self._drain))
        ]
        for thread in self._threads:
            thread.start()

    def offer(self, frame: Waiting) -> None:
        """Take the newest frame; one that still waited is replaced and counted."""
        with self._changed:
            if not pace.takes(frame.pts_s, self._last_pts_s, self._spacing_s):
                self.replaced += 1
                return
            self.replaced += self._waiting is not None
            self._waiting = frame
            self._changed.notify_all()

    def close(self) -> None:
        """End the session and wait for the threads, but not for one's own."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
        self.session.close()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def _feed(self) -> None:
        index = dropped = 0
        while (frame := self._take()) is not None:
            try:
                rgb = frame.pixels()
                start_s = time.perf_counter()
                self.session.push(Frame(rgb, index, frame.pts_s, frame.captured_ns))
            except Error as error:
                self._tell(error)
                return
            waited_s = time.perf_counter() - start_s
            index += 1
            before, dropped = dropped, self.session.report().frames_dropped
            with self._changed:
                self._last_pts_s = frame.pts_s
                spacing_s = pace.next_spacing(
                    self._spacing_s, waited_s, dropped - before, self._frames_per_chunk
                )
                self._spacing_s = max(spacing_s, pace.SLACK / self.fps)

    def _take(self) -> Waiting | None:
        with self._changed:
            self._changed.wait_for(lambda: self._over or self._waiting is not None)
            frame, self._waiting = self._waiting, None
            return None if self._over else frame

    def _drain(self) -> None:
        try:
            while (frame := self.session.pull()) is not None:
                self._show(frame)
        except Error as error:
            self._tell(error)

    def _tell(self, error: Error) -> None:
        with self._changed:
            if self._over:
                return
            self._over = True
            self._changed.notify_all()
        self._failed(error)
