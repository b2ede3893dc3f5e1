"""A session: one video from first frame to last. It owns all that outlives a chunk: grouping,
prompt, counters.

It refuses to touch a device: chunks go to its host (the pipeline), restyled frames come back.
`push` and `pull` may be called from different threads; all shared state is guarded by the host's
condition.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Generator, Iterable
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .chunking import Chunker
from .config import Prompt, SessionConfig, check_int, check_prompt
from .errors import ConfigError, Error
from .frame import Chunk, Frame, Job
from .host import Host, SessionStatus, State
from .intake import Intake
from .manifest import Geometry
from .metrics import ChunkRecord, Recorder, Report
from .pace import Pace, deadline_ns
from .prompt import PromptCourse, PromptEncoder
from .work import Work

READER_LEAVES_S = 5.0
"""How long the source of a stream that ends early may take to notice; a camera that hangs is left
behind.
"""

MOST_TRANSITION = 10_000
"""Chunks that a change of the prompt may take: each is embedded when it begins."""


class Session:
    """Made by `Pipeline.session`. Leaving its `with` block gives the seat back."""

    def __init__(
        self,
        host: Host,
        number: int,
        config: SessionConfig,
        steps: int,
        geometry: Geometry,
        warmup_frames: int,
        prompts: PromptEncoder,
    ) -> None:
        self.config = config
        self.steps = steps
        self.number = number
        self.remarks: list[str] = []
        """What the user should know: a cut prompt, a resized picture. One line each."""
        self.changed = host.changed
        self._host = host
        self._geometry = geometry
        self._prompt = PromptCourse(prompts, config.prompt)
        self.remarks += self._prompt.remarks
        self._intake = Intake(config, geometry)
        self._chunker = Chunker(number, config.start)
        self._recorder = Recorder(config.slo, warmup_frames)
        self._next_chunk = 0
        self._last_picture: NDArray[np.uint8] | None = None
        self._last_control: NDArray[np.float32] | None = None
        self._before: tuple[NDArray[np.uint8] | None, NDArray[np.float32] | None] = (None, None)
        """The same as they were before the newest chunk: it may be dropped."""
        self._ready: deque[Frame] = deque()
        self._pending = 0
        self._ended = False
        self._closed = self._released = False
        self._failure: Error | None = None
        self.pace = Pace(config.slo)

    # Frames in

    def push(self, frame: Frame | Any, timeout_s: float | None = None) -> None:
        """Take the next frame: an `rt.Frame`, or any uint8 [H, W, 3] array (NumPy, PIL, torch,
        DLPack), which is copied.

        Without an SLO it blocks while the session already holds as many chunks as it may, and
        raises TimeoutError after `timeout_s` (the frame was not taken). With one, what cannot be
        taken is dropped and counted. Raises SourceError for something that is no picture, and the
        error of a failed stage.
        """
        if self._ended:
            raise ConfigError("the session is finished; open another with pipeline.session(...)")
        taken = self._intake.frame(frame)
        with self.changed:
            room = not self._chunker.completes or self._make_room(timeout_s)
            self._check_open()
            if not self._intake.count:
                self.remarks += self._intake.remark()
            self._intake.counted()
            self._recorder.frame_in(taken)
            if not room:
                self._recorder.dropped(1 + self._chunker.discard())
                return
            for chunk in self._chunker.push(taken):
                self._submit(chunk)

    def finish(self) -> None:
        """No further frame will come: what is grouped so far runs as the last, partial chunk."""
        with self.changed:
            self._wait_for_room(None, ready=False)
            for chunk in self._chunker.flush():
                self._submit(chunk)
            self._ended = True
            self.changed.notify_all()

    def update(self, *, prompt: Prompt, transition_chunks: int = 0) -> int:
        """Change the prompt in flight. Returns the index of the first chunk that it touches.

        The embeddings move linearly over `transition_chunks` chunks; 0 switches at once. Chunks
        already admitted keep their prompt.
        """
        check_int("transition_chunks", transition_chunks, 0, MOST_TRANSITION)
        check_prompt(prompt)
        target, remarks = self._prompt.embed(prompt)
        with self.changed:
            self._check_open()
            self.remarks += remarks
            start = self._prompt.stay()
        # An engine runs here, so the host's condition is not held.
        way = self._prompt.way(start, target, transition_chunks)
        with self.changed:
            self._prompt.go(way)
            return self._next_chunk

    # Frames out

    def pull(self, timeout_s: float | None = None) -> Frame | None:
        """The next restyled frame, in order; None after the last. With an SLO, paced by pts.

        Raises TimeoutError after `timeout_s`, and the error of a failed stage once what it left is
        delivered.
        """
        with self.changed:
            if not self.changed.wait_for(self._has_news, timeout_s):
                raise TimeoutError(f"no frame within {timeout_s} s")
            frame = self.take()
            if frame is None:
                return None
            # Whoever closes the session does not wait for a frame's turn.
            self.changed.wait_for(lambda: self._closed, self.pace.pause_s(frame))
            return frame if self.emitted(frame) else None

    def take(self) -> Frame | None:
        """The next restyled frame, not yet at its turn; None after the last. Raises TimeoutError
        where there is none yet. `pace` knows how far its turn is, `emitted` is told that it came.
        """
        with self.changed:
            if not self._has_news():
                raise TimeoutError("no frame yet")
            if not self._ready:
                if self._failure is not None:
                    raise self._failure
                return None
            frame = self._ready.popleft()
            self.changed.notify_all()
            return frame

    def emitted(self, frame: Frame) -> bool:
        """A frame is handed to whoever asked for it. False where the session was closed meanwhile:
        it was counted as dropped, and nobody may see it.
        """
        with self.changed:
            if not self._closed:
                self._recorder.emitted(frame, time.perf_counter_ns())
            return not self._closed

    def stream(self, frames: Iterable[Frame | Any]) -> Generator[Frame, None, None]:
        """Restyle an iterable. It is read on a thread of its own, so that a slow camera delays no
        finished frame.

        Leaving it early closes the session. An error of the iterable is raised after everything
        that was read before it has been delivered.
        """
        failure: list[BaseException] = []
        feeder = self.feeder(frames, failure)
        try:
            while (frame := self.pull()) is not None:
                yield frame
        except BaseException:
            self.close()
            feeder.join(READER_LEAVES_S)
            raise
        feeder.join()
        if failure and not self._closed:
            raise failure[0]

    def feeder(
        self, frames: Iterable[Frame | Any], failure: list[BaseException]
    ) -> threading.Thread:
        """A thread that pushes `frames` and finishes; what they raise ends up in `failure`."""

        def feed() -> None:
            try:
                for frame in frames:
                    self.push(frame)
            except BaseException as error:  # noqa: BLE001 - carried to the consumer and raised there
                failure.append(error)
            finally:
                self.finish_quietly()

        thread = threading.Thread(target=feed, name=f"session-{self.number}-source", daemon=True)
        thread.start()
        return thread

    # Called by the host, with `changed` held

    def deliver(self, job: Job, work: Work, pictures: NDArray[np.uint8]) -> None:
        """A chunk is done: its restyled pictures, uint8 [T, H, W, 3]."""
        for frame, picture in zip(work.chunk.frames, pictures, strict=True):
            self._ready.append(Frame(picture, frame.index, frame.pts_s, frame.captured_ns))
        self._pending -= 1
        score, scale, timestep, sigma = (float(value) for value in work.control)
        service_ms = sum(work.passes_ns) * 1e-6
        self._recorder.chunk(
            ChunkRecord(work.chunk.index, score, scale, timestep, sigma, job.steps, service_ms)
        )

    def dropped(self, work: Work) -> None:
        """A waiting chunk, the newest, was dropped before it was encoded: the next one takes its
        place.
        """
        self._recorder.dropped(len(work.chunk.frames))
        self._pending -= 1
        self._chunker.forget(work.chunk)
        self._last_picture, self._last_control = self._before
        self._next_chunk = work.chunk.index

    def fail(self, error: Error) -> None:
        """A stage that this session depends on has failed."""
        self._failure = self._failure or error

    # Reports and end

    def report(self) -> Report:
        """All that was measured so far (REFERENCE section 5)."""
        with self.changed:
            return self._recorder.report()

    def status(self) -> SessionStatus:
        """How it stands now."""
        with self.changed:
            steps, level = (self.steps, 0) if self._closed else self._host.steps(self.number)
            report = self._recorder.report()
            last = report.chunks[-1] if report.chunks else None
            motion, scale = (last.motion_score, last.noise_scale) if last else (None, None)
            return SessionStatus(self.number, self._state(), steps, level, motion, scale, report)

    def close(self) -> None:
        """Give the seat back; frames still in flight count as dropped. Idempotent: whoever calls it
        while another thread does returns when that is done.
        """
        with self.changed:
            if self._closed:
                self.changed.wait_for(lambda: self._released)
                return
            self._closed = True
            self._recorder.dropped(self._recorder.report().frames_in_flight)
            self._ready.clear()
            self.changed.notify_all()
            try:
                self._host.release(self.number)
            finally:
                self._released = True
                self.changed.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # Inside

    def _state(self) -> State:
        if self._closed:
            return "closed"
        if self._failure is not None:
            return "failed"
        return "finished" if self._ended else "open"

    def _make_room(self, timeout_s: float | None) -> bool:
        """Before a chunk is complete. Whether it may come; it is to be dropped otherwise."""
        if self.config.slo is None:
            self._wait_for_room(timeout_s, ready=True)
            return True
        if not self._few_ready():  # Nobody pulls: what is restyled now would only grow old.
            return False
        if not self._is_over() and not self._host.accepts(self.number):
            self._host.withdraw(self.number)
        return True

    def _wait_for_room(self, timeout_s: float | None, *, ready: bool) -> None:
        """One chunk may wait to be encoded; finished frames that nobody pulls hold up `push`, but
        never a chunk that was already taken: one thread may push, finish and then pull.
        """

        def room() -> bool:
            held = ready and not self._few_ready()
            return self._is_over() or (self._host.accepts(self.number) and not held)

        if not self.changed.wait_for(room, timeout_s):
            raise TimeoutError(f"the session took no chunk within {timeout_s} s; pull its frames")

    def _few_ready(self) -> bool:
        """What is done is no more than two chunks, or waits for its turn rather than for somebody
        who pulls it.
        """
        if len(self._ready) < 2 * self._geometry.frames_per_chunk:
            return True
        now_ns = time.perf_counter_ns()
        return self.pace.turn_ns(self._ready[0], now_ns) > now_ns

    def _is_over(self) -> bool:
        return self._failure is not None or self._closed

    def _submit(self, chunk: Chunk) -> None:
        self._wait_for_room(None, ready=False)
        self._check_open()
        work = Work(
            chunk,
            self.config,
            self._prompt.next(),
            tuple(self._intake.crop(frame.rgb) for frame in chunk.frames),
            self._last_picture if chunk.continues else None,
            np.zeros(4, np.float32),
            self._last_control if chunk.continues else None,
        )
        self._before = self._last_picture, self._last_control
        self._last_picture, self._last_control = work.pictures[-1], work.control
        self._next_chunk = chunk.index + 1
        self._pending += 1
        self._host.submit(work, deadline_ns(self.config.slo, chunk.frames[0]))

    def _has_news(self) -> bool:
        done = self._ended and self._pending == 0
        return bool(self._ready) or self._failure is not None or self._closed or done

    def _check_open(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise ConfigError("the session is closed; open another with pipeline.session(...)")

    def finish_quietly(self) -> None:
        """`finish`, also where the session is over: the consumer is told by `pull`."""
        try:
            self.finish()
        except Error:
            with self.changed:
                self._ended = True
                self.changed.notify_all()
