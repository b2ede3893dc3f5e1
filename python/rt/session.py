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
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from .chunking import Chunker
from .config import Prompt, SessionConfig, check_prompt
from .errors import ConfigError, Error, SourceError
from .frame import Array, Chunk, Frame, Job
from .manifest import Geometry
from .metrics import ChunkRecord, Recorder, Report
from .prompt import Embeddings, PromptEncoder
from .stage import PromptContext, Work

DEFAULT_FPS = 16.0
"""Rate at which plain arrays are taken to follow each other when neither pts nor an SLO says so."""

READER_LEAVES_S = 5.0
"""How long the source of a stream that ends early may take to notice; a camera that hangs is left
behind.
"""


EMIT_MARGIN_NS = 5_000_000
"""How long before its deadline a paced frame is let go: a sleep may end a little late."""


class Host(Protocol):
    """What a session needs of its pipeline. Methods are called with `changed` held."""

    changed: threading.Condition

    def accepts(self, session: int) -> bool: ...
    def submit(self, work: Work, deadline_ns: int | None) -> None: ...
    def release(self, session: int) -> None: ...


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
        self._host = host
        self._geometry = geometry
        self._prompts = prompts
        self._embeddings, remarks = prompts.embed(config.prompt)
        self.remarks += remarks
        self._prompt = prompts.context(self._embeddings)
        self._transition: deque[tuple[Embeddings, PromptContext]] = deque()
        self._chunker = Chunker(number, config.start)
        self._recorder = Recorder(config.slo, warmup_frames)
        self._frames_in = 0
        self._shape: tuple[int, ...] | None = None
        self._next_chunk = 0
        self._last_picture: NDArray[np.uint8] | None = None
        self._last_control: NDArray[np.float32] | None = None
        self._ready: deque[Frame] = deque()
        self._pending = 0
        self._ended = False
        self._closed = False
        self._failure: Error | None = None
        self._pace_ns: int | None = None

    # Frames in

    def push(self, frame: Frame | Any, timeout_s: float | None = None) -> None:
        """Take the next frame: an `rt.Frame`, or any uint8 [H, W, 3] array (NumPy, PIL, torch,
        DLPack), which is copied.

        Blocks while the session already holds as many chunks as it may. Raises TimeoutError after
        `timeout_s` (the frame was not taken), SourceError for something that is no picture, and the
        error of a failed stage.
        """
        if self._ended:
            raise ConfigError("the session is finished; open another with pipeline.session(...)")
        taken = self._as_frame(frame)
        with self._host.changed:
            if self._chunker.completes:
                self._wait_for_room(timeout_s)
            self._check_open()
            if not self._frames_in:
                self._remark_size(taken)
            self._frames_in += 1
            self._recorder.frame_in(taken)
        for chunk in self._chunker.push(taken):
            self._submit(chunk)

    def finish(self) -> None:
        """No further frame will come: what is grouped so far runs as the last, partial chunk."""
        for chunk in self._chunker.flush():
            self._submit(chunk)
        with self._host.changed:
            self._ended = True
            self._host.changed.notify_all()

    def update(self, *, prompt: Prompt, transition_chunks: int = 0) -> int:
        """Change the prompt in flight. Returns the index of the first chunk that it touches.

        The embeddings move linearly over `transition_chunks` chunks; 0 switches at once. Chunks
        already admitted keep their prompt.
        """
        if transition_chunks < 0:
            raise ConfigError(f"transition_chunks: got {transition_chunks}, expected 0 or more")
        check_prompt(prompt)
        target, remarks = self._prompts.embed(prompt)
        with self._host.changed:
            self._check_open()
            self.remarks += remarks
            self._transition.clear()
            start = self._embeddings
        count = max(1, transition_chunks)
        shares = [np.float32((i + 1) / count) for i in range(count)]
        mixes = [(1 - share) * start + share * target for share in shares]
        # An engine runs here, so the host's condition is not held.
        transition = deque((mix, self._prompts.context(mix)) for mix in mixes)
        with self._host.changed:
            self._transition = transition
            return self._next_chunk

    # Frames out

    def pull(self, timeout_s: float | None = None) -> Frame | None:
        """The next restyled frame, in order; None after the last. With an SLO, paced by pts.

        Raises TimeoutError after `timeout_s`, and the error of a failed stage once what it left is
        delivered.
        """
        changed = self._host.changed
        with changed:
            if not changed.wait_for(self._has_news, timeout_s):
                raise TimeoutError(f"no frame within {timeout_s} s")
            if not self._ready:
                if self._failure is not None:
                    raise self._failure
                return None
            frame = self._ready.popleft()
            changed.notify_all()
        if self.config.slo is not None:
            self._wait_for_turn(frame)
        with changed:
            if not self._closed:  # `close` has counted it as dropped
                self._recorder.emitted(frame, time.perf_counter_ns())
        return frame

    def stream(self, frames: Iterable[Frame | Any]) -> Generator[Frame, None, None]:
        """Restyle an iterable. It is read on a thread of its own, so that a slow camera delays no
        finished frame.

        Leaving it early closes the session. An error of the iterable is raised after everything
        that was read before it has been delivered.
        """
        failure: list[BaseException] = []

        def feed() -> None:
            try:
                for frame in frames:
                    self.push(frame)
            except BaseException as error:  # noqa: BLE001 - carried to the consumer and raised there
                failure.append(error)
            finally:
                self._finish_quietly()

        feeder = threading.Thread(target=feed, name=f"session-{self.number}-source", daemon=True)
        feeder.start()
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

    # Called by the host, with `changed` held

    def deliver(self, job: Job, work: Work, pictures: NDArray[np.uint8]) -> None:
        """A chunk is done: its restyled pictures, uint8 [T, H, W, 3]."""
        for frame, picture in zip(work.chunk.frames, pictures, strict=True):
            self._ready.append(Frame(picture, frame.index, frame.pts_s, frame.captured_ns))
        self._pending -= 1
        score, scale, timestep, sigma = (float(value) for value in work.control)
        self._recorder.chunk(
            ChunkRecord(work.chunk.index, score, scale, timestep, sigma, job.steps)
        )

    def fail(self, error: Error) -> None:
        """A stage that this session depends on has failed."""
        self._failure = error

    # Reports and end

    def report(self) -> Report:
        """All that was measured so far (REFERENCE section 5)."""
        with self._host.changed:
            return self._recorder.report()

    def close(self) -> None:
        """Give the seat back; frames still in flight count as dropped. Idempotent."""
        with self._host.changed:
            if not self._closed:
                self._closed = True
                self._recorder.dropped(self._recorder.report().frames_in_flight)
                self._ready.clear()
                self._host.changed.notify_all()
                self._host.release(self.number)

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

    def _wait_for_room(self, timeout_s: float | None) -> None:
        if not self._host.changed.wait_for(lambda: self._is_over() or self._has_room(), timeout_s):
            raise TimeoutError(f"the session took no chunk within {timeout_s} s; pull its frames")

    def _is_over(self) -> bool:
        return self._failure is not None or self._closed

    def _submit(self, chunk: Chunk) -> None:
        changed, slo = self._host.changed, self.config.slo
        pictures = tuple(self._crop(frame.rgb) for frame in chunk.frames)
        with changed:
            # Frames that wait to be pulled hold up `push`, never a chunk that was already taken:
            # one thread may push, finish and then pull.
            changed.wait_for(lambda: self._is_over() or self._host.accepts(self.number))
            self._check_open()
            if self._transition:
                self._embeddings, self._prompt = self._transition.popleft()
            work = Work(
                chunk,
                self.config,
                self._prompt,
                pictures,
                self._last_picture if chunk.continues else None,
                np.zeros(4, np.float32),
                self._last_control if chunk.continues else None,
            )
            self._last_picture, self._last_control = pictures[-1], work.control
            self._next_chunk = chunk.index + 1
            self._pending += 1
            deadline = (
                None if slo is None else chunk.frames[0].captured_ns + round(slo.latency_ms * 1e6)
            )
            self._host.submit(work, deadline)

    def _has_room(self) -> bool:
        """One chunk may wait to be encoded; finished frames that nobody pulls hold it up."""
        return (
            self._host.accepts(self.number)
            and len(self._ready) < 2 * self._geometry.frames_per_chunk
        )

    def _has_news(self) -> bool:
        done = self._ended and self._pending == 0
        return bool(self._ready) or self._failure is not None or self._closed or done

    def _check_open(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise ConfigError("the session is closed; open another with pipeline.session(...)")

    def _finish_quietly(self) -> None:
        try:
            self.finish()
        except Error:  # The consumer sees the session's own failure in `pull`.
            with self._host.changed:
                self._ended = True
                self._host.changed.notify_all()

    def _wait_for_turn(self, frame: Frame) -> None:
        """Hold a frame until its pts is due, but never past its own deadline.

        A late frame moves the schedule back and an early deadline moves it forward again, so the
        rate is kept after a slip and the latency recovers.
        """
        assert self.config.slo is not None
        now = time.perf_counter_ns()
        pts_ns = round(frame.pts_s * 1e9)
        if self._pace_ns is not None:
            deadline = frame.captured_ns + round(self.config.slo.latency_ms * 1e6)
            due = min(self._pace_ns + pts_ns, deadline - EMIT_MARGIN_NS)
            if due > now:
                time.sleep((due - now) * 1e-9)
                now = due
        self._pace_ns = now - pts_ns

    def _as_frame(self, frame: Frame | Any) -> Frame:
        rgb: Array = frame.rgb if isinstance(frame, Frame) else _copied(frame)
        if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape:
            raise SourceError(
                f"frame {self._frames_in}: got {rgb.dtype} {list(rgb.shape)}, "
                "expected uint8 [H, W, 3]"
            )
        if self._shape not in (None, rgb.shape):
            raise SourceError(
                f"frame {self._frames_in}: got {list(rgb.shape)}, "
                f"expected {list(self._shape or ())} as before; open another session"
            )
        self._shape = rgb.shape
        if isinstance(frame, Frame):
            return frame
        slo = self.config.slo
        fps = slo.fps if slo is not None and slo.fps is not None else DEFAULT_FPS
        return Frame(rgb, self._frames_in, self._frames_in / fps, time.perf_counter_ns())

    def _crop(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The centre of a picture, in the model's aspect ratio: a view."""
        if self.config.fit == "stretch":
            return rgb
        g = self._geometry
        height, width = rgb.shape[:2]
        kept_width = min(width, max(1, round(height * g.width / g.height)))
        kept_height = min(height, max(1, round(width * g.height / g.width)))
        top, left = (height - kept_height) // 2, (width - kept_width) // 2
        return rgb[top : top + kept_height, left : left + kept_width]

    def _remark_size(self, frame: Frame) -> None:
        g = self._geometry
        height, width = frame.rgb.shape[:2]
        if (height, width) != (g.height, g.width):
            how = "cropped and resized" if self.config.fit == "crop" else "stretched"
            self.remarks.append(
                f"the input is {width}x{height}: {how} to {g.width}x{g.height}, the engine's size"
            )


def _copied(picture: Any) -> Array:
    """Anything that NumPy can read, or that speaks DLPack, as an array of its own."""
    try:
        if hasattr(picture, "__dlpack__") and not isinstance(picture, np.ndarray):
            return np.from_dlpack(picture).copy()
        return np.array(picture)
    except (ValueError, TypeError, BufferError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise SourceError(
            f"frame: got {type(picture).__name__} ({reason}), expected uint8 [H, W, 3]"
        ) from None
