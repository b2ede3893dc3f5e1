"""Routes: the page, REST for sessions, the WebSocket, metrics and health."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from importlib.resources import files

from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.routing import Route
from starlette.types import ASGIApp

from ..config import VERSION
from ..errors import ConfigError
from . import socket as sockets
from .guard import Access, Guard
from .hub import Hub, Refused
from .limits import Media
from .rtc import Calls
from .schema import (
    Answer,
    Engine,
    Failure,
    Mistake,
    Offer,
    SessionOptions,
    SessionStatus,
    SessionUpdate,
)

_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}

_MEANINGS = {
    400: "Not by a name of this server, or a body that is no JSON",
    401: "No token, or a wrong one",
    403: "A page of another origin",
    404: "No such session",
    411: "A body of unknown length",
    413: "A body that is too large",
    422: "Options that mean nothing",
    429: "No room for a further session",
    503: "Loading or draining",
}
_GUARD = (400, 401, 403, 411, 413)


def _fails(*statuses: int) -> dict[int | str, dict[str, object]]:
    """How an endpoint may refuse, beside what the guard refuses of any, for OpenAPI."""
    return {
        status: {"model": Mistake if status == 422 else Failure, "description": _MEANINGS[status]}
        for status in sorted({*_GUARD, *statuses})
    }


_LINKS = {
    operation: {"operationId": operation, "parameters": {"number": "$response.body#/id"}}
    for operation in ("status", "update", "delete")
}


class State(BaseModel):
    """How the server is."""

    state: str


class Opened(BaseModel):
    """A session that waits for its stream."""

    id: str
    stream: str
    engine: Engine


class Updated(BaseModel):
    """The first chunk that an update touches."""

    chunk: int


def build(hub: Hub, access: Access, media: Media, loaded: Callable[[], None]) -> ASGIApp:
    """The application. `loaded` is called once the hub has stopped loading, well or not."""
    calls = Calls(hub)

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
        await calls.close()

    app = FastAPI(
        title="streamdiffusion-rt",
        version=VERSION,
        lifespan=lifespan,
        redoc_url=None,
        docs_url=None,
    )
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(ConfigError, _mistake)
    app.add_exception_handler(405, _no_method)
    _page(app)
    _health(app, hub)
    _sessions(app, hub)
    _streams(app, hub, calls, media)
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
    @app.get("/healthz", responses=_fails())
    async def healthz() -> State:
        """The process answers."""
        return State(state="alive")

    @app.get(
        "/readyz", responses={**_fails(), 503: {"model": State, "description": _MEANINGS[503]}}
    )
    async def readyz() -> JSONResponse:
        """Whether a session can be opened."""
        return JSONResponse({"state": hub.state}, 200 if hub.state == "ready" else 503)

    @app.get("/metrics", response_class=PlainTextResponse, responses=_fails())
    def metrics() -> Response:
        """Prometheus."""
        return Response(hub.gauges.text(), media_type=CONTENT_TYPE_LATEST)


def _sessions(app: FastAPI, hub: Hub) -> None:
    @app.get("/api/engine", responses=_fails(503))
    def engine() -> Engine:
        """What is loaded."""
        return hub.engine()

    @app.post(
        "/api/sessions",
        status_code=201,
        responses={**_fails(422, 429, 503), 201: {"links": _LINKS}},
    )
    def create(options: SessionOptions) -> Opened:
        """Open a session; it ends with its stream, or when none comes."""
        live = hub.open(options)
        return Opened(id=live.id, stream=f"/api/sessions/{live.id}/stream", engine=hub.engine())

    @app.get("/api/sessions/{number}", operation_id="status", responses=_fails(404))
    def status(number: str) -> SessionStatus:
        """A session, now."""
        return hub.get(number).status()

    @app.patch("/api/sessions/{number}", operation_id="update", responses=_fails(404, 422, 429))
    def update(number: str, update: SessionUpdate) -> Updated:
        """Change it in flight."""
        return Updated(chunk=hub.update(hub.get(number), update))

    @app.delete(
        "/api/sessions/{number}", operation_id="delete", status_code=204, responses=_fails(404)
    )
    def delete(number: str) -> Response:
        """End it."""
        hub.end(hub.get(number), "deleted")
        return Response(status_code=204)


def _streams(app: FastAPI, hub: Hub, calls: Calls, media: Media) -> None:
    @app.post("/api/sessions/{number}/offer", responses=_fails(404, 422))
    async def offer(number: str, offer: Offer) -> Answer:
        """Frames over WebRTC: `rt.serve.rtc`."""
        sdp = await calls.answer(hub.get(number), offer.sdp)
        return Answer(sdp=sdp, bits_per_s=media.bits_per_s)

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


async def _no_method(request: Request, _: Exception) -> JSONResponse:
    """Every method of every route with this path: a router alone names those of its first."""
    routes = [r for r in request.app.routes if isinstance(r, Route)]
    here = [r for r in routes if r.path_regex.match(request.scope["path"])]
    allowed = sorted({method for route in here for method in route.methods or ()})
    return JSONResponse(
        {"detail": f"method: got {request.method}, expected {' or '.join(allowed)}"},
        405,
        {"allow": ", ".join(allowed)},
    )
