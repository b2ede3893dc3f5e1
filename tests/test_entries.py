"""How a command line ends that is interrupted before it has begun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "module, library, told",
    [
        ("export", "rich", "interrupted: nothing was written\n"),
        ("rt.serve", "uvicorn", "interrupted: the server has ended\n"),
    ],
)
def test_ctrl_c_while_a_library_loads_is_one_line(
    module: str, library: str, told: str, tmp_path: Path
) -> None:
    (tmp_path / f"{library}.py").write_text("raise KeyboardInterrupt\n")
    path = os.pathsep.join(map(str, (tmp_path, ROOT / "python", ROOT)))
    done = subprocess.run(
        [sys.executable, "-m", module],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", told)
