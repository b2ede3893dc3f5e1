"""The short form of `python -m bench.clients`: who survives, and what is counted; no times."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("websockets")

from bench import clients


def test_bad_clients_harm_themselves_only(tiny_engine: Path) -> None:
    with clients.serving(tiny_engine, *clients.SEATS) as (process, url):
        run = clients.crowd(process, url, fps=4.0, slo_ms=60_000.0, alone_s=1.0, seconds=4.0)
        outcome = asyncio.run(run)  # an error of any good client ends it
        assert clients.ask(url + "/readyz")[0] == 200
    well, bad = outcome.clients[: clients.STEADY], outcome.clients[clients.STEADY :]
    slow, garbage, dying = bad
    for client in well:
        assert client.sessions == 1
        assert 0 < len(client.got) <= client.sent
        assert not any(late for _, _, late in client.got)
    assert 0 < len(slow.got) < min(len(client.got) for client in well)
    assert garbage.sessions == len(garbage.codes) > 1
    assert set(garbage.codes) == {1007}
    assert dying.sessions > 1
