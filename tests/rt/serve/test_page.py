"""The page, in Debian's Chromium with its fake camera: what is on the screen, and what is saved."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from served import ROOT, Served, serving, wait_until

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
sync_api = pytest.importorskip("playwright.sync_api")
Page = sync_api.Page

PICTURES = os.environ.get("RT_SCREENSHOTS")
"""A folder for screenshots, for docs/pictures."""

MEAN_COLOUR = """(id) => {
  const canvas = document.getElementById(id);
  const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  let sums = [0, 0, 0];
  for (let i = 0; i < data.length; i++) if (i % 4 < 3) sums[i % 4] += data[i];
  return sums.map((sum) => sum / (data.length / 4));
}"""


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with serving("--steps", "3") as served:
        yield served


@pytest.fixture
def page(server: Served) -> Iterator[Page]:
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--use-fake-device-for-media-stream",
                "--use-fake-ui-for-media-stream",
            ],
        )
        page = browser.new_page(viewport={"width": 1200, "height": 860}, color_scheme="dark")
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        page.goto(server.url)
        page.wait_for_selector("body[data-ready=yes]", timeout=30_000)
        yield page
        page.close()  # its session ends with it
        browser.close()
        server.all_free()
        assert complaints == []


def colour(page: Page, canvas: str) -> np.ndarray:
    return np.array(page.evaluate(MEAN_COLOUR, canvas))


def pictures(page: Page) -> int:
    return int(page.get_attribute("body", "data-pictures") or 0)


def more(page: Page, count: int) -> None:
    """Wait for `count` further pictures."""
    until = pictures(page) + count
    wait_until(lambda: pictures(page) >= until, 90)


def begin(page: Page, source: str) -> None:
    page.select_option("#source", source)
    page.evaluate("document.getElementById('slo').max = 60000")
    page.evaluate("document.getElementById('slo').value = 60000")
    page.click("#start")
    page.wait_for_selector("body[data-first-ms]", timeout=60_000)


def look(page: Page, name: str) -> None:
    if PICTURES is not None:
        page.screenshot(path=f"{PICTURES}/{name}.jpg", type="jpeg", quality=88)


def test_a_camera_is_restyled_the_prompt_is_obeyed_and_a_recording_is_saved(
    page: Page, tmp_path: Path
) -> None:
    begin(page, "camera")
    more(page, 8)
    camera, sketch = colour(page, "input"), colour(page, "output")
    # The fake camera is green; a pencil sketch of it is paper.
    assert camera[1] > 1.5 * max(camera[0], camera[2])
    assert np.ptp(sketch) < 0.5 * np.ptp(camera)
    page.keyboard.press("1")
    assert page.input_value("#prompt") == "realistic"
    more(page, 16)
    again = colour(page, "output")
    assert again[1] > 1.5 * max(again[0], again[2])
    assert page.inner_text("#alert") == ""

    page.click("#record")
    more(page, 8)
    with page.expect_download(timeout=20_000) as download:
        page.click("#record")
    saved = tmp_path / download.value.suggested_filename
    download.value.save_as(saved)
    with av.open(str(saved)) as film:
        frames = [f.to_ndarray(format="rgb24") for f in film.decode(video=0)]
    assert len(frames) >= 4
    shown = frames[-1].reshape(-1, 3).mean(0)
    assert shown[1] > 1.5 * max(shown[0], shown[2])


def test_options_blends_themes_and_a_phone(page: Page, server: Served) -> None:
    begin(page, "scene")
    more(page, 24)
    look(page, "page-dark")
    page.select_option("#steps", "1")
    page.click("summary")
    page.fill("#second", "comic")
    page.fill("#weight", "50")
    more(page, 10)
    wait_until(lambda: "1 step" in page.inner_text("#state"))
    assert page.inner_text("#alert") == ""
    page.click("summary")
    page.emulate_media(color_scheme="light")
    page.click("text=oil painting")
    more(page, 16)
    look(page, "page-light")
    page.set_viewport_size({"width": 390, "height": 844})
    more(page, 4)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    look(page, "page-phone")
    page.click("#start")
    assert page.inner_text("#start") == "Start"
    wait_until(lambda: b"\nrt_sessions 0.0" in server.ask("GET", "/metrics").body)


def test_everything_is_reached_with_the_keyboard(page: Page) -> None:
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.innerText"))
    assert {"prompt", "source", "start", "steps", "motion", "slo", "low", "high"} <= reached
    assert {"pencil sketch", "thermal", "Blend and transition"} <= reached


def test_a_file_is_a_source_and_what_is_no_film_is_told(page: Page, tmp_path: Path) -> None:
    page.select_option("#source", "file")
    page.set_input_files("#file", str(ROOT / "docs" / "motion.png"))
    page.click("#start")
    page.wait_for_selector("body[data-first-ms]", timeout=60_000)
    page.click("#start")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no film")
    page.set_input_files("#file", str(broken))
    page.click("#start")
    wait_until(lambda: "cannot play" in page.inner_text("#alert"))
