"""The interface of an engine: a loaded plan that runs over fixed addresses. And the names by which
Python finds the libraries that run them.

A backend turns plan files into engines on one device. It owns no state of a stream and copies
nothing.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from ..frame import Array
from ..manifest import Plan

LIBRARIES = {
    "onnxruntime": ("onnxruntime",),
    "inductor": ("torch",),
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
"""Backend -> the names that its library is imported by, the first that is there."""


def library_name(backend: str) -> str | None:
    """The name that the library of `backend` is imported by here; None where it is not installed.

    Imports nothing.
    """
    return next((m for m in LIBRARIES[backend] if importlib.util.find_spec(m) is not None), None)


class Launch(Protocol):
    """One run of an engine over the arrays that it was bound to. No allocation."""

    def __call__(self) -> None: ...


class Engine(Protocol):
    """A loaded executable, free of any stream's state."""

    def bind(self, arrays: Mapping[str, Array]) -> Launch:
        """Fix the arrays of every binding, by name. They must outlive the launch and never move.

        An input and an output bound to the same array are updated in place.
        """
        ...


class Backend(Protocol):
    """Loads plans for one device."""

    name: str

    def load(self, directory: Path, plan: Plan) -> Engine:
        """Load `directory / plan.file`. Raises EngineMismatch for a file that is refused."""
        ...
