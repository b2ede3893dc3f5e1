"""Eight clients at one server: five steady ones, one that reads at a tenth of the rate, one that
sends garbage, one that dies every second. The steady ones stream alone first: do they keep their
rate beside the others, does the server's memory stay flat? Fails (exit 1) if not.

    python -m bench.clients --seconds 180
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import psutil
from PIL import Image
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from bench.smallest import smallest_engine
from bench.soak import TOLERANCE
from bench.table import ROOT, Row, above, parser, publish

STEADY, SLOWER, LIVES_S = 5, 10, 1.0
KEPT = 0.98
"""Share of the rate alone that every steady client keeps beside the others."""
SEATS = ("--sessions", "10", "--steps", "1")
"""For eight, and two that are ending."""
GROWTH = "memory growth in the second half"
GARBAGE = (
    b"\xc1 no msgpack",
    msgpack.packb({"pts_s": 0.0, "format": "jpeg", "data": b"no jpeg"}),
    msgpack.packb({"ack": 1 << 39}),
    b"\xdf\xff\xff\xff\xff",
    "text",
)


@dataclass(slots=True)
class Client:
    """What one client saw. `got`: (seconds on the monotonic clock, latency in ms, late)."""

    kind: str
    sent: int = 0
    got: list[tuple[float, float, bool]] = field(default_factory=list)
    sessions: int = 0
    refused: int = 0
    codes: list[int] = field(default_factory=list)

    def rate(self, start_s: float, stop_s: float) -> float:
        """Frames/s that came between two times."""
        return sum(start_s <= at < stop_s for at, _, _ in self.got) / (stop_s - start_s)


@dataclass(frozen=True, slots=True)
class Terms:
    """What every client asks for."""

    url: str
    fps: float
    slo_ms: float
    stop: asyncio.Event

    async def opened(self, client: Client) -> str:
        """Address of a new session's stream; asks again while there is no room."""
        options = {"prompt": "comic", "fps": self.fps, "slo_ms": self.slo_ms, "steps": 1}
        while True:
            status, answer = await asyncio.to_thread(ask, self.url + "/api/sessions", options)
            if status == 201:
                client.sessions += 1
                return "ws" + self.url.removeprefix("http") + str(answer["stream"])
            assert status == 429, answer
            client.refused += 1
            await asyncio.sleep(0.2)

    @contextlib.asynccontextmanager
    async def stream(self, client: Client) -> AsyncIterator[ClientConnection]:
        async with connect(await self.opened(client), proxy=None, ping_interval=None) as socket:
            yield socket


def ask(url: str, body: Any = None) -> tuple[int, Any]:
    """Status and content."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@contextlib.contextmanager
def serving(engines: Path, *options: str) -> Iterator[tuple[psutil.Process, str]]:
    """A server of its own process that must end well: its process and address."""
    command = [sys.executable, "-m", "rt.serve", "--engines", str(engines), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--log", "off", *options],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "python"), str(ROOT)])},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == f"loading {engines}\n"
        told, _, url = process.stdout.readline().rstrip("/\n").partition(" ")
        assert told == "ready:"
        yield psutil.Process(process.pid), url
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, "the server did not end well"
    finally:
        process.kill()
        process.communicate()


async def _send(socket: ClientConnection, terms: Terms, client: Client) -> None:
    start_s = time.monotonic()
    for n in itertools.count():
        await asyncio.sleep(max(0.0, start_s + n / terms.fps - time.monotonic()))
        await socket.send(FRAMES[n % len(FRAMES)](n / terms.fps))
        client.sent += 1


async def _read(socket: ClientConnection, client: Client, pause_s: float = 0.0) -> None:
    for expected in itertools.count():
        message = await socket.recv()
        while isinstance(message, str):  # a status
            message = await socket.recv()
        frame = msgpack.unpackb(message)
        assert frame["index"] == expected
        client.got.append((time.monotonic(), frame["latency_ms"], frame["late"]))
        await socket.send(msgpack.packb({"ack": expected}))
        await asyncio.sleep(pause_s)


async def steady(terms: Terms, client: Client, pause_s: float = 0.0) -> None:
    """Streams to the end."""
    async with terms.stream(client) as socket:
        tasks = [
            asyncio.create_task(_send(socket, terms, client)),
            asyncio.create_task(_read(socket, client, pause_s)),
        ]
        over = asyncio.create_task(terms.stop.wait())
        done, _ = await asyncio.wait([*tasks, over], return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        for task in done - {over}:
            task.result()  # whatever ended a stream early


async def slow(terms: Terms, client: Client) -> None:
    """Sends as the others do, and reads a tenth of what it could."""
    await steady(terms, client, SLOWER / terms.fps)


async def garbage(terms: Terms, client: Client) -> None:
    """Sends what is no message, again and again."""
    for message in itertools.cycle(GARBAGE):
        if terms.stop.is_set():
            return
        async with terms.stream(client) as socket:
            await socket.send(message)
            try:
                while True:
                    await socket.recv()
            except ConnectionClosed as end:
                client.codes.append(end.rcvd.code if end.rcvd else 0)


async def dying(terms: Terms, client: Client) -> None:
    """Is cut off every second, without a word, and comes again."""
    while not terms.stop.is_set():
        async with terms.stream(client) as socket:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LIVES_S):
                    await _send(socket, terms, client)
            socket.transport.abort()


@dataclass(frozen=True, slots=True)
class Outcome:
    """Times on the monotonic clock in s, resident memory in bytes over that time."""

    clients: tuple[Client, ...]
    joined_s: float
    stopped_s: float
    memory: tuple[tuple[float, int], ...]


async def crowd(
    process: psutil.Process, url: str, fps: float, slo_ms: float, alone_s: float, seconds: float
) -> Outcome:
    """Five steady clients for `alone_s`, then all eight for `seconds`."""
    terms = Terms(url, fps, slo_ms, asyncio.Event())
    memory: list[tuple[float, int]] = []

    async def watch() -> None:
        while not terms.stop.is_set():
            memory.append((time.monotonic(), process.memory_info().rss))
            await asyncio.sleep(0.25)

    async with asyncio.TaskGroup() as group:
        clients = [Client("steady") for _ in range(STEADY)]
        for client in clients:
            group.create_task(steady(terms, client))
        group.create_task(watch())
        await asyncio.sleep(alone_s)
        joined_s = time.monotonic()
        for act in (slow, garbage, dying):
            clients.append(Client(act.__name__))
            group.create_task(act(terms, clients[-1]))
        await asyncio.sleep(seconds)
        stopped_s = time.monotonic()
        terms.stop.set()
    return Outcome(tuple(clients), joined_s, stopped_s, tuple(memory))


def rows(outcome: Outcome, fps: float, slo_ms: float, alone_s: float) -> list[Row]:
    """The table. What comes in the first quarter of the time alone is left out: filling."""
    joined_s, stopped_s = outcome.joined_s, outcome.stopped_s
    well = [c for c in outcome.clients if c.kind == "steady"]
    first_s = joined_s - 0.75 * alone_s
    beside = [item for c in well for item in c.got if item[0] >= joined_s]
    curve = [rss for at, rss in outcome.memory if at >= joined_s]
    quarters = [curve[min(len(curve) - 1, len(curve) * n // 4)] for n in range(1, 5)]
    told = []
    for share, rss in zip(("25 %", "50 %", "75 %", "100 %"), quarters, strict=True):
        told.append(Row(f"server's memory at {share} of the time", rss / 2**20, "MiB", 1))
    for c in outcome.clients[STEADY:]:
        note = f"{c.sessions} sessions, {c.refused} refused, codes {sorted(set(c.codes))}"
        told.append(Row(f"{c.kind}: frames that came", len(c.got), "frames", c.sent, note=note))
    alone = min(c.rate(first_s, joined_s) for c in well)
    worst = min(c.rate(joined_s, stopped_s) for c in well)
    late = sum(item[2] for item in beside) / max(1, len(beside))
    p99 = float(np.percentile([item[1] for item in beside], 99))
    return [
        Row("slowest steady client alone", alone, "frames/s", STEADY, fps),
        Row("slowest steady client beside the others", worst, "frames/s", STEADY, alone),
        Row("its frames late", late * 100, "%", len(beside)),
        Row("latency p99 of the steady clients", p99, "ms", len(beside), slo_ms),
        *told,
        Row(GROWTH, (quarters[-1] / quarters[1] - 1) * 100, "%", 1, 100 * TOLERANCE),
    ]


def _frame(n: int) -> Callable[[float], bytes]:
    """Packs one picture of a texture that slides, at a time."""
    texture = np.random.default_rng(0).integers(0, 255, (8, 12, 3), dtype=np.uint8)
    picture = np.kron(np.roll(texture, n, 1)[:, :8], np.ones((8, 8, 1), np.uint8))
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "JPEG", quality=90)
    data = out.getvalue()
    return lambda pts_s: bytes(msgpack.packb({"pts_s": pts_s, "format": "jpeg", "data": data}))


FRAMES = [_frame(n) for n in range(12)]


def main() -> int:
    p = parser(__doc__, "clients")
    p.add_argument("--seconds", type=above(0), default=180.0, help="all eight together")
    p.add_argument("--alone-s", type=above(0), default=20.0, help="the steady ones alone before")
    p.add_argument("--fps", type=above(0), default=8.0, help="of every client")
    p.add_argument("--slo-ms", type=above(0), default=2000.0)
    p.add_argument("--engines", type=Path, help="default: the tiny model at 64x64, built first")
    o = p.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        engines = o.engines or smallest_engine(Path(directory))
        with serving(engines, *SEATS) as (process, url):
            work = crowd(process, url, o.fps, o.slo_ms, o.alone_s, o.seconds)
            table = rows(asyncio.run(work), o.fps, o.slo_ms, o.alone_s)
            status, _ = ask(url + "/readyz")
    publish(f"eight clients at {o.fps:g} frames/s, {o.seconds:g} s", table, o.json)
    by = {row.name: row for row in table}
    rate, growth = by["slowest steady client beside the others"], by[GROWTH]
    kept = rate.limit is not None and rate.value >= KEPT * rate.limit
    if not kept or abs(growth.value) > 100 * TOLERANCE or status != 200:
        wrong = f"{rate.value:.2f} frames/s, growth {growth.value:.1f} %, readyz {status}"
        print(f"error: {wrong}; expected the rate alone, below 2 % and 200", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
