"""Kill -9 at ten random moments of a build for TensorRT: the rerun completes, and builds nothing
again. test_build.py kills one for ONNX Runtime once, and runs what was built.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from killed_builds import options_of

from export.build import build_engines
from rt import manifest as records

SCRIPT = Path(__file__).with_name("killed_builds.py")
BACKENDS = ("tensorrt-rtx",)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Ten kills for each backend."""
    folder = tmp_path_factory.mktemp("killed")
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), "7", "10", *BACKENDS],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {"folder": folder, **found}


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_was_finished_outlives_every_kill(backend: str, told: dict[str, Any]) -> None:
    seen = told[backend]
    assert seen["status"] == 0
    assert seen["rebuilt"] == []
    assert seen["steps"] == sorted(seen["steps"])
    assert seen["steps"][-2] > 0, "no kill came after the first file"
    options = options_of(backend, told["folder"] / backend / "killed")
    directory = options.out / options.name
    manifest = records.read(directory)
    records.check_files(manifest, directory)
    assert build_engines(options).up_to_date
