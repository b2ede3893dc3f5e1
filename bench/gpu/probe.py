"""Which backends this machine has, and how far each one gets: present, builds, loads, runs."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

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


def backend(name: str, folder: Path) -> Sequence[Reading]:
    """One reading: 1 where a small engine of this backend builds, loads and runs, else where it
    stopped and why. It is built in `folder`, where a build that was cut goes on.
    """
    reading = f"backend {name}"
    try:
        module = present(name)
    except STOPS as error:
        return (refused(reading, f"present: no ({one_line(error)})"),)
    here = f"present: {getattr(module, '__version__', 'yes')}"
    from export.backends import BACKENDS
    from export.build import Options, build_engines
    from export.models.presets import PRESETS

    if name not in BACKENDS:
        return (refused(reading, f"{here}; builds: no (the exporter has no builder for it)"),)
    tiny = PRESETS["tiny"]
    small = replace(tiny, name="probe", dit=replace(tiny.dit, blocks=1))
    options = Options(small, 64, 64, folder / "engines", name, backend=name, max_batch=2)
    try:
        built = build_engines(options)  # it runs every plan once before it is done
    except STOPS as error:
        return (refused(reading, f"{here}; builds, loads, runs: no ({one_line(error)})"),)
    return _streams(reading, here, built.directory)


def _streams(reading: str, here: str, engines: Path) -> Sequence[Reading]:
    """Whether the runtime takes the engine on the first GPU."""
    import numpy as np

    from rt import Pipeline

    frames = [np.full((64, 64, 3), level, np.uint8) for level in range(9)]
    text = f"{here}; builds, loads, runs: yes; streams on cuda:0"
    try:
        with (
            Pipeline.load(engines, devices="cuda:0", steps=1) as pipeline,
            pipeline.session(prompt="x", steps=1) as session,
        ):
            count = sum(1 for _ in session.stream(frames))
    except STOPS as error:
        return (Reading(reading, 0.5, "of 1", 1, 1.0, f"{text}: no ({one_line(error)})"),)
    return (Reading(reading, float(count == len(frames)), "of 1", 1, 1.0, f"{text}: yes"),)
