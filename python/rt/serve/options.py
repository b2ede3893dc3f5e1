"""Options of `python -m rt.serve`, and what they may not mean together."""

from __future__ import annotations

import argparse
import ipaddress
import secrets
from pathlib import Path
from typing import get_args

from ..command import command
from ..config import check_int
from ..errors import ConfigError
from .guard import Access, hosts_of, is_loopback
from .hub import Plan
from .journal import Style
from .limits import Limits, Media


def parser() -> argparse.ArgumentParser:
    """Every option, with its default in the help."""
    p = command(
        "python -m rt.serve",
        "Restyle a camera in the browser: serves a page, REST, WebSocket and metrics.",
        "Exit code: 0 ended, 1 failed, 2 wrong usage, 130 interrupted before it listened. SIGTERM "
        "drains; a second one ends.",
    )
    shown, limits = "(default: %(default)s)", Limits()
    p.add_argument("--engines", type=Path, default=Path("engines/tiny"), metavar="DIR", help=shown)
    p.add_argument("--devices", default="auto", metavar="NAMES", help=f"cpu:0,cpu:1 {shown}")
    p.add_argument("--host", default="127.0.0.1", help=f"address to bind {shown}")
    p.add_argument("--port", type=int, default=8000, help=f"0: any free one {shown}")
    p.add_argument("--token", help="asked of every client (default: made up beyond loopback)")
    for name, text in (
        ("--origin", "another page's origin that may use the server; repeat for more"),
        ("--name", "a further host name of this server; repeat for more"),
    ):
        p.add_argument(name, action="append", default=[], help=f"{text} (default: none)")
    p.add_argument(
        "--steps", type=int, metavar="N", help="most denoising steps (default: the model's own)"
    )
    for name, kind, default, text in (
        ("--sessions", int, limits.sessions, "open at once"),
        ("--frame-bytes", int, limits.frame_bytes, "largest message"),
        ("--frame-pixels", int, limits.frame_pixels, "largest picture"),
        ("--messages-per-s", float, limits.messages_per_s, "of one client"),
        ("--idle-s", float, limits.idle_s, "without a frame, then a session ends"),
        ("--life-s", float, limits.life_s, "longest session"),
        ("--drain-s", float, limits.drain_s, "how long SIGTERM waits for sessions"),
    ):
        p.add_argument(name, type=kind, default=default, metavar="N", help=f"{text} {shown}")
    p.add_argument(
        "--media-host", metavar="ADDRESS", help="that WebRTC listens on (default: as --host)"
    )
    p.add_argument(
        "--media-kbit",
        type=int,
        default=Media("").bits_per_s // 1000,
        metavar="N",
        help=f"kbit/s of a picture over WebRTC, each way {shown}",
    )
    p.add_argument("--log", choices=get_args(Style), default="text", help=f"to stderr {shown}")
    return p


def plan(options: argparse.Namespace) -> Plan:
    """What to load. Raises ConfigError for a limit that leaves nothing, and for no port."""
    names = ("sessions", "frame_bytes", "frame_pixels", "messages_per_s", "idle_s", "life_s")
    for name in names:
        if getattr(options, name) <= 0:
            raise ConfigError(f"{name}: got {getattr(options, name)}, expected above 0")
    if options.drain_s < 0:
        raise ConfigError(f"drain_s: got {options.drain_s}, expected 0 or more")
    check_int("port", options.port, 0, (1 << 16) - 1)
    chosen = {name: getattr(options, name) for name in (*names, "drain_s")}
    return Plan(options.engines, options.devices, options.steps, Limits(**chosen))


def access(options: argparse.Namespace) -> Access:
    """Who may talk to it: beyond loopback only who has a token."""
    token = options.token
    if token is None and not is_loopback(options.host):
        token = secrets.token_urlsafe(16)
    if token is not None and len(token) < 8:
        raise ConfigError(f"token: got {len(token)} characters, expected at least 8")
    hosts = hosts_of(options.name, options.host)
    return Access(hosts, tuple(options.origin), token, Limits().body_bytes)


def media(options: argparse.Namespace, bound: str) -> Media:
    """WebRTC's address and rate; `bound` is the address that HTTP listens on."""
    host = options.media_host or bound
    try:
        ipaddress.ip_address(host)
    except ValueError as error:
        raise ConfigError(
            f"media_host: got {host!r}, expected an address such as 0.0.0.0"
        ) from error
    if not 100 <= options.media_kbit <= 100_000:
        raise ConfigError(f"media_kbit: got {options.media_kbit}, expected 100 to 100000")
    return Media(host, options.media_kbit * 1000)
