"""One server for the tests that leave it as they found it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("websockets")

from served import Served, serving


@pytest.fixture(scope="session")
def server() -> Iterator[Served]:
    with serving(
        "--sessions",
        "3",
        "--steps",
        "3",
        "--idle-s",
        "6",
        "--frame-pixels",
        "90000",
        "--log",
        "json",
    ) as served:
        yield served


@pytest.fixture
def free(server: Served) -> Served:
    """The server, without a session."""
    server.all_free()
    return server
