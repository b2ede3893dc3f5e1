"""Sessions of a hub: options that change begin it again, or end it; its life time ends it; no file
that a client names is read.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

from rt import Pipeline
from rt.errors import AdmissionRefused, ConfigError, Error
from rt.frame import Frame
from rt.serve.hub import Hub, Plan
from rt.serve.journal import Journal
from rt.serve.schema import NoiseRange, Part, SessionOptions, SessionUpdate

WRONG = SessionUpdate(noise_range=NoiseRange(low=0.3, high=0.4), steps=1)


class Seen:
    """A viewer that keeps the errors that it is told of."""

    def __init__(self) -> None:
        self.errors: list[Error] = []

    def show(self, frame: Frame, latency_ms: float, late: bool) -> None:
        pass

    def fail(self, error: Error) -> None:
        self.errors.append(error)


@pytest.fixture
def hub(tiny_engine: Path) -> Iterator[Hub]:
    made = Hub(Plan(tiny_engine), Journal("off"))
    made.load()
    assert made.state == "ready"
    yield made
    made.close()


def refusing(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """The next `times` sessions of any pipeline are refused."""
    left, begin = [times], Pipeline.session

    def session(pipeline: Pipeline, **options: object) -> object:
        if left[0]:
            left[0] -= 1
            raise AdmissionRefused("no room; try again later")
        return begin(pipeline, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Pipeline, "session", session)


def test_refused_once_it_goes_on_as_before(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    live, seen = hub.open(SessionOptions(prompt="ink", fps=4.0)), Seen()
    live.attach(seen)
    refusing(monkeypatch, 1)
    with pytest.raises(AdmissionRefused):
        hub.update(live, WRONG)
    assert live.options.steps is None
    assert not live.ended
    assert not seen.errors
    assert hub.get(live.id) is live
    assert hub.update(live, WRONG) == 0
    assert live.steps == 1


def test_refused_twice_it_is_over_and_says_so(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    live, seen = hub.open(SessionOptions(prompt="ink", fps=4.0)), Seen()
    live.attach(seen)
    before = live.counts()
    refusing(monkeypatch, 2)
    with pytest.raises(AdmissionRefused):
        hub.update(live, WRONG)
    assert live.ended
    assert [type(error) for error in seen.errors] == [AdmissionRefused]
    assert hub.sessions() == []
    assert live.counts() == before
    with pytest.raises(ConfigError, match="is over"):
        live.update(WRONG)
    assert hub.open(SessionOptions(prompt="ink")).steps > 0  # its seat is free again


def test_a_session_lives_no_longer_than_is_granted(hub: Hub) -> None:
    live = hub.open(SessionOptions(prompt="ink", fps=4.0))
    live.active_s = live.opened_s + hub.limits.life_s  # it never was idle
    hub.expire(live.opened_s + hub.limits.life_s - 1)
    assert hub.sessions() == [live]
    hub.expire(live.opened_s + hub.limits.life_s + 1)
    assert hub.sessions() == []


def test_what_a_client_says_is_never_a_path(hub: Hub) -> None:
    opened: list[str] = []
    watching = [True]

    def hear(event: str, given: tuple[object, ...]) -> None:
        if watching[0] and event in ("open", "os.listdir", "os.scandir"):
            opened.append(str(given[0]))

    sys.addaudithook(hear)  # it cannot be taken away again
    try:
        for text in ("/etc/passwd", "../../etc/passwd", "file:///etc/passwd", "a.safetensors"):
            live = hub.open(SessionOptions(prompt=text, fps=4.0))
            hub.update(live, SessionUpdate(prompt=[Part(text=text, weight=1.0)]))
            hub.end(live, "seen")
    finally:
        watching[0] = False
    assert opened == []
