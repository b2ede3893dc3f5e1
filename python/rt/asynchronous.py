"""A session inside an event loop: the same verbs, awaited. It owns no thread and polls nothing: the
pipeline's condition wakes the loop.

    async with rt.AsyncSession(pipeline.session(prompt="ink", slo=slo)) as session:
        async for frame in session.stream(camera):
            show(frame.rgb)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from types import TracebackType
from typing import Any, Self, TypeVar

from .frame import Frame
from .session import Session

T = TypeVar("T")


class AsyncSession:
    """Made inside a running loop, of a session that nobody else pulls from. Leaving its
    `async with` block gives the seat back.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._loop = asyncio.get_running_loop()
        self._waiters: set[asyncio.Event] = set()
        with session.changed:
            session.changed.listeners.add(self._changed)

    async def push(self, frame: Frame | Any) -> None:
        """As `Session.push`; waits while the session holds as many chunks as it may."""
        await self._patiently(lambda: self.session.push(frame, timeout_s=0))

    async def pull(self) -> Frame | None:
        """As `Session.pull`: the next restyled frame at its turn, None after the last."""
        frame = await self._patiently(self.session.take)
        if frame is None:
            return None
        if (pause_s := self.session.pace.pause_s(frame)) > 0:
            await asyncio.sleep(pause_s)
        return frame if self.session.emitted(frame) else None

    async def stream(
        self, frames: AsyncIterable[Frame | Any] | Iterable[Frame | Any]
    ) -> AsyncGenerator[Frame, None]:
        """Restyle an iterable of either kind; a plain one is read on a thread of its own. Leaving
        early closes the session. An error of the iterable is raised after what was read before it.
        """
        failure: list[BaseException] = []
        feeder: asyncio.Task[None] | None = None
        if isinstance(frames, AsyncIterable):
            feeder = asyncio.create_task(self._feed(frames, failure))
        else:
            self.session.feeder(frames, failure)
        whole = False
        try:
            while (frame := await self.pull()) is not None:
                yield frame
            whole = True
        finally:
            if feeder is not None and not whole:
                feeder.cancel()
            if not whole:
                await self.close()
        if failure:
            raise failure[0]

    async def close(self) -> None:
        """Give the seat back; on a thread, as a pass that runs is waited for. Idempotent."""
        await asyncio.to_thread(self.session.close)
        with self.session.changed:
            self.session.changed.listeners.discard(self._changed)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _feed(self, frames: AsyncIterable[Frame | Any], failure: list[BaseException]) -> None:
        try:
            async for frame in frames:
                await self.push(frame)
        except Exception as error:  # noqa: BLE001 - carried to the consumer and raised there
            failure.append(error)
        finally:
            await asyncio.to_thread(self.session.finish_quietly)

    async def _patiently(self, attempt: Callable[[], T]) -> T:
        """Try until it does not time out, whenever something has changed."""
        news = asyncio.Event()
        self._waiters.add(news)
        try:
            while True:
                news.clear()
                try:
                    return attempt()
                except TimeoutError:
                    await news.wait()
        finally:
            self._waiters.discard(news)

    def _changed(self) -> None:
        """Called on whichever thread changed something, with the condition held."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        for news in self._waiters:
            news.set()
