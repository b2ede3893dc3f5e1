"""The page in Debian's Chromium."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from served import Served

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium: apt-get install chromium"
)


@contextlib.contextmanager
def opened(server: Served, *switches: str) -> Iterator[Any]:
    """The page, ready, with a fake camera. Afterwards it has complained of nothing, and its session
    has ended.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--use-fake-device-for-media-stream",
                "--use-fake-ui-for-media-stream",
                *switches,
            ],
        )
        page = browser.new_page(viewport={"width": 1200, "height": 860}, color_scheme="dark")
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        page.goto(server.url)
        page.wait_for_selector("body[data-ready=yes]", timeout=30_000)
        yield page
        page.close()
        browser.close()
        server.all_free()
        assert complaints == [], complaints
