"""Builds that are killed at random moments, in processes that start with every graph exported.

python tests/export/killed_builds.py FOLDER SEED KILLS BACKEND...: prints what it saw as JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from micro_engine import MICRO, SIZE, micro_options, remembered_exports

from export.build import build_engines
from export.options import Options
from export.plans import graph_of, may_ignore
from export.units import parts_of, wan_chain


def options_of(backend: str, out: Path) -> Options:
    compiled = backend.startswith("tensorrt")
    # float32, whose attention needs no kernel for heads as small as these
    return micro_options(
        out, backend=backend, precision="fp32", compute_capability=("8.9",) if compiled else ()
    )


def export_all() -> None:
    """Every graph, remembered for the processes that are forked from this one."""
    chain = wan_chain(MICRO, parts_of(MICRO, SIZE, SIZE), SIZE, SIZE, MICRO.sampling.window)
    for unit in {unit.graph: unit for unit in chain.units}.values():
        for phase, spec in unit.phases.items():
            graph_of(spec, may_ignore(phase, spec))


def forked(work: Callable[[], object]) -> int:
    """The number of a process that does `work` and ends."""
    number = os.fork()
    if number == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return number


def finished(options: Options) -> dict[str, int]:
    """When each plan or engine that is whole was written."""
    folders = (options.out / f".{options.name}.partial", options.out / options.name)
    kept = (".engine", ".onnx", ".safetensors")
    return {
        path.name: path.stat().st_mtime_ns
        for folder in folders
        for path in folder.glob("*")
        if path.suffix in kept
    }


def told_of(backend: str, folder: Path, seed: int, kills: int) -> dict[str, object]:
    """What is left by `kills` builds that were killed, and by one that was not."""
    options, whole = (options_of(backend, folder / name) for name in ("killed", "whole"))
    start = time.perf_counter()
    first = forked(lambda: build_engines(whole))
    assert os.waitpid(first, 0)[1] == 0
    files = len(finished(whole))
    file_s = (time.perf_counter() - start) / files
    rng, seen, steps = random.Random(seed), dict[str, int](), list[int]()
    rebuilt: list[str] = []
    for enough in [*sorted(rng.choices(range(files), k=kills)), None]:
        number = forked(lambda: build_engines(options))
        if enough is not None:
            while len(finished(options)) < enough:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 2 * file_s))
            os.kill(number, signal.SIGKILL)
        status = os.waitpid(number, 0)[1]
        now = finished(options)
        rebuilt += [name for name, when in seen.items() if now.get(name) != when]
        seen |= now
        steps.append(len(now))
    return {"status": status, "rebuilt": rebuilt, "steps": steps}


def main(folder: str, seed: str, kills: str, *backends: str) -> None:
    torch.set_num_threads(1)  # threads do not survive a fork
    with remembered_exports():
        export_all()
        told = {b: told_of(b, Path(folder) / b, int(seed), int(kills)) for b in backends}
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
