"""Fixtures for every test."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest

# pytest puts this folder on the path, where tests/rt and tests/export would pass for the packages.
_ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(_ROOT / "python"), str(_ROOT)]


@pytest.fixture(scope="session")
def tiny_engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engine directory of a micro model with random weights; never written to."""
    from micro_engine import build_micro

    return build_micro(tmp_path_factory.mktemp("micro"))


@pytest.fixture
def cuda() -> Any:
    """CuPy on a GPU. Skips where there is none, fails there under RT_REQUIRE_GPU=1."""
    reason = ""
    try:
        cupy = importlib.import_module("cupy")
        reason = "" if cupy.cuda.runtime.getDeviceCount() else "no CUDA device"
    except ImportError:
        reason = "CuPy is not installed"
    except Exception as error:  # noqa: BLE001 - CuPy's own errors, whose types it does not promise
        reason = f"CUDA: {error}"
    if reason and os.environ.get("RT_REQUIRE_GPU") == "1":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
    return cupy
