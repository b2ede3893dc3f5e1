"""Backends by name. Each imports its library only when it is chosen."""

from __future__ import annotations

import importlib

from ..errors import ConfigError
from .base import Backend

_MODULES = {
    "onnxruntime": ("onnxruntime", "OnnxRuntimeBackend", "onnxruntime"),
    "inductor": ("inductor", "InductorBackend", "torch"),
    "tensorrt": ("tensorrt", "data_centre", "tensorrt"),
    "tensorrt-rtx": ("tensorrt", "rtx", "tensorrt-rtx"),
}
"""Name -> module, class, and the package to install."""


def create(name: str, threads: int, gpu: tuple[int, int] | None = None) -> Backend:
    """The backend `name`, with `threads` host threads; `gpu` is a GPU's index and the handle of the
    CUDA stream that launches go to. Raises ConfigError if it is unknown or its
    library is absent.
    """
    if name not in _MODULES:
        raise ConfigError(f"backend: got {name!r}, expected one of {sorted(_MODULES)}")
    module, attribute, package = _MODULES[name]
    try:
        loaded = importlib.import_module(f"{__name__}.{module}")
    except ImportError as error:
        raise ConfigError(f"backend {name}: {error}; install it: pip install {package}") from error
    if gpu is not None and name == "onnxruntime":
        raise ConfigError(f"backend {name} runs on the processor; got cuda:{gpu[0]}, use cpu")
    backend: Backend = getattr(loaded, attribute)(threads, *(gpu or ()))
    return backend
