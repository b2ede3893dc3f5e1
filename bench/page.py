"""From "start" to the first restyled picture on the page, in Debian's Chromium without a window,
with its fake camera: every start in a browser of its own, after one that warms the disk's cache.

    python -m bench.page --runs 7
"""

from __future__ import annotations

import itertools
import shutil
import statistics
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from bench.clients import serving
from bench.table import ROOT, Row, count, parser, publish

LIMIT_MS = 1000.0
NAMES = {"rtc": "WebRTC", "socket": "WebSocket"}
BROWSER = (
    "--no-sandbox",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)


def first_picture_ms(url: str, source: str, transport: str, chromium: str) -> tuple[float, float]:
    """What the page shows, and what of it the server took."""
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=list(BROWSER))
        page = browser.new_page(viewport={"width": 1200, "height": 860})
        page.goto(url)
        page.wait_for_selector("body[data-ready=yes]", timeout=30_000)
        page.select_option("#source", source)
        page.select_option("#transport", transport)
        page.click("#start")
        page.wait_for_selector("body[data-first-ms]", timeout=60_000)
        page.wait_for_selector("body[data-ttff-ms]:not([data-ttff-ms=''])", timeout=60_000)
        shown = float(page.inner_text("#first").removesuffix(" ms"))
        server = float(page.get_attribute("body", "data-ttff-ms") or "nan")
        page.click("#start")  # the same button stops
        page.wait_for_selector("#state[data-state=idle]")
        page.close()
        browser.close()
    return shown, server


def main() -> int:
    p = parser(__doc__, "page")
    p.add_argument("--runs", type=count, default=7)
    p.add_argument("--steps", type=count, default=4, help="most; the page begins with the model's")
    p.add_argument("--engines", type=Path, default=ROOT / "engines" / "tiny")
    o = p.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        print("error: no chromium; apt-get install chromium", file=sys.stderr)
        return 1
    rows: list[Row] = []
    with serving(o.engines, "--steps", str(o.steps), "--sessions", "2") as (_, url):
        for transport, source in itertools.product(("rtc", "socket"), ("camera", "scene")):
            tries = range(1 + o.runs)
            runs = [first_picture_ms(url, source, transport, chromium) for _ in tries][1:]
            shown, server = [run[0] for run in runs], [run[1] for run in runs]
            name = f"{source}, {NAMES[transport]}"
            for what, value in (("median", statistics.median(shown)), ("worst", max(shown))):
                rows.append(Row(f"{name}: first picture, {what}", value, "ms", o.runs, LIMIT_MS))
            rows.append(Row(f"{name}: in the server", statistics.median(server), "ms", o.runs))
    publish(f"start to first picture, {o.engines.name}, at most {o.steps} steps", rows, o.json)
    return 0 if all(row.value <= (row.limit or row.value) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
