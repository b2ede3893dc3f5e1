"""One process, one pipeline, one page. It owns signals and exit codes."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
from collections.abc import Sequence
from types import FrameType

import uvicorn

from ..command import ended
from ..errors import ConfigError
from . import options, rtc
from .app import build
from .guard import is_loopback
from .hub import Hub
from .journal import Journal, Lines


class Server(uvicorn.Server):
    """uvicorn, but the first SIGTERM or Ctrl-C drains: no new session, open ones may end."""

    def __init__(self, config: uvicorn.Config, hub: Hub) -> None:
        super().__init__(config)
        self._hub = hub
        self._signals = 0
        self._until_s: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        # Between any two instructions: only a number may change here.
        self._signals += 1

    async def on_tick(self, counter: int) -> bool:
        if self._signals and self._until_s is None:
            self._until_s = time.monotonic() + self._hub.limits.drain_s
            self._hub.drain()
        if self._until_s is not None:
            over = self._signals > 1 or time.monotonic() >= self._until_s
            self.should_exit = self.should_exit or over or not self._hub.sessions()
        if self.should_exit:
            # Sockets are closed by their own tasks, which see that their session has ended.
            for live in self._hub.sessions():
                await asyncio.to_thread(self._hub.end, live, "shutdown")
        return await super().on_tick(counter)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 ended, 1 failed, 2 wrong usage, 130 interrupted before it listened; errors in
    one line on standard error.
    """
    return ended(lambda: run(arguments), "the server has ended")


def run(arguments: Sequence[str] | None) -> int:
    chosen = options.parser().parse_args(arguments)
    plan, access = options.plan(chosen), options.access(chosen)
    listening = listen(chosen.host, chosen.port)
    media = options.media(chosen, listening.getsockname()[0])
    rtc.settle(media)
    journal = Journal(chosen.log)
    logging.getLogger().addHandler(Lines(journal))
    hub = Hub(plan, journal)
    where = f"http://{_shown(chosen.host)}:{listening.getsockname()[1]}/"
    if access.token is not None:
        where += f"#token={access.token}"  # a fragment: it reaches no log and no other server

    def loaded() -> None:
        if hub.failure is not None:
            server.should_exit = True
        elif hub.state == "ready":
            print(f"ready: {where}", flush=True)

    config = uvicorn.Config(
        build(hub, access, media, loaded),
        ws="websockets-sansio",
        ws_max_size=plan.limits.frame_bytes,
        ws_per_message_deflate=False,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    server = Server(config, hub)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    print(f"loading {plan.engines}", flush=True)
    server.run([listening])
    if hub.failure is not None:
        raise hub.failure
    return 0


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket. Raises ConfigError where it cannot be bound."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # By its protocol's name, or asyncio does not see TCP and leaves Nagle's algorithm on:
        # answers and frames would wait 40 ms for the client's acknowledgement.
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen()
    except OSError as error:
        raise ConfigError(
            f"host, port: got {host}:{port} ({error.strerror}); name another, 0 for a free one"
        ) from error
    return listening


def _shown(host: str) -> str:
    name = "localhost" if is_loopback(host) else host
    return f"[{name}]" if ":" in name else name
