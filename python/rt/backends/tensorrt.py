"""Engines by TensorRT and TensorRT for RTX. The only importer of both."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

from ..errors import ConfigError, EngineMismatch


@dataclass(frozen=True, slots=True)
class Flavour:
    """One of the two libraries: the names it is imported by, its releases, how to get it."""

    modules: tuple[str, ...]
    first: tuple[int, int]
    before: int
    install: str


FLAVOURS = {
    "tensorrt": Flavour(
        ("tensorrt",),
        (11, 0),
        12,
        "pip install 'streamdiffusion-rt[tensorrt]' "
        "(its libraries come from NVIDIA's own package index, not from PyPI)",
    ),
    "tensorrt-rtx": Flavour(
        ("tensorrt_rtx", "tensorrt_rtx_bindings"),
        (1, 7),
        2,
        "pip install 'streamdiffusion-rt[tensorrt-rtx]'",
    ),
}


@dataclass(frozen=True, slots=True)
class Card:
    """A plan: which engine runs a unit, for what it was built, and where its weights lie.

    `weights` are the engine's inputs that hold weights: (file, offset, length, dtype, shape).
    """

    engine: str
    graph: str
    library: str
    compute_capability: tuple[str, ...]
    weights: Mapping[str, tuple[str, int, int, str, tuple[int, ...]]]

    def encoded(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode() + b"\n"


def read_card(path: Path) -> Card:
    """The card in a plan file. Raises EngineMismatch for a file that is none."""
    try:
        fields = json.loads(path.read_text())
        capabilities = tuple(fields.pop("compute_capability"))
        weights = {n: (*w[:4], tuple(w[4])) for n, w in fields.pop("weights").items()}
        return Card(compute_capability=capabilities, weights=weights, **fields)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineMismatch(f"{path} is no plan of this exporter: {error}") from None


def library(flavour: str) -> ModuleType:
    """The library of a flavour. Raises ConfigError that says how to install it."""
    wanted = FLAVOURS[flavour]
    name = next((m for m in wanted.modules if importlib.util.find_spec(m) is not None), None)
    if name is None:
        raise ConfigError(f"backend {flavour}: not installed; install it: {wanted.install}")
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"backend {flavour}: {reason}; install it: {wanted.install}") from error
    release = tuple(int(part) for part in module.__version__.split(".")[:2])
    if not wanted.first <= release < (wanted.before,):
        low = ".".join(map(str, wanted.first))
        raise ConfigError(
            f"backend {flavour}: got {module.__version__}, expected >={low},<{wanted.before}; "
            f"install it: {wanted.install}"
        )
    return module


def library_version(flavour: str) -> str:
    """The library that builds and runs engines, e.g. "tensorrt-rtx 1.7.1.116"."""
    return f"{flavour} {library(flavour).__version__}"
