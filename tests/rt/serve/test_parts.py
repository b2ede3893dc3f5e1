"""The pure parts: messages, rates, sampling, who may talk to the server."""

from __future__ import annotations

import asyncio
import contextlib
from socket import IPPROTO_TCP, TCP_NODELAY

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from messages import ANY
from served import jpeg, picture
from starlette.datastructures import Headers

from rt.errors import SourceError
from rt.serve import pace, wire
from rt.serve.guard import Access, hosts_of
from rt.serve.limits import Limits, MessageRate
from rt.serve.pictures import decode_jpeg, encode_jpeg
from rt.serve.schema import SessionOptions
from rt.serve.server import listen, main

LIMITS = Limits(frame_bytes=100_000, frame_pixels=300 * 300)


@given(ANY)
def test_any_bytes_are_a_message_or_a_source_error(data: bytes) -> None:
    with contextlib.suppress(SourceError):
        message = wire.read(data, LIMITS)
        if isinstance(message, wire.Picture):
            assert message.rgb(LIMITS).shape[2:] == (3,)


@given(st.integers(1, 20), st.integers(1, 20), st.floats(0, 1e6))
def test_a_raw_picture_arrives_bit_for_bit(height: int, width: int, pts_s: float) -> None:
    rgb = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    content = {"pts_s": pts_s, "format": "raw", "data": rgb.tobytes()}
    message = wire.read(msgpack.packb({**content, "height": height, "width": width}), LIMITS)
    assert isinstance(message, wire.Picture)
    assert message.pts_s == pts_s
    np.testing.assert_array_equal(message.rgb(LIMITS), rgb)
    with pytest.raises(SourceError):
        wire.read(msgpack.packb({**content, "height": height + 1, "width": width}), LIMITS)


def test_jpeg_is_the_picture_and_nothing_else_is_a_jpeg() -> None:
    rgb = picture(3)
    again = decode_jpeg(encode_jpeg(rgb), 256 * 256)
    assert np.abs(again.astype(int) - rgb).mean() < 3
    whole = jpeg(rgb)
    for broken in (b"", b"GIF89a", whole[: len(whole) // 2], b"\xff\xd8" + bytes(500)):
        with pytest.raises(SourceError):
            decode_jpeg(broken, 256 * 256)
    with pytest.raises(SourceError, match="scale it down"):
        decode_jpeg(whole, 256 * 255)


@given(st.lists(st.floats(0, 0.5), min_size=1, max_size=300), st.floats(1, 50))
def test_no_second_has_more_messages_than_two_buckets(gaps: list[float], per_s: float) -> None:
    rate, now_s, passed = MessageRate(per_s, 0.0), 0.0, []
    for gap in gaps:
        now_s += gap
        if rate.allows(now_s):
            passed.append(now_s)
    for start in passed:
        assert sum(start <= at < start + 1 for at in passed) <= 2 * per_s + 1


@pytest.mark.parametrize("service_s", [0.05, 0.2, 0.8])
def test_sampling_settles_at_the_rate_of_the_pipeline(service_s: float) -> None:
    """A camera of 30 frames/s before a pipeline that takes a chunk of 4 every `service_s`."""
    spacing_s, now_s, free_s, last_s, count = 0.001, 0.0, 0.0, None, 0
    gaps: list[float] = []
    for n in range(3000):
        pts_s = n / 30
        if pts_s < now_s or not pace.takes(pts_s, last_s, spacing_s):
            continue
        now_s = pts_s
        count += 1
        waited_s = 0.0
        if count % 4 == 0:
            waited_s = max(0.0, free_s - now_s)
            now_s += waited_s
            free_s = now_s + service_s
        spacing_s = pace.next_spacing(spacing_s, waited_s, 0, 4)
        if last_s is not None:
            gaps.append(pts_s - last_s)
        last_s = pts_s
    settled = np.array(gaps[len(gaps) // 2 :])
    wanted = max(1 / 30, service_s / 4)
    assert abs(settled.mean() - wanted) < 0.35 * wanted + 1 / 60
    assert settled.max() < wanted * 2.5 + 1 / 15


def _refusal(access: Access, path: str = "/api/engine", **headers: str) -> int | None:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    refused = access.refusal(path, Headers(named), "")
    return None if refused is None else refused[0]


def test_who_may_talk_to_the_server() -> None:
    local = Access()
    assert _refusal(local, host="localhost:8000") is None
    assert _refusal(local, host="[::1]:8000") is None
    assert _refusal(local, host="evil.example:8000") == 400  # DNS rebinding
    assert _refusal(local, host="localhost:1", origin="http://localhost:1") is None
    assert _refusal(local, host="localhost:1", origin="http://localhost:2") == 403
    assert _refusal(local, host="localhost:1", origin="null") == 403
    show = Access(origins=("https://show.example",))
    assert _refusal(show, host="localhost:1", origin="https://show.example") is None
    assert _refusal(local, host="localhost", content_length="64001") == 413
    assert _refusal(local, host="localhost", content_length="-1") == 400
    assert _refusal(local, host="localhost", transfer_encoding="chunked") == 411


def test_a_token_guards_everything_but_the_page_and_health() -> None:
    access = Access(hosts_of((), "0.0.0.0"), token="open sesame")
    assert _refusal(access, host="a.example") == 401
    assert _refusal(access, host="a.example", authorization="Bearer open sesam") == 401
    assert _refusal(access, host="a.example", authorization="Bearer open sesame") is None
    assert _refusal(access, "/metrics", host="a.example") == 401
    assert _refusal(access, "/readyz", host="a.example") is None
    assert _refusal(access, "/", host="a.example") is None
    query = "token=open%20sesame"
    assert access.refusal("/api/x", Headers({"host": "a"}), query) is None


@pytest.mark.parametrize(
    "given, told",
    [
        (("--port", "-1"), "port: got -1, expected a whole number from 0 to 65535"),
        (("--port", "65536"), "port: got 65536, expected a whole number from 0 to 65535"),
        (("--drain-s", "-1"), "drain_s: got -1.0, expected 0 or more"),
        (("--sessions", "0"), "sessions: got 0, expected above 0"),
        (("--token", "short"), "token: got 5 characters, expected at least 8"),
    ],
)
def test_a_mistake_is_one_line(
    given: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(given) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"error: {told}\n")


def test_what_is_sent_leaves_at_once() -> None:
    """Without Nagle's algorithm, which holds back the end of a frame until the client answers."""
    listening = listen("127.0.0.1", 0)

    async def accepted() -> int:
        seen: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            socket = writer.get_extra_info("socket")
            seen.set_result(socket.getsockopt(IPPROTO_TCP, TCP_NODELAY))
            writer.close()

        async with await asyncio.start_server(serve, sock=listening):
            _, writer = await asyncio.open_connection(*listening.getsockname())
            writer.close()
            return await seen

    assert asyncio.run(accepted()) != 0


def test_a_whole_number_is_one_however_it_is_written() -> None:
    assert SessionOptions.model_validate_json('{"prompt": "ink", "steps": 2.0}').steps == 2
    for wrong in ("2.5", '"2"', "true", "0.0", "17.0"):
        with pytest.raises(ValueError):
            SessionOptions.model_validate_json(f'{{"prompt": "ink", "steps": {wrong}}}')
