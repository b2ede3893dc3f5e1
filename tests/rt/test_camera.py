"""Cameras and virtual cameras through libav's own V4L2 code. The kernel's part is faked: a plain
file, and a preloaded library that answers the ioctls (fake_v4l2.cpp). No real device was seen.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rt import media
from rt.errors import SinkError, SourceError
from rt.media.places import Place

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def preload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("v4l2") / "fake_v4l2.so"
    flags = ["-shared", "-fPIC", "-O1", "-w", "-std=c++17", "-o", str(library)]
    subprocess.run(["g++", *flags, str(HERE / "fake_v4l2.cpp"), "-ldl"], check=True)
    return library


def ran(preload: Path, program: str, device: Path, **more: str) -> Any:
    """What `program` prints as JSON, in a process for which `device` is a camera."""
    begin = "import itertools, json, sys\nfrom pathlib import Path\nfrom rt import media\n"
    place = "place = media.Place('camera', sys.argv[1], Path(sys.argv[1]))\n"
    env = {**os.environ, "LD_PRELOAD": str(preload), **more}
    command = [sys.executable, "-c", begin + place + program, str(device)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


READS = """
source = media.open_source(place, media.Asked((32, 48), 50.0), media.Backoff(first_s=0.05))
frames = list(itertools.islice(source, 20))
source.close()
levels = [float(f.rgb.mean()) for f in frames]
facts = [source.live, source.height, source.width, float(source.rate), source.remarks]
print(json.dumps([facts, levels, [f.pts_s for f in frames]]))
"""


def test_a_camera_gives_what_it_is_asked_for(preload: Path, tmp_path: Path) -> None:
    device = tmp_path / "video0"
    device.touch()
    facts, levels, times = ran(preload, READS, device)
    assert facts == [True, 32, 48, 50.0, []]
    assert np.allclose(np.diff(levels), 2 * 255 / 219, atol=1.4), "each is a step brighter"
    assert times[0] == 0
    assert (np.diff(times) > 0.015).all()


def test_a_camera_that_is_unplugged_comes_back(preload: Path, tmp_path: Path) -> None:
    device = tmp_path / "video0"
    device.touch()
    facts, levels, times = ran(preload, READS, device, FAKE_V4L2_FRAMES="10")
    (remark,) = facts[-1]
    assert "was gone for" in remark
    assert len(levels) == 20
    assert (np.diff(times) > 0).all()
    assert np.diff(times).max() >= 0.025, "the time that it was away is kept"


WRITES = """
scene = media.moving_scene(32, 48, 25, 0.4)
sink = media.open_sink(place, scene, 32, 48)
assert sink.live
for frame in scene:
    sink.write(frame)
sink.close()
print(json.dumps(sink.remarks))
"""


def test_a_virtual_camera_takes_yuyv(preload: Path, tmp_path: Path) -> None:
    device = tmp_path / "video2"
    device.touch()
    assert ran(preload, WRITES, device) == []
    pictures = np.frombuffer(device.read_bytes(), np.uint8).reshape(10, 32, 48, 2)
    for frame, written in zip(media.moving_scene(32, 48, 25, 0.4), pictures, strict=True):
        luma = 16 + frame.rgb @ np.array([0.299, 0.587, 0.114]) * 219 / 255
        assert np.abs(written[..., 0] - luma).max() <= 2


def test_a_device_that_is_none(tmp_path: Path) -> None:
    missing = Place("camera", "/dev/video9999", Path("/dev/video9999"))
    with pytest.raises(SourceError, match="no such device"):
        media.open_source(missing)
    with pytest.raises(SinkError, match="v4l2loopback"):
        media.open_sink(missing, media.moving_scene(8, 8), 8, 8)
    plain = tmp_path / "video0"
    plain.write_bytes(b"no device")
    with pytest.raises(SourceError, match="cannot be opened"):
        media.open_source(Place("camera", str(plain), plain))
    with pytest.raises(SinkError, match="cannot be opened"):
        media.open_sink(Place("camera", str(plain), plain), media.moving_scene(8, 8), 8, 8)
