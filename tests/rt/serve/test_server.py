"""A real server, with engines/tiny, over real sockets."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from socket import SHUT_RDWR, create_server
from typing import Any

import msgpack
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from served import (
    CUT,
    ROOT,
    Served,
    Talk,
    closed,
    ended,
    frame,
    serving,
    unpacked,
    wait_until,
)
from websockets.exceptions import ConnectionClosed, InvalidStatus


def metrics(served: Served) -> dict[str, float]:
    """Name -> value; a bucket and the seconds of a unit by their label, as `name{label}`."""
    text = served.ask("GET", "/metrics").body.decode()
    return {
        sample.name + "".join(f"{{{label}}}" for label in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_stream_is_restyled_and_a_prompt_changes_it(free: Served) -> None:
    number = free.opened(prompt="realistic")
    with free.socket(number) as socket:
        talk = Talk(socket)
        first = talk.until(6)
        answer = free.ask("PATCH", f"/api/sessions/{number}", {"prompt": "sepia film"})
        assert answer.status == 200
        changed = answer.json()["chunk"]
        assert changed >= 2
        later = talk.until(4 * changed + 3)  # the chunks on their way, and the first changed one
    count = 6 + len(later)
    assert [m["index"] for m in first + later] == list(range(count))
    times = [m["pts_s"] for m in first + later]
    assert times == sorted(times)
    assert len(set(times)) == count

    def colourfulness(message: dict[str, Any]) -> float:
        rgb = unpacked(message).astype(float)
        return float(rgb.std(-1).mean())

    # Sepia has one hue: the channels differ by less than in the colourful source.
    assert colourfulness(later[-1]) < 0.7 * colourfulness(first[-1])


def test_options_change_in_flight_and_metrics_agree_with_the_status(free: Served) -> None:
    before = metrics(free)
    number = free.opened(steps=1, motion="off")
    with free.socket(number) as socket:
        talk = Talk(socket)
        talk.until(5)
        assert free.ask("GET", f"/api/sessions/{number}").json()["steps"] == 1
        change = {"steps": 3, "noise_range": {"low": 0.3, "high": 0.3}}
        assert free.ask("PATCH", f"/api/sessions/{number}", change).json() == {"chunk": 0}
        begun = metrics(free)
        talk.until(9)
        status, after = settled(free, number)
    assert status["most_steps"] == 3
    assert status["steps"] == 3 - status["level"]
    assert status["noise_scale"] == pytest.approx(0.3)
    for name, value in (
        ("rt_frames_in_total", status["frames_in"]),
        ("rt_frames_on_time_total", status["frames_on_time"]),
        ("rt_frames_late_total", status["frames_late"]),
        ("rt_frames_dropped_total", status["frames_dropped"]),
        ("rt_frames_replaced_total", status["frames_replaced"]),
        ("rt_chunks_total", status["chunks"]),
        ("rt_chunk_service_seconds_count", status["chunks"]),
    ):
        assert after[name] - before[name] == value, name
    emitted = status["frames_on_time"] + status["frames_late"]
    assert emitted >= 14
    assert status["frames_in"] == emitted + status["frames_dropped"] + status["frames_in_flight"]
    assert after["rt_latency_seconds_count"] - before["rt_latency_seconds_count"] == emitted
    assert after["rt_ttff_seconds_count"] - before["rt_ttff_seconds_count"] == 1
    assert after["rt_sessions"] == 1
    for name in ("rt_latency_seconds", "rt_ttff_seconds", "rt_chunk_service_seconds"):
        buckets = [value for key, value in after.items() if key.startswith(name + "_bucket{")]
        assert buckets == sorted(buckets)
        assert buckets[-1] == after[name + "_count"]
    # A chunk alone on one stage: its passes are what the units ran, and little more.
    spent_s = sum(after[key] - begun[key] for key in after if key.startswith("rt_unit_seconds"))
    service_s = after["rt_chunk_service_seconds_sum"] - begun["rt_chunk_service_seconds_sum"]
    assert 0 < spent_s <= service_s
    resident = psutil.Process(free.process.pid).memory_info().rss
    assert after["rt_memory_bytes"] == pytest.approx(resident, rel=0.2)
    assert after["rt_utilisation"] >= 0
    assert after["rt_degradation_level"] in range(8)


def settled(served: Served, number: str) -> tuple[dict[str, Any], dict[str, float]]:
    """Status and metrics of one moment: nothing is counted between them."""

    def counted() -> dict[str, Any]:
        status: dict[str, Any] = served.ask("GET", f"/api/sessions/{number}").json()
        return {name: value for name, value in status.items() if name not in ("age_s", "fps")}

    end = time.monotonic() + 60
    while time.monotonic() < end:
        status, found = counted(), metrics(served)
        if status["frames_in_flight"] < 4 and counted() == status:
            return status, found
        time.sleep(0.2)
    raise AssertionError("it never comes to rest")


@pytest.mark.parametrize(
    "message, code",
    [
        (b"\xc1 no msgpack", 1007),
        (msgpack.packb({"ack": 7}), 1007),
        (msgpack.packb({"pts_s": 0.0, "format": "jpeg", "data": b"no jpeg"}), 1007),
        (bytes(2_100_000), 1009),
        ("text", 1007),
    ],
)
def test_garbage_ends_its_own_stream_only(free: Served, message: Any, code: int) -> None:
    number = free.opened()
    with free.socket(number) as socket:
        with contextlib.suppress(ConnectionClosed):  # the server may refuse it half way
            socket.send(message)
        # What lies unread at the server resets the connection, and its last word may go with it.
        assert closed(Talk(socket))[0] in ((code, CUT) if code == 1009 else (code,))
    free.all_free()
    assert free.ask("GET", f"/api/sessions/{number}").status == 404
    assert free.ask("GET", "/readyz").status == 200


def quick(n: int) -> bytes:
    """A small raw frame."""
    content = {"pts_s": 1.0 + n, "format": "raw", "data": bytes(3), "height": 1, "width": 1}
    return bytes(msgpack.packb(content))


def test_time_runs_forward_and_messages_have_a_rate(free: Served) -> None:
    with free.socket(free.opened()) as socket:
        socket.send(frame(0, 2.0))
        socket.send(frame(1, 2.0))
        assert closed(Talk(socket)) == (1007, "pts_s: got 2.0, expected above 2.0")
    with free.socket(free.opened()) as socket:
        with contextlib.suppress(ConnectionClosed):
            for n in range(2000):
                socket.send(quick(n))
        assert closed(Talk(socket))[0] == 1008


def test_a_reader_that_never_acknowledges_gets_a_dozen_frames(free: Served) -> None:
    number = free.opened()
    with free.socket(number) as socket:
        talk = Talk(socket)
        talk.until(12, acknowledge=False)
        end = time.monotonic() + 2
        while time.monotonic() < end:
            socket.send(frame(talk.sent))
            talk.sent += 1
            message = socket.recv(timeout=5)
            assert isinstance(message, str), "a frame beyond the dozen"
            time.sleep(0.1)
        # The next one is new: what lay in between was let go.
        socket.send(msgpack.packb({"ack": 11}))
        after = talk.until(1)
        assert after[0]["pts_s"] > 13 / 16


def test_refusals_are_told(free: Served) -> None:
    def post(body: Any) -> int:
        return free.ask("POST", "/api/sessions", body).status

    for wrong in (
        {},
        {"prompt": ""},
        {"prompt": "  "},
        {"prompt": "x" * 401},
        {"prompt": "x", "steps": 0},
        {"prompt": "x", "steps": 9},
        {"prompt": "x", "steps": "2"},
        {"prompt": "x", "slo_ms": 1},
        {"prompt": "x", "noise_range": {"low": 0.5, "high": 0.2}},
        {"prompt": "x", "engines": "/etc"},
        {"prompt": [{"text": "a", "weight": 0}]},
        b"{",
        b"\xff",
        [],
    ):
        assert post(wrong) in (400, 422), wrong
    assert post(b" " * 70_000) == 413
    for method in ("GET", "PATCH", "DELETE"):
        body = {"prompt": "x"} if method == "PATCH" else None
        assert free.ask(method, "/api/sessions/nobody", body).status == 404
    assert free.ask("GET", "/../../etc/passwd").status == 404
    assert free.ask("GET", "/api/engine", headers={"origin": "http://evil"}).status == 403
    with pytest.raises(InvalidStatus) as refused:
        free.socket("nobody")
    assert refused.value.response.status_code == 403
    number = free.opened()
    with pytest.raises(InvalidStatus):
        free.socket(number, origin="http://evil.example")
    assert free.ask("DELETE", f"/api/sessions/{number}").status == 204


def test_seats_are_limited_and_come_back(free: Served) -> None:
    numbers = [free.opened(fps=0.2) for _ in range(3)]
    assert free.ask("POST", "/api/sessions", {"prompt": "x"}).status == 429
    assert free.ask("DELETE", f"/api/sessions/{numbers[0]}").status == 204
    again = free.opened(fps=0.2)
    with free.socket(again) as socket:
        Talk(socket).until(1)
        with free.socket(again) as second:
            assert closed(Talk(second))[0] == 1007
    for number in numbers[1:]:
        assert free.ask("DELETE", f"/api/sessions/{number}").status == 204
    free.all_free()


def test_a_client_that_dies_every_time_disturbs_nobody(free: Served) -> None:
    over = threading.Event()

    def die() -> None:
        while not over.is_set():
            with free.socket(free.opened(fps=0.2)) as dying:
                dying.send(frame(0))
                dying.socket.shutdown(SHUT_RDWR)  # no closing handshake
            time.sleep(0.3)

    with free.socket(free.opened(fps=4.0)) as socket:
        thread = threading.Thread(target=die)
        thread.start()
        got = Talk(socket).until(12)
        over.set()
        thread.join()
    assert [m["index"] for m in got] == list(range(12))
    assert free.ask("GET", "/readyz").status == 200
    free.all_free()


def test_loading_draining_and_what_is_logged() -> None:
    with create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with serving("--log", "json", "--drain-s", "60", port=port) as served:
        assert served.ask("GET", "/readyz").status == 503
        assert served.ask("GET", "/healthz").status == 200
        assert served.ask("POST", "/api/sessions", {"prompt": "x"}).status == 503
        wait_until(lambda: served.ask("GET", "/readyz").status == 200, 60)
        number = served.opened(prompt="my secret wish")
        with served.socket(number) as socket:
            talk = Talk(socket)
            talk.until(2)
            served.process.send_signal(signal.SIGTERM)
            wait_until(lambda: served.ask("GET", "/readyz").status == 503)
            assert served.ask("POST", "/api/sessions", {"prompt": "x"}).status == 503
            talk.until(5)  # an open session goes on
        _, errors = served.process.communicate(timeout=30)
        assert served.process.returncode == 0
    events = [json.loads(line) for line in errors.splitlines()]
    assert [e["event"] for e in events] == ["ready", "opened", "draining", "ended"]
    assert "secret" not in errors
    assert number not in errors


def test_a_token_is_asked_for_and_an_open_stream_is_told_of_the_end() -> None:
    with serving("--token", "open-sesame", "--drain-s", "0.5") as served:
        assert served.ask("GET", "/api/engine").status == 401
        headers = {"authorization": "Bearer open-sesame"}
        answer = served.ask("POST", "/api/sessions", {"prompt": "comic"}, headers)
        assert answer.status == 201
        number = answer.json()["id"]
        with pytest.raises(InvalidStatus):
            served.socket(number)
        with served.socket(number, token="open-sesame") as s:
            served.process.send_signal(signal.SIGTERM)
            assert closed(Talk(s))[0] in (1001, 1012)
        assert ended(served)[0] == 0


def test_a_server_that_cannot_serve_says_why_and_no_address(tmp_path: Any) -> None:
    with create_server(("127.0.0.1", 0)) as taken:
        for given, code in (
            (("--port", "0", "--engines", str(tmp_path)), 1),
            (("--port", "0", "--steps", "9"), 2),
            (("--port", str(taken.getsockname()[1])), 2),
        ):
            done = subprocess.run(
                [sys.executable, "-m", "rt.serve", *given],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT / "python")},
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == code
            assert done.stderr.startswith("error: ")
            assert done.stderr.count("\n") == 1
            assert "http" not in done.stdout


def test_the_example_client_is_served(free: Served) -> None:
    done = subprocess.run(
        [sys.executable, "examples/websocket_client.py", free.url],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "python")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.startswith("8 frames came back"), done.stderr
