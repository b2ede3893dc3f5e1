"""Who may talk to the server: Host, Origin, token, size of a body. One layer around the app."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("localhost", "127.0.0.1", "::1")
GUARDED = ("/api", "/metrics", "/openapi")
"""Paths that need the token; the page and the health of the server tell nothing."""

HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; style-src 'self'; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass(frozen=True, slots=True)
class Access:
    """Rules of one server. `token` None: no token is asked for, which is for loopback only."""

    hosts: tuple[str, ...] | None = LOOPBACK
    """Names that a request may call the server by; None: any. It stops DNS rebinding."""
    origins: tuple[str, ...] = ()
    """Origins of other pages that may use the server."""
    token: str | None = None
    body_bytes: int = 64_000

    def refusal(self, path: str, headers: Headers, query: str) -> tuple[int, str] | None:
        """HTTP status and reason, or None where the request may pass."""
        host = headers.get("host", "")
        if self.hosts is not None and _name(host) not in self.hosts:
            return 400, "host: not a name of this server"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host and origin not in self.origins:
            return 403, "origin: this page may not use the server; allow it with --origin"
        if not headers.get("content-length", "0").isdecimal():
            return 400, "content-length: expected a number"
        if int(headers.get("content-length", "0")) > self.body_bytes:
            return 413, f"body: expected at most {self.body_bytes} bytes"
        if "transfer-encoding" in headers:
            return 411, "body: expected content-length"
        guarded = self.token is not None and path.startswith(GUARDED)
        if guarded and not self._knows(headers, query):
            return 401, "token: missing or wrong; send it as 'Authorization: Bearer ...'"
        return None

    def _knows(self, headers: Headers, query: str) -> bool:
        assert self.token is not None
        given = headers.get("authorization", "").removeprefix("Bearer ")
        # A browser cannot set headers of a WebSocket.
        given = given or parse_qs(query).get("token", [""])[0]
        return hmac.compare_digest(given.encode(), self.token.encode())


def _name(host: str) -> str:
    """`host` header without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] or host


class Guard:
    """ASGI: refuses by `access` before anything of the app runs, and adds headers to answers."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        query = scope.get("query_string", b"").decode("latin-1")
        refusal = self._access.refusal(scope["path"], Headers(scope=scope), query)
        if scope["type"] == "websocket":
            if refusal is not None:
                await send({"type": "websocket.close", "code": 1008, "reason": refusal[1]})
                return
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(k.encode(), v.encode()) for k, v in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *extra]}
            await send(message)

        if refusal is not None:
            status, reason = refusal
            await JSONResponse({"detail": reason}, status)(scope, receive, with_headers)
            return
        await self._app(scope, receive, with_headers)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to `host`."""
    return host in LOOPBACK or host.startswith("127.")


def hosts_of(names: Sequence[str], bound: str) -> tuple[str, ...] | None:
    """Names a server answers to: loopback's, or any where it is bound elsewhere and has a token."""
    if names:
        return (*LOOPBACK, *names)
    return (*LOOPBACK, bound) if is_loopback(bound) else None
