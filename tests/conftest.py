"""Fixtures for every test."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# pytest puts this folder on the path, where tests/rt and tests/export would pass for the packages.
_ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(_ROOT / "python"), str(_ROOT)]


@pytest.fixture(scope="session")
def tiny_engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engine directory of a micro model with random weights; never written to."""
    from micro_engine import build_micro

    return build_micro(tmp_path_factory.mktemp("micro"))
