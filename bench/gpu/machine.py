"""What the numbers depend on: the GPU, its driver and clocks, the libraries, the code."""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
from collections.abc import Mapping

from bench.table import ROOT, command, machine

LIBRARIES = ("torch", "triton", "numpy", "onnxruntime", "tensorrt", "tensorrt-rtx")
QUERY = ("name", "driver_version", "memory.total", "clocks.max.sm", "clocks.max.memory",
         "clocks.sm", "clocks.mem", "power.limit", "compute_cap", "persistence_mode")  # fmt: skip
MEASURED_CODE = ("csrc", "python/rt", "export", "bench/gpu")
"""Folders whose sources decide what is measured."""


def gpu_names() -> list[str]:
    """Every GPU that nvidia-smi lists."""
    listed = command("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    return [line.strip() for line in listed.splitlines() if line.strip()]


def facts() -> dict[str, str]:
    """Everything that is stated beside a number."""
    asked = command("nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader")
    found = dict.fromkeys(QUERY, "")
    if asked:
        values = (value.strip() for value in asked.splitlines()[0].split(","))
        found = dict(zip(QUERY, values, strict=True))
    nvcc = re.search(r"release ([\d.]+)", command("nvcc", "--version"))
    found["nvcc"] = nvcc[1] if nvcc else ""
    found |= {name: str(value) for name, value in machine().items()}
    found["code"] = code_digest()
    for library in (*LIBRARIES, *_cupy()):
        found[library] = version(library)
    return found


def key_of(found: Mapping[str, str]) -> str:
    """What a reading stays valid for: GPU, driver and libraries; and behind a dash the code. Not
    clocks, date or the driver's last number, in which machines of one pool differ.
    """
    parts = [found.get(name, "") for name in ("name", "nvcc", *LIBRARIES)]
    parts.append(".".join(found.get("driver_version", "").split(".")[:2]))
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return f"{digest[:16]}-{found.get('code', '')}"


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
