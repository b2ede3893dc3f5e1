"""Requests and messages that nobody in his right mind sends: refused, each with its reason, by a
server that goes on.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from messages import ANY
from served import Served, Talk, closed, serving
from websockets.exceptions import ConnectionClosed

pytest.importorskip("schemathesis")


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with serving("--sessions", "8", "--idle-s", "1", "--log", "json") as served:
        lines: list[str] = []
        assert served.process.stderr is not None
        reader = threading.Thread(target=lines.extend, args=(served.process.stderr,))
        reader.start()
        yield served
        served.process.terminate()
        assert served.process.wait(30) == 0
        reader.join()
    events = [json.loads(line) for line in lines]
    assert not [event for event in events if event.get("level") == "error"]


def test_schemathesis_finds_nothing(server: Served, tmp_path: Path) -> None:
    """Every operation of the OpenAPI: cases of its schema and against it, and chains of calls."""
    options = ["--checks", "all", "--seed", "1", "--max-examples", "12", "--no-color"]
    # No schema can say which steps an engine has, or that low is not above high.
    options += ["--exclude-checks", "positive_data_acceptance"]
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert "9 selected / 9 total" in done.stdout
    assert "3 covered / 3 selected" in done.stdout  # status, update, delete of a real session


@settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(ANY | st.text(max_size=40), max_size=3))
def test_any_messages_end_with_a_code_of_the_client_s_fault(
    server: Served, messages: list[bytes | str]
) -> None:
    server.all_free()
    with server.socket(server.opened(fps=0.2)) as socket:
        with contextlib.suppress(ConnectionClosed):  # it may be refused before the last
            for message in (*messages, b"\xc1 no msgpack"):
                socket.send(message)
        assert closed(Talk(socket))[0] == 1007
    assert server.ask("GET", "/readyz").status == 200


def test_a_session_that_nobody_streams_to_ends_by_itself(server: Served) -> None:
    server.all_free()
    number = server.opened(fps=0.2)
    assert server.ask("GET", f"/api/sessions/{number}").status == 200
    server.all_free()  # --idle-s 1
    assert server.ask("GET", f"/api/sessions/{number}").status == 404
