"""Every program of examples/ runs and does what it says."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "python"), str(ROOT)])}


def ran(name: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "error", f"examples/{name}.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_restyle_file(tmp_path: Path) -> None:
    source, target = tmp_path / "in.mp4", tmp_path / "out.mp4"
    with av.open(str(source), "w") as film:
        stream = film.add_stream("libx264", rate=16)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for n in range(6):
            picture = np.full((96, 128, 3), 30 * n, np.uint8)
            film.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        film.mux(stream.encode())
    assert ran("restyle_file", str(source), str(target), "oil painting").startswith("6 frames")
    with av.open(str(target)) as film:
        assert sum(1 for _ in film.decode(video=0)) == 6


def test_event_loop() -> None:
    assert ran("event_loop") == "24 frames"


def test_arrays() -> None:
    assert "uint8 [9, 256, 256, 3]" in ran("arrays")


def test_several_sessions() -> None:
    assert ran("several_sessions").splitlines() == ["comic: 16 frames", "sepia film: 16 frames"]


def test_endpoint() -> None:
    testclient = pytest.importorskip("starlette.testclient")
    from examples.endpoint import build

    picture = io.BytesIO()
    Image.fromarray(np.full((100, 120, 3), 90, np.uint8)).save(picture, "JPEG")
    with testclient.TestClient(build()) as client:
        answer = client.post("/restyle", params={"prompt": "comic"}, content=picture.getvalue())
    assert answer.status_code == 200
    with Image.open(io.BytesIO(answer.content)) as restyled:
        assert restyled.size == (256, 256)
