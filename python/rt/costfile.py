"""Cost files: `costs/<machine key>.json` beside a manifest, or in the user's cache where that is
read-only; and costs computed from a manifest alone where nothing was measured.

It refuses to guess: a file that is not exactly a cost file is an error that says how to make one.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from pathlib import Path

from .cost import PASS_OF, SCHEMA, ChainKind, Costs, Handover, Timing, UnitCost
from .devices import Device
from .errors import EngineMismatch
from .manifest import Dimension, Manifest, Unit, crossing, decode

_GFLOPS_PER_THREAD, _GB_PER_S = 90.0, 5.0
"""Nominal rates, for costs that nobody measured: only their proportions mean anything."""
_P99_OVER_P50 = 1.5
_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8}


def of(manifest: Manifest, directory: Path, device: Device) -> Costs:
    """What the chain costs on a device: measured where `calibrate` ran, else from its work."""
    found = find(directory, manifest.key, machine_key(device))
    return modelled(manifest, device) if found is None else found


def modelled(manifest: Manifest, device: Device) -> Costs:
    """Costs in proportion to the work that the manifest records."""
    flop_per_ms, bytes_per_ms = _GFLOPS_PER_THREAD * device.threads * 1e6, _GB_PER_S * 1e6
    chain = manifest.chain
    batches = range(1, manifest.max_batch + 1)
    units = []
    for i, unit in enumerate(chain):
        rows = batches if PASS_OF[chain_kind(unit)] == "denoise" else (1,)
        plan = unit.plans["step"]
        ms = max(plan.flop / flop_per_ms, plan.bytes / bytes_per_ms)
        timings = tuple(Timing(b, b * ms, b * ms * _P99_OVER_P50) for b in rows)
        units.append(unit_cost(manifest, i, timings))
    return Costs(
        schema=SCHEMA,
        origin="modelled",
        source=f"work of the manifest at {_GFLOPS_PER_THREAD:g} GFLOP/s per thread, "
        f"{_GB_PER_S:g} GB/s",
        device=device.name,
        engines=manifest.key,
        model=manifest.model,
        frames_per_chunk=manifest.geometry.frames_per_chunk,
        max_batch=manifest.max_batch,
        memory_bytes=None,
        handover=Handover(0.05, _GB_PER_S),
        spread=(1.0,),
        units=tuple(units),
    )


def unit_cost(manifest: Manifest, position: int, timings: tuple[Timing, ...]) -> UnitCost:
    """The record of one unit of the chain: its bytes by the manifest, with these timings."""
    chain = manifest.chain
    unit, kind = chain[position], chain_kind(chain[position])
    before, after = chain[: position + 1], chain[position + 1 :]
    same = [u for u in before if PASS_OF[chain_kind(u)] == PASS_OF[kind]]
    rest = [u for u in after if PASS_OF[chain_kind(u)] == PASS_OF[kind]]
    g = manifest.geometry
    latent = 4 * g.latent_channels * g.latent_height * g.latent_width
    handed = latent if after else 0
    if rest:
        handed = sum(_bytes(b.shape, b.dtype) for b in crossing(same, rest, "step"))
        handed += latent if PASS_OF[kind] == "denoise" else 0
    state = sum(
        _bytes(s.shape, s.dtype) * (2 if s.mode == "ping-pong" else 1)
        for s in unit.plans["step"].state
    )
    weights = _weights(unit)
    if kind == "block":  # What a row keeps beside its rings, and who makes its prompt keys.
        a, sinks = manifest.attention, manifest.window.sinks * g.tokens_per_frame
        state += 4 * a.heads * sinks * 2 * a.rope_time_pairs
        prompt = [b for b in unit.plans["step"].inputs if b.name in ("prompt_k", "prompt_v")]
        state += sum(_bytes(b.shape, b.dtype) for b in prompt)
        beside = (u for u in manifest.prompt if u.kind == "prompt_kv" and u.index == unit.index)
        weights += sum(_weights(u) for u in beside)
    return UnitCost(unit.name, kind, timings, weights, state, handed)


def chain_kind(unit: Unit) -> ChainKind:
    """The kind of a unit that is in a chain."""
    assert unit.kind in PASS_OF, unit.kind
    return unit.kind


def _weights(unit: Unit) -> int:
    """Bytes of a unit's weights: what it reads beside the values and the state that it moves."""
    plan = unit.plans["step"]
    moved = sum(_bytes(b.shape, b.dtype) for b in (*plan.inputs, *plan.outputs))
    moved += 2 * sum(_bytes(s.shape, s.dtype) for s in plan.state)
    return max(0, plan.bytes - moved)


def _bytes(shape: tuple[Dimension, ...], dtype: str) -> int:
    """Of one row."""
    return math.prod(1 if d == "B" else d for d in shape) * _ITEM_BYTES[dtype]


def machine_key(device: Device, proc: Path = Path("/proc")) -> str:
    """What a cost file of this device is called: the model of the processor or GPU, and threads."""
    if device.kind == "cpu":
        pattern, text = r"model name\s*:\s*(.+)", (proc / "cpuinfo").read_text()
        threads = f"-{device.threads}-threads"
    else:
        gpus = sorted((proc / "driver/nvidia/gpus").glob("*/information"))
        if device.index >= len(gpus):  # A container may hide them.
            return device.name.replace(":", "-")
        pattern, text = r"Model:\s*(.+)", gpus[device.index].read_text()
        threads = ""
    match = re.search(pattern, text)
    name = match[1] if match else os.uname().machine
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + threads


def places(directory: Path, engines: str, key: str) -> tuple[Path, Path]:
    """Where the costs of an engine directory may lie: beside its manifest, in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (
        directory / "costs" / f"{key}.json",
        cache / "streamdiffusion-rt" / "costs" / engines[:16] / f"{key}.json",
    )


def find(directory: Path, engines: str, key: str) -> Costs | None:
    """The costs that were measured for engines on a machine; None where none were.

    Raises EngineMismatch for a broken file, or one of other engines.
    """
    for path in places(directory, engines, key):
        if path.is_file():
            costs = read(path)
            if costs.engines != engines:
                raise EngineMismatch(
                    f"{path} is of engines {costs.engines[:12] or 'unknown'}, not {engines[:12]}; "
                    f"measure again: python -m rt.calibrate --engines {directory}"
                )
            return costs
    return None


def read(path: Path) -> Costs:
    """Raises EngineMismatch, in one line, for a file that is not exactly a cost file."""
    try:
        data = json.loads(path.read_text())
        if isinstance(data, dict) and data.get("schema", SCHEMA) != SCHEMA:
            raise ValueError(f"schema: got {data['schema']}, expected {SCHEMA}")
        costs: Costs = decode(Costs, data, "costs")
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise EngineMismatch(
            f"{path} is not a cost file ({reason}); make one: python -m rt.calibrate"
        ) from None
    return costs


def write(costs: Costs, path: Path) -> None:
    """Write a cost file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(dataclasses.asdict(costs), indent=1) + "\n")
    part.replace(path)
