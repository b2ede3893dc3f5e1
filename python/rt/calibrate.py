"""`python -m rt.calibrate`: measures every unit at every batch size on this machine and writes the
cost file that placement, controller and simulator read.

It runs engines over arrays of its own, in the order of the chain, with the ops that run beside
them. It refuses to judge: a busy machine gives the costs of a busy machine.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from . import cost, costfile, devices, ops
from . import manifest as manifests
from .command import command, ended
from .cost import PASS_OF, Costs, Handover, Timing
from .devices import Device
from .errors import ConfigError
from .frame import Array
from .manifest import Manifest, Plan, Unit

Samples = NDArray[np.float64]
"""Milliseconds, one per round."""

QUANTILES = 101
"""Points that the spread of a pass is kept as."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    return ended(lambda: run(parser().parse_args(arguments)), "no costs were written")


def parser() -> argparse.ArgumentParser:
    """The options."""
    p = command(
        "python -m rt.calibrate",
        "Measure what every unit of an engine directory costs on this machine.",
    )
    shown = "(default: %(default)s)"
    p.add_argument("--engines", type=Path, default=Path("engines/tiny"), metavar="DIR", help=shown)
    p.add_argument(
        "--devices", default="auto", metavar="NAMES", help=f"as for rt.stream: cpu:0,cpu:1 {shown}"
    )
    p.add_argument("--rounds", type=int, default=200, metavar="N", help=f"passes timed {shown}")
    p.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="where to write (default: beside the manifest, or in the user's cache where that "
        "cannot be written)",
    )
    return p


def run(options: argparse.Namespace) -> int:
    """Measure each kind of device once and write its file."""
    if options.rounds < 2:
        raise ConfigError(f"rounds: got {options.rounds}, expected at least 2")
    manifest = manifests.read(options.engines)
    manifests.check_files(manifest, options.engines)
    by_key = {costfile.machine_key(d): d for d in devices.resolve(options.devices)}
    if options.output is not None and len(by_key) > 1:
        raise ConfigError("output: got one file for several kinds of devices; leave it out")
    paths = {key: options.output or place_for(options.engines, manifest.key, key) for key in by_key}
    for path in paths.values():
        _check_output(path)
    for key, device in by_key.items():
        with _progress(key, options.rounds) as advance:
            costs = measure(manifest, options.engines, device, options.rounds, advance)
        costfile.write(costs, paths[key])
        total = sum(u.timings[0].p50_ms for u in costs.units)
        print(f"{paths[key]}: {len(costs.units)} units, {total:.1f} ms for a chunk of one step")
    return 0


def _check_output(path: Path) -> None:
    """Raises ConfigError for a file that could not be written when all has been measured."""
    if path.is_dir():
        raise ConfigError(f"output: got {path}, a directory; expected a file name")
    folder = next(parent for parent in path.parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ConfigError(
            f"output: got {path}, but nothing can be written into {folder}; expected a folder with "
            "the right to write: name a file in another with --output"
        )


@contextlib.contextmanager
def _progress(key: str, rounds: int) -> Iterator[Callable[[], None]]:
    """A bar on a terminal; elsewhere a line at the beginning and after every tenth."""
    console = Console(stderr=True)
    shown = console.is_terminal
    turns = itertools.count(1)
    with Progress(console=console, disable=not shown) as progress:
        task = progress.add_task(key, total=rounds)

        def advance() -> None:
            progress.advance(task)
            turn = next(turns)
            if not shown and 10 * turn // rounds > 10 * (turn - 1) // rounds:
                print(f"{key}: {turn} of {rounds} rounds", file=sys.stderr)

        if not shown:
            print(f"{key}: warms up, then {rounds} rounds", file=sys.stderr)
        yield advance


def place_for(directory: Path, engines: str, key: str) -> Path:
    """Where the costs go: beside the manifest where that can be written."""
    beside, cached = costfile.places(directory, engines, key)
    folder = beside.parent if beside.parent.is_dir() else directory
    return beside if os.access(folder, os.W_OK) else cached


def measure(
    manifest: Manifest,
    directory: Path,
    device: Device,
    rounds: int,
    advance: Callable[[], None] = lambda: None,
) -> Costs:
    """Time every unit at every batch size, `rounds` times, one after the other as in a stream.

    The first tenth warms up and is not counted.
    """
    with device.pinned():
        return _measured(manifest, directory, device, rounds, advance)


def _measured(
    manifest: Manifest, directory: Path, device: Device, rounds: int, advance: Callable[[], None]
) -> Costs:
    runs = _bind(manifest, directory, device)
    device.wait()
    taken = {key: np.zeros(rounds) for key in runs}
    clock = time.perf_counter_ns
    for turn in range(-max(1, rounds // 10), rounds):
        for key, launches in runs.items():
            start = clock()
            for launch in launches:
                launch()
            device.wait()
            if turn >= 0:
                taken[key][turn] = (clock() - start) * 1e-6
        if turn >= 0:
            advance()
    units = []
    for i, unit in enumerate(manifest.chain):
        batches = sorted(batch for name, batch in runs if name == unit.name)
        timings = tuple(_timing(batch, taken[unit.name, batch]) for batch in batches)
        units.append(costfile.unit_cost(manifest, i, timings))
    passes = sum((taken[unit.name, 1] for unit in manifest.chain), np.zeros(rounds))
    ratios = np.sort(np.quantile(passes / np.median(passes), np.linspace(0, 1, QUANTILES)))
    return replace(
        costfile.modelled(manifest, device),
        origin="measured",
        source=f"python -m rt.calibrate, {rounds} rounds, {time.strftime('%Y-%m-%d')}",
        device=costfile.machine_key(device),
        handover=_handover(device, max(u.handed_bytes for u in units), rounds),
        spread=tuple(round(float(ratio), 4) for ratio in ratios),
        units=tuple(units),
    )


def _timing(batch: int, samples: Samples) -> Timing:
    p50, p99 = np.quantile(samples, [0.5, cost.UPPER])
    return Timing(batch, round(float(p50), 5), round(float(p99), 5))


Launches = list[Callable[[], object]]


def _bind(
    manifest: Manifest, directory: Path, device: Device
) -> Mapping[tuple[str, int], Launches]:
    """(Unit, batch) -> what one pass runs of it: its engine, and the ops beside it."""
    backend = device.backend(manifest.backend)
    beside = _ops(manifest, device)
    runs: dict[tuple[str, int], Launches] = {}
    for unit in manifest.chain:
        plan = unit.plans["step"]
        engine = backend.load(directory, plan)
        denoises = PASS_OF[costfile.chain_kind(unit)] == "denoise"
        for batch in range(1, manifest.max_batch + 1) if denoises else (1,):
            launch = engine.bind(_arrays(plan, batch, device))
            runs[unit.name, batch] = [launch, *(beside.get(unit.name, []) * batch)]
    return runs


def _arrays(plan: Plan, batch: int, device: Device) -> dict[str, Array]:
    """Arrays of zeros for every binding: no engine's time depends on its values."""

    def zeros(shape: Sequence[int | str], dtype: str) -> Array:
        return device.zeros([batch if d == "B" else int(d) for d in shape], dtype)

    arrays = {b.name: zeros(b.shape, b.dtype) for b in (*plan.inputs, *plan.outputs)}
    for state in plan.state:
        arrays[state.input] = arrays[state.output] = zeros(state.shape, state.dtype)
        if state.mode == "ping-pong":
            arrays[state.output] = zeros(state.shape, state.dtype)
    return arrays


def _ops(manifest: Manifest, device: Device) -> Mapping[str, Launches]:
    """Unit -> the ops that a stage runs beside it, once per row; pictures of the engine's size."""
    g, count = manifest.geometry, manifest.geometry.frames_per_chunk
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (count + 1, g.height, g.width, 3), np.uint8)
    pixels = device.zeros((3, count, g.height, g.width), np.float32)
    latent, mixed = (
        device.zeros((g.latent_channels, g.latent_height, g.latent_width), np.float32)
        for _ in range(2)
    )
    control, sigma = np.array([0, 0.5, 500, 0.5], np.float32), np.array([0.5], np.float32)
    moved, shown = device.zeros((count, 5), np.float32), device.zeros(pictures[1:].shape, np.uint8)
    # The host needs no scratch of ours.
    size = ops.flow_scratch(g.height, g.width, count + 1) if device.cuda_stream else 0
    scratch = device.zeros((size,), np.uint8) if size else None
    operate = functools.partial(_operate, device)

    def preprocess() -> None:
        last, *frames = [device.put(("picture", i), p) for i, p in enumerate(pictures)]
        operate(functools.partial(ops.frames_to_pixels, frames, g.height, g.width, out=pixels))
        operate(functools.partial(ops.optical_flow_magnitude, frames, last, moved, scratch=scratch))

    def mix() -> None:
        told = device.put("control", control)
        places = {"seed": 0, "session": 0, "chunk": 0}
        operate(functools.partial(ops.mix_noise, latent, told, out=mixed, **places))

    def renoise() -> None:
        now = device.put("sigma", sigma)
        places = {"seed": 0, "session": 0, "chunk": 0, "step": 1}
        operate(functools.partial(ops.renoise, latent, latent, now, now, out=mixed, **places))

    def show() -> None:
        operate(functools.partial(ops.pixels_to_frames, pixels, out=shown))
        device.copy(np.empty(shown.shape, np.uint8), shown)

    named = _by_kind(manifest)
    encode, decode = named["encode"], named["decode"]
    beside: dict[str, Launches] = {u.name: [_sinks(manifest, u, device)] for u in named["block"]}
    beside[encode[0].name] = [preprocess]
    beside[encode[-1].name] = [*beside.get(encode[-1].name, []), mix]
    beside[named["dit_out"][0].name] = [renoise]
    beside[decode[-1].name] = [show]
    return beside


def _operate(device: Device, op: Callable[..., object]) -> None:
    """Launch an operator of the extension on a device."""
    device.do(functools.partial(op, threads=device.threads, cuda_stream=device.cuda_stream))


def _by_kind(manifest: Manifest) -> dict[str, list[Unit]]:
    found: dict[str, list[Unit]] = {}
    for unit in manifest.chain:
        found.setdefault(unit.kind, []).append(unit)
    return found


def _sinks(manifest: Manifest, block: Unit, device: Device) -> Callable[[], object]:
    """The refresh of one block's sinks of one row, as in a long stream."""
    a, g, w = manifest.attention, manifest.geometry, manifest.window
    tokens, dtypes = g.tokens_per_frame, {s.input: s.dtype for s in block.plans["step"].state}
    shape = (1, 1, a.heads, w.frames * tokens, a.head_dim)
    keys, values = (device.zeros(shape, dtypes[name]) for name in ("k_ring", "v_ring"))
    time_ = device.zeros((1, 1, a.heads, w.sinks * tokens, 2 * a.rope_time_pairs), np.float32)
    index = device.zeros((1, 1, w.sinks), np.int64)
    device.copy(index, np.arange(w.sinks, dtype=np.int64).reshape(1, 1, -1))

    def refresh() -> None:
        refreshed = functools.partial(
            ops.refresh_sinks,
            keys,
            values,
            time_,
            index,
            device.put("last", np.array([100], np.int64)),
            device.put("query", np.array([101], np.int64)),
            window=w.frames,
            sinks=w.sinks,
            tokens_per_frame=tokens,
            theta=a.rope_theta,
            threshold=w.sink_threshold,
            positions="window",
        )
        _operate(device, refreshed)

    return refresh


def _handover(device: Device, largest: int, rounds: int) -> Handover:
    """A hand-over is two copies, into the next stage's place and out of it when it is taken, and
    between them the next stage's thread wakes up.
    """
    points = []
    for size in (1 << 12, max(largest, 1 << 20)):
        source, place, taken = (device.zeros([size], np.uint8) for _ in range(3))
        points.append((size, float(np.median(_passed_on(device, source, place, taken, rounds)))))
    line = cost.fit(points)
    rate = 1e-6 / line.m_ms if line.m_ms > 0 else 1e3
    return Handover(round(line.c_ms, 5), round(rate, 3))


def _passed_on(device: Device, source: Array, place: Array, taken: Array, rounds: int) -> Samples:
    """Time from the beginning of the first copy on this thread to the end of the second on another
    one, which waits for it as the thread of a stage does.
    """
    changed, full = threading.Condition(), [False]
    samples, began = np.zeros(rounds), [0]

    def take() -> None:
        for turn in range(rounds):
            with changed:
                changed.wait_for(lambda: full[0])
            device.copy(taken, place)
            device.wait()
            samples[turn] = (time.perf_counter_ns() - began[0]) * 1e-6
            with changed:
                full[0] = False
                changed.notify_all()

    taker = threading.Thread(target=take, name="calibrate-handover", daemon=True)
    taker.start()
    for _ in range(rounds):
        time.sleep(1e-3)  # The other one is asleep by then.
        began[0] = time.perf_counter_ns()
        device.copy(place, source)
        device.wait()
        with changed:
            full[0] = True
            changed.notify_all()
            changed.wait_for(lambda: not full[0])
    taker.join()
    return samples


if __name__ == "__main__":
    raise SystemExit(main())
