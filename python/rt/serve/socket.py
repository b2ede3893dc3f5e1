"""Frames over a WebSocket: newest wins on the way in and on the way out.

At most `IN_FLIGHT` frames are on their way to a client that has not acknowledged them, so what a
slow reader sees is new, and nothing queues for it.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from starlette.concurrency import run_in_threadpool
from starlette.websockets import WebSocket, WebSocketDisconnect

from ..errors import Error, SourceError
from ..frame import Frame
from . import wire
from .hub import Hub
from .limits import MessageRate
from .live import Live
from .pictures import encode_jpeg

IN_FLIGHT = 12
OUTBOX = 4
"""Frames that wait for a client to acknowledge earlier ones; the oldest goes first."""
STATUS_EVERY_S = 0.5
NORMAL, GOING, INVALID, POLICY, BROKEN = 1000, 1001, 1007, 1008, 1011


class Ended(Exception):
    """The stream is over, for a reason that the client is told."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Outbox:
    """A `Viewer`: encodes on the session's thread, hands over to the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.news = asyncio.Event()
        self.failure: Error | None = None
        self._loop = loop
        self._ready: deque[tuple[Frame, float, bool, bytes]] = deque(maxlen=OUTBOX)
        self._sent = self._acked = 0

    def show(self, frame: Frame, latency_ms: float, late: bool) -> None:
        item = (frame, latency_ms, late, encode_jpeg(frame.rgb))
        self._call(lambda: self._ready.append(item))

    def fail(self, error: Error) -> None:
        def take() -> None:
            self.failure = error

        self._call(take)

    def acknowledge(self, index: int) -> None:
        """The client has seen every frame up to `index`. Raises SourceError for one not sent."""
        if index >= self._sent:
            raise SourceError(f"ack: got {index}, expected less than {self._sent}, the next frame")
        self._acked = max(self._acked, index + 1)
        self.news.set()

    def next(self) -> bytes | None:
        """What may be sent now; its `index` counts what was sent before."""
        if not self._ready or self._sent - self._acked >= IN_FLIGHT:
            return None
        frame, latency_ms, late, jpeg = self._ready.popleft()
        self._sent += 1
        return wire.restyled(self._sent - 1, frame.pts_s, latency_ms, late, jpeg)

    def _call(self, change: Callable[[], None]) -> None:
        def run() -> None:
            change()
            self.news.set()

        with suppress(RuntimeError):  # the loop has closed: nobody is left to see it
            self._loop.call_soon_threadsafe(run)


async def stream(socket: WebSocket, hub: Hub, live: Live) -> None:
    """Serve one accepted socket until either side ends; the session ends with it."""
    outbox = Outbox(asyncio.get_running_loop())
    reason = "client left"
    try:
        live.attach(outbox)
        async with asyncio.TaskGroup() as group:
            group.create_task(_receive(socket, hub, live, outbox))
            group.create_task(_send(socket, live, outbox))
    except* (WebSocketDisconnect, asyncio.IncompleteReadError):
        pass
    except* Ended as ends:
        end = ends.exceptions[0]
        assert isinstance(end, Ended)
        reason = {NORMAL: "ended", INVALID: "bad data", POLICY: "limit"}.get(end.code, "failed")
        await _close(socket, end.code, str(end))
    except* Error as errors:
        reason = "bad data"
        await _close(socket, INVALID, str(errors.exceptions[0]))
    finally:
        await asyncio.shield(run_in_threadpool(hub.end, live, reason))


async def _receive(socket: WebSocket, hub: Hub, live: Live, outbox: Outbox) -> None:
    limits = hub.limits
    rate = MessageRate(limits.messages_per_s, time.monotonic())
    last_pts_s = -1.0
    while True:
        event = await socket.receive()
        if event["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(event.get("code", NORMAL))
        if not rate.allows(time.monotonic()):
            raise Ended(POLICY, f"more than {limits.messages_per_s:g} messages/s; send fewer")
        data = event.get("bytes")
        if data is None:
            raise SourceError("message: got text, expected msgpack; see /docs for the format")
        message = wire.read(data, limits)
        if isinstance(message, wire.Ack):
            outbox.acknowledge(message.index)
            continue
        if message.pts_s <= last_pts_s:
            raise SourceError(f"pts_s: got {message.pts_s}, expected above {last_pts_s}")
        last_pts_s = message.pts_s
        live.offer(functools.partial(message.rgb, limits), message.pts_s)


async def _send(socket: WebSocket, live: Live, outbox: Outbox) -> None:
    status_due_s = 0.0
    while True:
        if (packed := outbox.next()) is not None:
            await socket.send_bytes(packed)
            continue
        if outbox.failure is not None:
            bad = isinstance(outbox.failure, SourceError)
            raise Ended(INVALID if bad else BROKEN, str(outbox.failure))
        if live.ended:
            raise Ended(GOING, "the server ended the session")
        if time.monotonic() >= status_due_s:
            status = await run_in_threadpool(live.status)
            await socket.send_text(status.model_dump_json())
            status_due_s = time.monotonic() + STATUS_EVERY_S
        outbox.news.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, status_due_s - time.monotonic())):
                await outbox.news.wait()


async def _close(socket: WebSocket, code: int, reason: str) -> None:
    with suppress(RuntimeError, WebSocketDisconnect):  # it is closed already
        await socket.close(code, reason.encode()[:120].decode(errors="ignore"))
