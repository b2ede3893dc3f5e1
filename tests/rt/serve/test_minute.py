"""A minute in front of a camera: Debian's Chromium, WebRTC, two prompts, a recording; what is on
the screen. `make browser` takes the whole minute, every other run a few seconds.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from browser import needs_chromium, opened
from numpy.typing import NDArray
from served import Served, serving, wait_until

pytestmark = [
    needs_chromium,
    pytest.mark.timeout(400),
]
sync_api = pytest.importorskip("playwright.sync_api")

SECONDS = float(os.environ.get("RT_BROWSER_SECONDS", "2"))
"""How long pictures flow."""
SIZE, FILM_FRAMES = 256, 120

LOOK = """(id) => {
  const canvas = document.getElementById(id);
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return btoa(String.fromCharCode(...data.filter((_, i) => i % 4 < 3 && (i >> 2) % 5 === 0)));
}"""


def scene(n: int) -> NDArray[np.uint8]:
    """A red disc that goes round over green and blue."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32) / SIZE
    rgb = np.stack([0.2 * x, 0.75 - 0.4 * y, 0.3 + 0.6 * y], -1)
    turn = 2 * np.pi * n / FILM_FRAMES
    disc = (x - 0.5 - 0.28 * np.cos(turn)) ** 2 + (y - 0.5 - 0.28 * np.sin(turn)) ** 2 < 0.03
    rgb[disc] = (0.95, 0.15, 0.1)
    return (rgb * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the camera sees, again and again."""
    path = tmp_path_factory.mktemp("camera") / "camera.y4m"
    with av.open(str(path), "w", format="yuv4mpegpipe") as out:
        stream = out.add_stream("rawvideo", rate=30)
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for n in range(FILM_FRAMES):
            picture = av.VideoFrame.from_ndarray(scene(n), format="rgb24")
            picture.pts, picture.time_base = n, Fraction(1, 30)
            out.mux(stream.encode(picture))
        out.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with serving("--steps", "3") as served:
        yield served


@pytest.fixture
def page(server: Served, film: Path) -> Iterator[Any]:
    with opened(server, f"--use-file-for-fake-video-capture={film}") as page:
        yield page


def pixels(page: Any, canvas: str) -> NDArray[np.float64]:
    """[pixels, 3] of every fifth pixel on the screen, 0 to 255."""
    data = base64.b64decode(page.evaluate(LOOK, canvas))
    return np.frombuffer(data, np.uint8).reshape(-1, 3).astype(float)


def saturation(rgb: NDArray[Any]) -> float:
    return float(np.ptp(rgb.reshape(-1, 3).astype(float), axis=1).mean())


def shown(page: Any) -> int:
    return int(page.get_attribute("body", "data-pictures") or 0)


def becomes(page: Any, what: str, true: Any) -> NDArray[np.float64]:
    """The output once `true` of its pixels, and for the pictures after."""
    wait_until(lambda: true(pixels(page, "output")), 90)
    until = shown(page) + 8
    wait_until(lambda: shown(page) >= until, 90)
    rgb = pixels(page, "output")
    assert true(rgb), what
    return rgb


def stays(page: Any, seconds: float, true: Any) -> None:
    """Pictures go on changing, and `true` of every one that is looked at."""
    end, before = time.monotonic() + seconds, pixels(page, "output")
    while time.monotonic() < end:
        until = shown(page) + 3
        wait_until(lambda until=until: shown(page) >= until, 90)
        now = pixels(page, "output")
        assert true(now)
        assert np.abs(now - before).max() > 30, "the picture stands still"
        before = now
        assert page.inner_text("#alert") == ""


def grey(rgb: NDArray[np.float64]) -> bool:
    """Pencil on paper: bright, and next to no colour."""
    return saturation(rgb) < 25 and rgb.mean() > 150


def hot(rgb: NDArray[np.float64]) -> bool:
    """A thermal camera's palette: colourful, and least of all green, which the scene is most of."""
    red, green, blue = rgb.mean(0)
    return saturation(rgb) > 60 and green < 0.8 * min(red, blue)


def test_a_minute_of_webrtc(page: Any, server: Served, tmp_path: Path) -> None:
    assert page.input_value("#transport") == "rtc"
    page.evaluate("for (const s of [document.getElementById('slo')]) s.value = s.max = 60000")
    page.select_option("#source", "camera")
    page.click("#start")
    page.wait_for_selector("body[data-first-ms]", timeout=60_000)
    camera = pixels(page, "input")
    assert saturation(camera) > 90
    assert not grey(camera)
    assert not hot(camera)
    becomes(page, "pencil", grey)
    stays(page, SECONDS / 2, grey)

    page.fill("#prompt", "thermal")
    becomes(page, "thermal", hot)
    page.click("#record")
    stays(page, SECONDS / 2, hot)
    with page.expect_download(timeout=20_000) as download:
        page.click("#record")
    screen = pixels(page, "output")
    saved = tmp_path / download.value.suggested_filename
    download.value.save_as(saved)
    page.click("#start")
    server.all_free()

    with av.open(str(saved)) as recording:
        frames = [f.to_ndarray(format="rgb24") for f in recording.decode(video=0)]
    assert len(frames) >= SECONDS
    assert all(hot(frame.reshape(-1, 3).astype(float)) for frame in frames)
    assert np.abs(frames[-1].mean((0, 1)) - screen.mean(0)).max() < 40
    if shutil.which("ffprobe") is not None:
        told = subprocess.run(
            ["ffprobe", "-v", "error", "-show_streams", "-of", "json", str(saved)],
            capture_output=True,
            check=True,
        )
        assert told.stderr == b""
        (stream,) = json.loads(told.stdout)["streams"]
        assert (stream["width"], stream["height"]) == (SIZE, SIZE)
