"""WebRTC against a real server, with aiortc as the client: streams, refusals, ends."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest
from calling import Caller, only_loopback
from hypothesis import given, settings
from hypothesis import strategies as st
from served import Served, picture, wait_until

from rt.errors import ConfigError
from rt.frame import Frame
from rt.serve import offer
from rt.serve.rtc import Restyled

only_loopback()


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


async def made_offer() -> str:
    caller = Caller(picture)
    sdp = await caller.offer()
    await caller.close()
    return sdp


@pytest.fixture(scope="module")
def sdp() -> str:
    """An offer that would be taken."""
    return asyncio.run(made_offer())


def test_a_stream_is_restyled_at_its_own_times_and_a_vanished_peer_is_given_up(
    free: Served,
) -> None:
    run(_stream(free))


async def _stream(free: Served) -> None:
    lost, number = free.opened(fps=0.2), free.opened(prompt="realistic", steps=1)
    vanishing, caller = Caller(picture, fps=4.0), Caller(picture)
    await vanishing.call(free, lost)
    await caller.call(free, number)
    await vanishing.until(lambda: len(vanishing.said) > 0)
    # Its sockets are gone, as when a phone leaves the house: no word of farewell.
    for transceiver in vanishing.connection.getTransceivers():
        await transceiver.sender.transport.transport._connection.close()

    before = (await caller.more(5))[-1]
    path = f"/api/sessions/{number}"
    answer = await asyncio.to_thread(free.ask, "PATCH", path, {"prompt": "sepia film"})
    assert answer.status == 200
    # Sepia has one hue: the channels differ by less than in the colourful source.
    colour = before.std(-1).mean()
    await caller.until(lambda: bool(caller.pictures[-1].std(-1).mean() < 0.7 * colour))
    assert before.shape == caller.pictures[-1].shape == (256, 256, 3)
    # The source has 16 frames/s: whatever was left out, what came back lies on its grid.
    gaps = np.diff(caller.times) * 16
    assert (gaps > 0.9).all()
    np.testing.assert_allclose(gaps, gaps.round(), atol=0.05)

    def shown() -> int:
        told = caller.said[-1] if caller.said else {"frames_on_time": 0, "frames_late": 0}
        return int(told["frames_on_time"] + told["frames_late"])

    await caller.until(lambda: shown() >= 5)
    assert caller.said[-1]["id"] == number

    def gone(session: str) -> bool:
        return free.ask("GET", f"/api/sessions/{session}").status == 404

    # One stream each, whatever it travels on.
    again = Caller(picture)
    body = {"sdp": await again.offer()}
    refused = await asyncio.to_thread(free.ask, "POST", path + "/offer", body)
    assert refused.status == 422
    assert b"a stream is attached" in refused.body
    await again.close()
    await caller.close()
    await asyncio.to_thread(wait_until, lambda: gone(number))
    await asyncio.to_thread(wait_until, lambda: gone(lost), 40)
    await vanishing.close()


def test_an_end_is_told_with_its_reason(free: Served) -> None:
    run(_ends(free))


async def _ends(free: Served) -> None:
    def huge(_: int) -> np.ndarray:
        return np.zeros((512, 512, 3), np.uint8)  # conftest: --frame-pixels

    callers = [Caller(huge, fps=8.0), Caller(picture, fps=4.0), Caller(picture, fps=4.0)]
    numbers = [free.opened(fps=0.2) for _ in callers]
    for caller, number in zip(callers, numbers, strict=True):
        await caller.call(free, number)
    large, talking, deleted = callers
    await deleted.until(lambda: len(deleted.said) > 0)
    await asyncio.to_thread(free.ask, "DELETE", f"/api/sessions/{numbers[2]}")
    await talking.until(lambda: talking.channel.readyState == "open")
    talking.channel.send("hello")
    for caller, words in (
        (large, "512x512"),
        (talking, "nothing is read"),
        (deleted, "ended the session"),
    ):
        await caller.until(lambda caller=caller: any("ended" in said for said in caller.said))
        assert words in caller.said[-1]["ended"]
        await caller.close()
    await asyncio.to_thread(free.all_free)


def without(line: str) -> Callable[[str], str]:
    return lambda sdp: re.sub(rf"{line}.*\r\n", "", sdp)


def instead(line: str, other: str) -> Callable[[str], str]:
    return lambda sdp: re.sub(line, other, sdp)


def twice(kind: str) -> Callable[[str], str]:
    def add(sdp: str) -> str:
        media = re.split(r"(?m)^(?=m=)", sdp)
        return sdp + next(m for m in media if m.startswith(f"m={kind}"))

    return add


WRONG: dict[str, Callable[[str], str]] = {
    "empty": lambda _: "",
    "no SDP": lambda _: "give me pictures",
    "a line": lambda _: "v=0\r\n",
    "binary": lambda _: "\x00\xff" * 999,
    "large": lambda sdp: sdp + "a=x\r\n" * 9000,
    "larger than a body": lambda sdp: sdp + "a=x\r\n" * 20_000,
    "an answer's role": instead("a=setup:actpass", "a=setup:nobody"),
    "no role": without("a=setup"),
    "no identity": without("a=fingerprint"),
    "an old identity": instead("sha-256|sha-384|sha-512", "md5"),
    "no credentials": without("a=ice-ufrag"),
    "no password": without("a=ice-pwd"),
    "no mux": without("a=rtcp-mux"),
    "no names": without("a=mid"),
    "one name": instead("a=mid:.*", "a=mid:0"),
    "no bundle": without("a=group"),
    "a bundle of others": instead("a=group:BUNDLE.*", "a=group:BUNDLE 7 8"),
    "two videos": twice("video"),
    "two channels": twice("application"),
    "sound": instead("m=video", "m=audio"),
    "no channel": lambda sdp: re.split(r"(?m)^(?=m=application)", sdp)[0],
    "no video": lambda sdp: re.sub(r"(?ms)^m=video.*?(?=^m=app)", "", sdp),
    "nothing sent": instead("a=sendrecv", "a=recvonly"),
    "nothing received": instead("a=sendrecv", "a=sendonly"),
    "no codec that is known": instead("VP8", "VP7"),
    "a format of no codec": lambda sdp: sdp.replace("a=fmtp:98", "a=fmtp:33"),
    "a format that is no number": instead("a=fmtp:98", "a=fmtp:x"),
    "a port out of range": instead("m=video 9|m=video \\d+", "m=video x"),
    "a channel without a port": without("a=sctp-port"),
}


def test_wrong_offers_are_refused_and_the_server_lives(free: Served, sdp: str) -> None:
    number = free.opened(fps=0.2)
    for name, change in WRONG.items():
        wrong = change(sdp)
        assert wrong != sdp, name
        answer = free.ask("POST", f"/api/sessions/{number}/offer", {"sdp": wrong})
        assert answer.status in (413, 422), (name, answer.body)
    for body in ({}, {"sdp": 1}, {"sdp": "x", "more": 1}, b"{", b"\xff", []):
        answer = free.ask("POST", f"/api/sessions/{number}/offer", body)
        assert answer.status in (400, 422), body
    assert free.ask("POST", "/api/sessions/nobody/offer", {"sdp": sdp}).status == 404
    evil = {"origin": "http://evil.example"}
    path = f"/api/sessions/{number}/offer"
    assert free.ask("POST", path, {"sdp": sdp}, evil).status == 403
    # None of them has taken the session.
    assert free.ask("POST", path, {"sdp": sdp}).status == 200
    assert free.ask("DELETE", f"/api/sessions/{number}").status == 204


@st.composite
def damaged(draw: st.DrawFn, sdp: str) -> str:
    """`sdp` with some lines cut, doubled, moved or written over."""
    lines = sdp.splitlines(keepends=True)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(lines) - 1))
        line = lines[at]
        what = draw(st.sampled_from(["cut", "double", "move", "write", "number"]))
        if what == "cut" and len(lines) > 1:
            del lines[at]
        elif what == "double":
            lines.insert(at, line)
        elif what == "move":
            lines.insert(draw(st.integers(0, len(lines) - 1)), lines.pop(at))
        elif what == "write":
            place = draw(st.integers(0, len(line)))
            lines[at] = line[:place] + draw(st.text(max_size=6)) + line[place + 2 :]
        else:
            numbers = st.sampled_from(["-1", "0", "99999999999999999999", "0.5", "x", ""])
            lines[at] = re.sub(r"\d+", draw(numbers), line)
    return "".join(lines)


def test_no_offer_breaks_the_server(free: Served, sdp: str) -> None:
    number = free.opened(fps=0.2)
    path = f"/api/sessions/{number}/offer"
    assert free.ask("POST", path, {"sdp": sdp}).status == 200

    # The session has a stream, so even an offer that could be answered is refused in the end.
    @settings(max_examples=80, deadline=None)
    @given(st.data())
    def refused(data: st.DataObject) -> None:
        answer = free.ask("POST", path, {"sdp": data.draw(damaged(sdp))})
        assert answer.status == 422, answer.body

    refused()
    assert free.ask("GET", "/readyz").status == 200
    assert free.ask("DELETE", f"/api/sessions/{number}").status == 204


@given(st.text(max_size=400))
def test_any_text_is_no_offer(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^sdp: "):
        offer.checked(text)


def test_an_offer_sends_the_server_nowhere(sdp: str) -> None:
    assert "a=candidate:" in sdp
    assert "candidate" not in offer.checked(sdp)
    assert offer.without_candidates("v=0\na=candidate:1 1 UDP 1 10.0.0.1 9 typ host\n") == "v=0\n"


def test_what_is_not_yet_sent_is_replaced_by_what_is_newer() -> None:
    async def newest() -> None:
        track = Restyled(asyncio.get_running_loop())
        for n in range(3):
            track.show(Frame(picture(n), n, n / 10, 0), 1.0, False)
        await asyncio.sleep(0)
        sent = await track.recv()
        assert (sent.pts, sent.time) == (18_000, 0.2)
        next_ = asyncio.ensure_future(track.recv())
        await asyncio.sleep(0)
        assert not next_.done()
        track.show(Frame(picture(3), 3, 0.3, 0), 1.0, False)
        assert (await next_).time == 0.3

    run(newest())
