"""Routes: the page, REST for sessions, the WebSocket, metrics and health."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from importlib.resources import files

from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp

from ..config import VERSION
from ..errors import ConfigError
from . import socket as sockets
from .guard import Access, Guard
from .hub import Hub, Refused
from .schema import Engine, Failure, SessionOptions, SessionStatus, SessionUpdate

_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}

_FAILURES: dict[int | str, dict[str, object]] = {
    400: {"model": Failure, "description": "Not by a name of this server"},
    401: {"model": Failure, "description": "No token, or a wrong one"},
    403: {"model": Failure, "description": "A page of another origin"},
    404: {"model": Failure, "description": "No such session"},
    413: {"model": Failure, "description": "A body that is too large"},
    422: {"description": "Options that mean nothing"},
    429: {"model": Failure, "description": "Every session is taken"},
    503: {"model": Failure, "description": "Loading or draining"},
}


class Opened(BaseModel):
    """A session that waits for its stream."""

    id: str
    stream: str
    engine: Engine


class Updated(BaseModel):
    """The first chunk that an update touches."""

    chunk: int


def build(hub: Hub, access: Access, loaded: Callable[[], None]) -> ASGIApp:
    """The application. `loaded` is called once the hub has stopped loading, well or not."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async def load() -> None:
            await run_in_threadpool(hub.load)
            loaded()

        tasks = [asyncio.create_task(load()), asyncio.create_task(_expire(hub))]
        yield
        tasks[1].cancel()
        await tasks[0]
        with suppress(asyncio.CancelledError):
            await tasks[1]
        await run_in_threadpool(hub.close)

    app = FastAPI(
        title="streamdiffusion-rt",
        version=VERSION,
        lifespan=lifespan,
        redoc_url=None,
        docs_url=None,
    )
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(ConfigError, _mistake)
    _page(app)
    _health(app, hub)
    _sessions(app, hub)
    return Guard(app, access)


def _page(app: FastAPI) -> None:
    """Files of the page, read once: no request names a path."""
    static = files("rt.serve") / "static"
    for entry in static.iterdir():
        name = entry.name
        media = _TYPES.get(name.rpartition(".")[2])
        if media is None:
            continue
        path = "/" if name == "index.html" else f"/{name}"
        app.add_route(path, _sender(entry.read_bytes(), media), methods=["GET"])


def _sender(content: bytes, media: str) -> Callable[[Request], Response]:
    def send(_: Request) -> Response:
        return Response(content, media_type=media, headers={"cache-control": "no-cache"})

    return send


def _health(app: FastAPI, hub: Hub) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process answers."""
        return {"state": "alive"}

    @app.get("/readyz", responses={503: {"description": "Loading, draining or failed"}})
    async def readyz() -> JSONResponse:
        """Whether a session can be opened."""
        return JSONResponse({"state": hub.state}, 200 if hub.state == "ready" else 503)

    @app.get("/metrics", response_class=Response)
    def metrics() -> Response:
        """Prometheus."""
        return Response(hub.gauges.text(), media_type=CONTENT_TYPE_LATEST)


def _sessions(app: FastAPI, hub: Hub) -> None:
    @app.get("/api/engine", responses=_FAILURES)
    def engine() -> Engine:
        """What is loaded."""
        return hub.engine()

    @app.post("/api/sessions", status_code=201, responses=_FAILURES)
    def create(options: SessionOptions) -> Opened:
        """Open a session; it ends with its stream, or when none comes."""
        live = hub.open(options)
        return Opened(id=live.id, stream=f"/api/sessions/{live.id}/stream", engine=hub.engine())

    @app.get("/api/sessions/{number}", responses=_FAILURES)
    def status(number: str) -> SessionStatus:
        """A session, now."""
        return hub.get(number).status()

    @app.patch("/api/sessions/{number}", responses=_FAILURES)
    def update(number: str, update: SessionUpdate) -> Updated:
        """Change it in flight."""
        return Updated(chunk=hub.update(hub.get(number), update))

    @app.delete("/api/sessions/{number}", status_code=204, responses=_FAILURES)
    def delete(number: str) -> Response:
        """End it."""
        hub.end(hub.get(number), "deleted")
        return Response(status_code=204)

    @app.websocket("/api/sessions/{number}/stream")
    async def stream(socket: WebSocket, number: str) -> None:
        """Frames, both ways: `rt.serve.wire`."""
        try:
            live = hub.get(number)
        except Refused as refused:
            await socket.close(sockets.POLICY, str(refused))
            return
        await socket.accept()
        await sockets.stream(socket, hub, live)


async def _expire(hub: Hub) -> None:
    while True:
        await asyncio.sleep(min(1.0, hub.limits.idle_s / 4))
        await run_in_threadpool(hub.expire, time.monotonic())


async def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refused)
    headers = {"retry-after": "2"} if error.status in (429, 503) else None
    return JSONResponse({"detail": str(error)}, error.status, headers)


async def _mistake(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 422)
