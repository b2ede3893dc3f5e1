"""What the numbers depend on: the GPU, its driver and clocks, the libraries, the code."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIBRARIES = ("torch", "triton", "numpy", "onnxruntime", "tensorrt", "tensorrt-rtx")
QUERY = ("name", "driver_version", "memory.total", "clocks.max.sm", "clocks.max.memory",
         "clocks.sm", "clocks.mem", "power.limit", "compute_cap", "persistence_mode")  # fmt: skip
MEASURED_CODE = ("csrc", "python/rt", "export", "bench/gpu")
"""Folders whose sources decide what is measured."""


def command(*words: str) -> str:
    """What a program prints, or "" where it is absent or fails."""
    if shutil.which(words[0]) is None:
        return ""
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)
    return done.stdout.strip() if done.returncode == 0 else ""


def gpu_names() -> list[str]:
    """Every GPU that nvidia-smi lists."""
    listed = command("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    return [line.strip() for line in listed.splitlines() if line.strip()]


def facts() -> dict[str, str]:
    """Everything that is stated beside a number."""
    asked = command("nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader")
    values = [value.strip() for value in (asked.splitlines() or [""])[0].split(",")]
    found = dict(zip(QUERY, values, strict=False))
    nvcc = re.search(r"release ([\d.]+)", command("nvcc", "--version"))
    found["nvcc"] = nvcc[1] if nvcc else ""
    found["python"] = platform.python_version()
    found["processor"] = _processor()
    found["commit"] = command("git", "rev-parse", "--short", "HEAD")
    found["code"] = code_digest()
    for library in (*LIBRARIES, *_cupy()):
        found[library] = version(library)
    return found


def key_of(found: dict[str, str]) -> str:
    """What a reading stays valid for: GPU, driver, libraries and the code, not clocks or date."""
    parts = [found.get(name, "") for name in ("name", "driver_version", "nvcc", "code", *LIBRARIES)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def code_digest() -> str:
    """Hash of all sources that decide what is measured."""
    whole = hashlib.sha256()
    for folder in MEASURED_CODE:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".h", ".cpp", ".cu"):
                whole.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return whole.hexdigest()[:16]


def version(library: str) -> str:
    """Installed version, or "" ."""
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _cupy() -> list[str]:
    names = {d.metadata["Name"] for d in importlib.metadata.distributions()}
    return sorted(n for n in names if n and n.startswith("cupy"))


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()
