"""Which backends this machine has, and how far each one gets: present, builds, loads, runs."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

from bench.gpu.record import Reading, one_line, refused
from rt.backends.base import LIBRARIES, library_name
from rt.errors import Error

STOPS = (Error, ImportError, OSError, RuntimeError)
"""What libraries raise, and what we raise of them. Anything else is a fault of ours, and no answer
about a backend.
"""


def present(name: str) -> ModuleType:
    """The library of a backend. Raises ImportError where it is not installed."""
    found = library_name(name)
    if found is None:
        raise ImportError(f"no module {' or '.join(LIBRARIES[name])}")
    return importlib.import_module(found)


@dataclass(frozen=True, slots=True)
class Way:
    """A way to have an engine of a backend on this GPU: for which GPU it is built, and what has to
    stand while it is built and runs.
    """

    told: str = ""
    compute_capability: tuple[str, ...] = ()
    standing: AbstractContextManager[object] = field(default_factory=nullcontext)


def backend(name: str, folder: Path) -> Iterator[Reading]:
    """For each way that there is a reading: 1 where a small engine of this backend builds, loads
    and streams, else where it stopped and why. A build that was cut in `folder` goes on.
    """
    reading = f"backend {name}"
    try:
        module = present(name)
    except STOPS as error:
        yield refused(reading, f"present: no ({one_line(error)})")
        return
    here = f"present: {getattr(module, '__version__', 'yes')}"
    from export.backends import BACKENDS

    if name not in BACKENDS:
        yield refused(reading, f"{here}; builds: no (the exporter has no builder for it)")
        return
    try:
        ways = list(_ways(name))
    except STOPS as error:
        yield refused(reading, f"{here}; builds: no ({one_line(error)})")
        return
    for way in ways:
        with way.standing:
            yield _reached(name, way, f"{reading}{way.told}", here, folder)


def builds_for(name: str) -> tuple[str, bool]:
    """The compute capability of this GPU, and whether the library of a TensorRT backend says that
    it builds for it.
    """
    import torch

    from export import tensorrt
    from rt.backends.tensorrt import library

    here = ".".join(map(str, torch.cuda.get_device_capability()))
    known = tensorrt._capabilities(library(name))
    return here, not known or here in known


def _ways(name: str) -> Iterator[Way]:
    """One; but where TensorRT for RTX does not list this GPU, what it makes of that all the same:
    built for the GPU that is here, and loaded though built for another.
    """
    from export import tensorrt
    from rt.backends import tensorrt as runtime

    if name not in runtime.FLAVOURS:
        yield Way()
        return
    here, listed = builds_for(name)
    if listed:
        yield Way("", (here,))
        return
    current = runtime.library(name).ComputeCapability.CURRENT
    yield Way(
        f", as CURRENT on {here}", (here,),
        patch.object(tensorrt, "_capabilities", lambda _: {here: current}),
    )  # fmt: skip
    yield Way(
        f", a plan for 8.9 on {here}", ("8.9",), patch.object(runtime, "_dotted", lambda _: "8.9")
    )


def _reached(name: str, way: Way, reading: str, here: str, folder: Path) -> Reading:
    from export.backends import BACKENDS
    from export.build import Options, build_engines
    from export.models.presets import PRESETS

    tiny = PRESETS["tiny"]
    small = replace(tiny, name="probe", dit=replace(tiny.dit, blocks=1))
    options = Options(
        small, 64, 64, folder / "engines", "-".join((name, *way.compute_capability)), backend=name,
        precision=BACKENDS[name].precisions[0], compute_capability=way.compute_capability,
        max_batch=2,
    )  # fmt: skip
    try:
        built = build_engines(options)  # where it can, it runs every plan once before it is done
    except STOPS as error:
        return refused(reading, f"{here}; builds: no ({one_line(error)})")
    return _streams(reading, here, built.directory)


def _streams(reading: str, here: str, engines: Path) -> Reading:
    """Whether the runtime takes the engine on the first GPU."""
    import numpy as np

    from rt import Pipeline

    frames = [np.full((64, 64, 3), level, np.uint8) for level in range(9)]
    text = f"{here}; builds: yes; loads, runs, streams on cuda:0"
    try:
        with (
            Pipeline.load(engines, devices="cuda:0", steps=1) as pipeline,
            pipeline.session(prompt="x", steps=1) as session,
        ):
            count = sum(1 for _ in session.stream(frames))
    except STOPS as error:
        return Reading(reading, 0.5, "of 1", 1, 1.0, f"{text}: no ({one_line(error)})")
    return Reading(reading, float(count == len(frames)), "of 1", 1, 1.0, f"{text}: yes")
