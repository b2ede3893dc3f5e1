"""The page, in Debian's Chromium with its fake camera: what is on the screen, and what is saved."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from browser import needs_chromium, opened
from served import ROOT, Served, serving, wait_until

pytestmark = needs_chromium
sync_api = pytest.importorskip("playwright.sync_api")
Page = sync_api.Page

PICTURES = os.environ.get("RT_SCREENSHOTS")
"""A folder for screenshots, for docs/pictures."""

CANVASES = ("input", "output")
NAMELESS = """() => [...document.querySelectorAll("input, select, button, a, summary")]
  .filter((e) => !e.hidden && !(e.labels?.length || e.ariaLabel || e.innerText.trim()))
  .map((e) => e.id)"""
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
    with opened(server) as page:
        yield page


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
    first(page)


def first(page: Page) -> None:
    """Wait for the first picture. Where none comes, the page says why, and starts anew."""
    try:
        page.wait_for_selector("body[data-first-ms]", timeout=40_000)
    except sync_api.TimeoutError:
        assert page.inner_text("#alert") != ""
        if page.inner_text("#start") == "Stop":
            page.click("#start")
        page.click("#start")
        page.wait_for_selector("body[data-first-ms]", timeout=40_000)


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
    for width, height in ((320, 640), (700, 900), (1600, 900), (390, 844)):
        page.set_viewport_size({"width": width, "height": height})
        more(page, 2)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    look(page, "page-phone")
    page.click("#start")
    assert page.inner_text("#start") == "Start"
    wait_until(lambda: b"\nrt_sessions 0.0" in server.ask("GET", "/metrics").body)


def test_a_prompt_that_names_no_style_is_told_while_it_stands(page: Page) -> None:
    begin(page, "scene")
    more(page, 4)
    page.fill("#prompt", "a red castle")
    wait_until(lambda: "names no style" in page.inner_text("#note"))
    page.click("#styles button:text('oil painting')")
    wait_until(lambda: page.inner_text("#note") == "")


def test_everything_is_reached_with_the_keyboard(page: Page) -> None:
    order, rings = [], []
    for _ in range(40):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id || document.activeElement.innerText"))
        rings.append(page.evaluate("getComputedStyle(document.activeElement).outlineStyle"))
        if order[-1] == "low":
            break
    wanted = ("prompt", "pencil sketch", "Blend and transition", "source", "start", "steps", "low")
    assert [name for name in order if name in wanted] == list(wanted)
    assert {"thermal", "motion", "slo", "high"} <= set(order)
    assert set(rings) == {"solid"}
    # Whatever can be reached has a name that is read out.
    assert page.evaluate(NAMELESS) == []
    page.focus("#source")
    page.keyboard.press("b")  # the built-in scene
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    first(page)
    more(page, 4)
    assert page.inner_text("#first").endswith(" ms")
    page.keyboard.press("s")
    assert page.inner_text("#start") == "Start"


def test_instruments_show_what_the_server_counts(page: Page) -> None:
    begin(page, "scene")
    more(page, 8)
    page.wait_for_selector("body[data-ttff-ms]:not([data-ttff-ms=''])", timeout=60_000)
    heads = page.locator(".chart h2").all_inner_texts()
    for name in ("Frames per", "Latency", "Frames late", "Motion", "Noise", "Steps in", "Degrad"):
        assert any(head.startswith(name) for head in heads), name
    wait_until(lambda: page.locator(".chart h2 b", has_text="–").count() == 0)
    out, taken = (int(n) for n in page.inner_text("#counts").split(" / "))
    assert 0 < out <= taken


def test_steps_that_were_taken_away_are_shown(page: Page) -> None:
    """By the messages of a server that is short of time."""
    page.evaluate(
        """() => {
          const parse = JSON.parse;
          JSON.parse = (text) => {
            const message = parse(text);
            return message?.most_steps === undefined ? message : { ...message, steps: 1 };
          };
        }"""
    )
    page.select_option("#transport", "socket")
    begin(page, "scene")
    wait_until(lambda: page.inner_text("#state").startswith("live, 1 of "))


def film(path: Path, rgb: tuple[int, int, int]) -> Path:
    """One second of one colour."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libvpx", rate=10, options={"deadline": "realtime"})
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        picture = np.full((120, 160, 3), rgb, np.uint8)
        for _ in range(10):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def test_a_film_or_a_picture_is_a_source_and_what_is_neither_is_told(
    page: Page, server: Served, tmp_path: Path
) -> None:
    page.click("text=realistic")
    page.select_option("#source", "file")
    page.set_input_files("#file", film(tmp_path / "red.webm", (200, 30, 30)))
    begin(page, "file")
    more(page, 12)  # it begins again at its end
    assert all(colour(page, name)[0] > 1.5 * colour(page, name)[1:].max() for name in CANVASES)
    page.click("#start")
    page.set_input_files("#file", str(ROOT / "docs" / "motion.png"))
    page.click("#start")
    first(page)
    page.click("#start")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no film")
    page.set_input_files("#file", str(broken))
    page.click("#start")
    wait_until(lambda: "cannot play" in page.inner_text("#alert"))
    wait_until(lambda: b"\nrt_sessions 0.0" in server.ask("GET", "/metrics").body)


SILENT = {
    "the source shows no picture": "HTMLMediaElement.prototype.play = () => new Promise(() => {})",
    "the server has not answered": """
        RTCPeerConnection.prototype.setRemoteDescription = () => new Promise(() => {})""",
    "the server has sent no picture": "RTCRtpSender.prototype.replaceTrack = async () => {}",
}
"""What is said when something never comes, and a way to have that."""


@pytest.mark.parametrize("told", SILENT)
def test_a_start_that_waits_says_for_what_and_can_be_given_up(
    page: Page, server: Served, told: str
) -> None:
    page.evaluate(f"() => {{ {SILENT[told]} }}")
    page.select_option("#source", "camera")
    page.click("#start")
    wait_until(lambda: told in page.inner_text("#alert"), 60)
    page.click("#start")
    assert page.inner_text("#alert") == ""
    server.all_free()
    page.select_option("#source", "scene")
    page.select_option("#transport", "socket")
    page.click("#start")
    first(page)


def test_a_screen_is_a_source(page: Page) -> None:
    begin(page, "screen")
    more(page, 4)
    assert page.inner_text("#alert") == ""
