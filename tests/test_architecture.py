"""The house rules of docs/house.md, read from the source: who may import whom, and which library
lives where.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RT = ROOT / "python" / "rt"

FLOORS = [
    ["errors", "config", "frame"],
    ["chunking", "window", "noise", "motion", "metrics"],
    ["ops", "ops_matrix"],
    ["manifest", "backends"],
    ["devices", "seats"],
    ["cost", "costfile", "placement", "scheduler"],
    [
        *("work", "lane", "lanes", "stage", "wiring", "prompt", "host", "pace", "intake"),
        *("session", "workers", "pipeline", "asynchronous", "simulate", "gated"),
    ],
    ["media", "command", "plot", "options", "calibrate", "plan", "stream", "serve", "__init__"],
]
HEIGHT = {
    name: (floor, place) for floor, row in enumerate(FLOORS) for place, name in enumerate(row)
}

LIBRARIES = {
    "onnxruntime": {"backends/onnxruntime.py"},
    "av": {"serve/rtc.py", *(str(path.relative_to(RT)) for path in (RT / "media").glob("*.py"))},
    "tokenizers": {"prompt.py"},
    "safetensors": {"prompt.py"},
    "torch": {"backends/inductor.py"},
    "tensorrt": {"backends/tensorrt.py"},
    "cupy": {"devices.py", "backends/tensorrt.py"},
    "rich": {"stream.py", "calibrate.py", "plan.py"},
    "matplotlib": {"plot.py"},
    "fastapi": {"serve/app.py"},
    "uvicorn": {"serve/server.py"},
    "prometheus_client": {"serve/app.py", "serve/gauges.py"},
    "PIL": {"serve/pictures.py"},
    "msgpack": {"serve/wire.py"},
    "psutil": {"serve/gauges.py"},
    "aiortc": {"serve/rtc.py", "serve/offer.py"},
    "aioice": {"serve/rtc.py"},
}


def modules() -> Iterator[tuple[str, Path, ast.Module]]:
    for path in sorted(RT.rglob("*.py")):
        top = path.relative_to(RT).parts[0].removesuffix(".py")
        yield top, path, ast.parse(path.read_text())


def imported(path: Path, tree: ast.Module) -> Iterator[str]:
    """Absolute dotted names of everything that a file of `rt` imports."""
    package = ("rt", *path.relative_to(RT).parts[:-1])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{prefix}.{alias.name}" for alias in node.names)


def test_modules_import_only_what_lies_below() -> None:
    for top, path, tree in modules():
        for name in imported(path, tree):
            parts = name.split(".")
            if parts[0] != "rt" or len(parts) < 2 or parts[1] in (top, "errors", "_C"):
                continue
            assert parts[1] in HEIGHT, f"{path.name} imports {name}, which has no floor"
            floor, place = HEIGHT[parts[1]]
            own_floor, own_place = HEIGHT[top]
            assert floor < own_floor or (floor == own_floor and place < own_place), (
                f"{path.name} imports {name}"
            )


def test_every_module_has_a_floor() -> None:
    assert {top for top, _, _ in modules()} <= set(HEIGHT)


def test_libraries_stay_in_their_modules() -> None:
    for _, path, tree in modules():
        for name in imported(path, tree):
            library = name.split(".")[0]
            allowed = LIBRARIES.get(library)
            assert allowed is None or str(path.relative_to(RT)) in allowed, f"{path} imports {name}"


def test_only_ops_knows_the_extension_and_nobody_knows_the_exporter() -> None:
    for top, path, tree in modules():
        names = list(imported(path, tree))
        assert top in FLOORS[2] or not any(n.startswith("rt._C") for n in names), path
        assert not any(n.split(".")[0] == "export" for n in names), path


@pytest.mark.parametrize("pattern", ["Manager", "Helper", "utils"])
def test_no_empty_names(pattern: str) -> None:
    for root in (RT, ROOT / "export"):
        for path in root.rglob("*.py"):
            names = {
                n.name for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ClassDef)
            }
            assert pattern not in path.stem, path
            assert not any(pattern in name for name in names), path


def test_import_rt_is_light() -> None:
    heavy = [
        "torch",
        "onnx",
        "onnxruntime",
        "av",
        "tokenizers",
        "diffusers",
        "cupy",
        "tensorrt",
        "rich",
        "fastapi",
        "PIL",
    ]
    code = f"import sys, rt; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_csrc_layers() -> None:
    csrc = ROOT / "csrc"
    for path in csrc.rglob("*"):
        if path.suffix in (".h", ".cpp", ".cu"):
            text = path.read_text()
            assert "torch/" not in text, path
            if path.stem != "bindings":
                assert "pybind11" not in text, path
                assert "Python.h" not in text, path
