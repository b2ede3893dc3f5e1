"""torch's compiler is shown CUDA's toolkit and the driver, wherever they are."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from torch.utils import cpp_extension

from export import toolkit


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`nvcc` is a script away from its toolkit; the driver has its versioned name alone."""
    commands, home, lib = (tmp_path / name for name in ("bin", "cuda", "lib"))
    for folder in (commands, home / "bin", lib):
        folder.mkdir(parents=True)
    nvcc = commands / "nvcc"
    nvcc.write_text(f"#!/bin/sh\necho '#$ TOP={home}/bin/..' >&2\n")
    nvcc.chmod(0o755)
    driver = lib / "libcuda.so.580.1"
    source = tmp_path / "driver.c"
    source.write_text("int cuInit(unsigned flags) { return (int)flags; }\n")
    named = "-Wl,-soname,libcuda.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", named, source, "-o", driver], check=True)
    maps = tmp_path / "maps"
    maps.write_text(f"7f00-7f01 r--p 00000000 fd:00 1 [heap]\n7f02-7f03 r-xp 0 fd:00 2 {driver}\n")
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    found = toolkit.driver(maps)
    assert found == driver
    monkeypatch.setattr(toolkit, "driver", lambda: found)
    return tmp_path


def test_torch_finds_the_toolkit_and_links_the_driver(machine: Path) -> None:
    before, guessed = dict(os.environ), cpp_extension.CUDA_HOME
    folder = machine / "made"
    folder.mkdir()
    program = machine / "package.c"
    program.write_text("int cuInit(unsigned); int run(void) { return cuInit(0); }\n")
    link = ["gcc", "-shared", "-fPIC", "-Wl,-z,defs", program, "-o", machine / "a.so", "-lcuda"]
    assert subprocess.run(link, capture_output=True, check=False).returncode
    with toolkit.found_by_torch(folder):
        assert cpp_extension.CUDA_HOME == os.environ["CUDA_HOME"] == str(machine / "cuda")
        subprocess.run(link, check=True)
    assert (dict(os.environ), cpp_extension.CUDA_HOME) == (before, guessed)


def test_what_the_user_says_of_the_toolkit_stays(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_HOME", "elsewhere")
    with toolkit.found_by_torch(machine / "lib"):
        assert os.environ["CUDA_HOME"] == "elsewhere"
