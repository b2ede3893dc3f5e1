"""Fixtures for every test."""

from __future__ import annotations

from pathlib import Path

import pytest
from micro_engine import build_micro


@pytest.fixture(scope="session")
def tiny_engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engine directory of a micro model with random weights; never written to."""
    return build_micro(tmp_path_factory.mktemp("micro"))
