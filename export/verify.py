"""Plans against their PyTorch units, through the backend that runs them: on seeded random inputs,
on the activations of a stream, and with garbage where nothing may look.

Owns what a plausible input is and what counts as a difference; builds and mends nothing.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from export import weights
from export.backends import BACKENDS
from export.models.presets import ModelConfig, with_latents
from export.replay import Arrays, Clip, Replay, Run
from export.units import Chain, Parts, PhaseSpec, UnitSpec, concrete, parts_of, wan_chain
from rt import devices
from rt.backends.base import Engine
from rt.backends.onnxruntime import opened, session_options
from rt.devices import Device
from rt.errors import Error
from rt.manifest import Binding, Manifest, Plan, StateBinding

HOST = Device("cpu", 0, 2)


@dataclass(frozen=True, slots=True)
class Difference:
    """Largest `difference` between a plan and its PyTorch unit, over all outputs and all runs."""

    unit: str
    phase: str
    rows: int
    maximum: float
    tolerance: float
    inputs: str = "random"

    @property
    def passed(self) -> bool:
        return self.maximum <= self.tolerance


def verify(manifest: Manifest, directory: Path, units: tuple[UnitSpec, ...]) -> list[Difference]:
    """Compare every plan with the unit of its name; batched ones with one row and with two."""
    specs = {unit.name: unit for unit in units}
    found = []
    for unit in (*manifest.prompt, *manifest.chain):
        for phase, plan in unit.plans.items():
            spec = specs[unit.name].phases[phase]
            execute = executor(manifest, directory, plan)
            for rows in (1, 2) if spec.batched else (1,):
                feeds = random_inputs(manifest, plan, rows, unit.name)
                expected = run_module(spec, feeds)
                got = execute(feeds)
                # np.max keeps a NaN, which passes no tolerance; max() may lose it.
                worst = float(np.max([difference(got[n], expected[n]) for n in expected]))
                found.append(Difference(unit.name, phase, rows, worst, plan.tolerance))
    return found


def verify_stream(
    manifest: Manifest, directory: Path, units: tuple[UnitSpec, ...], chunks: int
) -> list[Difference]:
    """Compare every plan with its unit on what flows through a stream of `chunks` chunks, which is
    that of the PyTorch units.
    """
    specs = {unit.name: unit for unit in units}
    plans = {unit.name: unit.plans for unit in (*manifest.prompt, *manifest.chain)}
    executors = {
        (name, phase): executor(manifest, directory, plan)
        for name, phases in plans.items()
        for phase, plan in phases.items()
    }
    worst: dict[tuple[str, str], float] = {}

    def both(name: str, phase: str, feeds: Arrays) -> Arrays:
        expected = run_module(specs[name].phases[phase], feeds)
        got = executors[name, phase](feeds)
        found = float(np.max([difference(got[n], expected[n]) for n in expected]))
        worst[name, phase] = float(np.max([worst.get((name, phase), 0.0), found]))
        return expected

    g = manifest.geometry
    clip = Clip(_embeddings(manifest, both), _pictures(g.height, g.width, chunks))
    steps, threshold = manifest.noise.default_steps, manifest.window.sink_threshold
    for _ in Replay(manifest, both, [clip], steps, threshold):
        pass
    return [
        Difference(name, phase, 1, maximum, plans[name][phase].tolerance, "stream")
        for (name, phase), maximum in worst.items()
    ]


def _embeddings(manifest: Manifest, run: Run) -> NDArray[np.float32]:
    """Of a few tokens by the text unit where there is one, else random rows."""
    text = manifest.text
    if not any(unit.kind == "text" for unit in manifest.prompt):
        embeddings = np.zeros((1, text.length, text.width), np.float32)
        embeddings[0, :6] = np.random.default_rng(0).standard_normal((6, text.width))
        return embeddings
    ids = np.zeros((1, text.length), np.int64)
    ids[0, :6] = np.arange(2, 8)[: text.length]
    mask = (ids > 0).astype(np.float32)
    return run("text", "step", {"token_ids": ids, "token_mask": mask})["embeddings"]


def _pictures(height: int, width: int, chunks: int) -> list[NDArray[np.float32]]:
    """A moving scene: pixels [1, 3, 1 | 4, H, W] in [-1, 1]."""
    from rt.media import moving_scene  # and PyAV with it, which a machine that builds may lack

    scene = moving_scene(height, width, 16.0, (1 + 4 * chunks) / 16)
    frames = [frame.rgb for frame in islice(scene, 1 + 4 * (chunks - 1))]
    video = np.stack(frames).astype(np.float32).transpose(3, 0, 1, 2)[None] / 127.5 - 1
    return [video[:, :, start and start - 3 : start + 1] for start in range(0, len(frames), 4)]


def hidden_slots(manifest: Manifest, directory: Path) -> list[Difference]:
    """Law 8 on every block: what lies in slots that the mask hides must change no bit of x."""
    found = []
    for unit in (u for u in manifest.chain if u.kind == "block"):
        plan = unit.plans["step"]
        execute = executor(manifest, directory, plan)
        feeds = random_inputs(manifest, plan, 2, unit.name)
        worst = disturbed(execute, feeds)
        found.append(Difference(unit.name, "step", 2, worst, 0.0, "garbage in hidden slots"))
    return found


def disturbed(execute: Callable[[Arrays], Arrays], feeds: Arrays) -> float:
    """Largest change of a block's x when its hidden slots hold other finite numbers."""
    expected = execute(feeds)["x_next"]
    hidden = np.isneginf(feeds["mask"][:, 0, 0])[:, None, :, None]
    changes = []
    for garbage in (0.0, 1e4, -1e4):
        rings = {name: np.where(hidden, np.float32(garbage), feeds[name]).astype(feeds[name].dtype)
                 for name in ("k_ring", "v_ring")}  # fmt: skip
        changes.append(float(np.abs(execute(feeds | rings)["x_next"] - expected).max()))
    return float(np.max(changes))


def difference(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest absolute difference; against the largest value where that is above 1, because the
    rounding of float32 grows with it (activations of trained blocks reach hundreds).
    """
    return float(np.abs(got - expected).max() / max(1.0, float(np.abs(expected).max())))


def twin(manifest: Manifest, directory: Path, config: ModelConfig, fold_time: bool) -> Chain:
    """The PyTorch units of an engine, with the weights that its plans point to."""
    return _parts_and_chain(manifest, directory, config, fold_time)[1]


def parts_within(
    manifest: Manifest, directory: Path, config: ModelConfig, fold_time: bool
) -> Parts:
    """The modules of an engine, at its own size, with the weights that its plans point to."""
    return _parts_and_chain(manifest, directory, config, fold_time)[0]


def _parts_and_chain(
    manifest: Manifest, directory: Path, config: ModelConfig, fold_time: bool
) -> tuple[Parts, Chain]:
    geometry = manifest.geometry
    config = with_latents(config, manifest.latents)
    text = any(unit.kind == "text" for unit in manifest.prompt)
    parts = parts_of(config, geometry.height, geometry.width, text=text, fold_time=fold_time)
    chain = wan_chain(config, parts, geometry.height, geometry.width, manifest.window.frames)
    plans = {unit.name: unit.plans for unit in (*manifest.prompt, *manifest.chain)}
    weights_of = BACKENDS[manifest.backend].weights_of
    for unit in chain.units:
        for phase, spec in unit.phases.items():
            stored = weights_of(directory / plans[unit.name][phase].file)
            tensors = {name: weights.read(directory, where) for name, where in stored.items()}
            # phase `first` may have less; strict for the rest
            whole = spec.module.state_dict() | tensors if phase == "first" else tensors
            spec.module.eval().load_state_dict(whole, strict=True)
    return parts, chain


def smoke(manifest: Manifest, directory: Path) -> None:
    """Run every plan once. Raises Error where a result is not finite, or an output is constant."""
    for unit in (*manifest.prompt, *manifest.chain):
        for phase, plan in unit.plans.items():
            execute = executor(manifest, directory, plan)
            got = execute(random_inputs(manifest, plan, 1, unit.name))
            for name, array in got.items():
                if not np.isfinite(array).all():
                    raise Error(f"unit {unit.name} {phase}: output {name} is not finite")
            for binding in plan.outputs:
                if np.ptp(got[binding.name]) == 0:
                    raise Error(f"unit {unit.name} {phase}: output {binding.name} is constant")


def executor(manifest: Manifest, directory: Path, plan: Plan) -> Callable[[Arrays], Arrays]:
    """A plan as a function of its inputs and states, on the machine's own backend."""
    if manifest.backend == "onnxruntime":
        engine = session(directory / plan.file)
        return lambda feeds: run(engine, feeds)
    device = _device(manifest)
    loaded = device.backend(manifest.backend).load(directory, plan)
    return functools.partial(run_bound, loaded, plan, device=device)


def _device(manifest: Manifest) -> Device:
    """Where the plans of an engine run: the first GPU, if they are for one, or the processor."""
    from export.inductor import gpu_architecture

    on_gpu = manifest.backend.startswith("tensorrt") or (
        manifest.backend == "inductor" and gpu_architecture() is not None
    )
    return devices.resolve("cuda:0")[0] if on_gpu else HOST


def run_bound(
    engine: Engine, plan: Plan, feeds: Mapping[str, NDArray[Any]], device: Device = HOST
) -> Arrays:
    """Bind arrays of `device`, fill them with `feeds`, run once, give outputs and next states by
    name.

    Values that are bfloat16 in the plan are float32 in `feeds` and in what is given.
    """
    rows = next(iter(feeds.values())).shape[0]
    kinds = {b.name: b.dtype for b in (*plan.inputs, *plan.outputs)}
    kinds |= {name: s.dtype for s in plan.state for name in (s.input, s.output)}
    hosts = {n: as_bound(array, kinds.get(n, str(array.dtype))) for n, array in feeds.items()}
    arrays = {name: device.zeros(host.shape, host.dtype) for name, host in hosts.items()}
    results = {b.name: device.zeros(concrete(b.shape, rows), b.dtype) for b in plan.outputs}
    for s in plan.state:
        fresh = device.zeros(concrete(s.shape, rows), s.dtype)
        results[s.output] = arrays[s.input] if s.mode == "alias" else fresh
    with device.pinned():
        launch = engine.bind(arrays | results)
    for name, host in hosts.items():  # only now: where a launch is captured, binding runs it
        device.copy(arrays[name], host)
    device.do(launch)
    got = {name: np.empty(array.shape, array.dtype) for name, array in results.items()}
    for name, array in results.items():
        device.copy(got[name], array)
    device.wait()
    return {name: as_float(array, kinds[name]) for name, array in got.items()}


def as_bound(array: NDArray[Any], dtype: str) -> NDArray[Any]:
    """A copy of the type of a binding; NumPy has no bfloat16, whose bits are uint16."""
    if dtype == "bfloat16":
        return torch.from_numpy(array).bfloat16().view(torch.uint16).numpy()
    return array.astype(dtype)


def as_float(array: NDArray[Any], dtype: str) -> NDArray[Any]:
    """The same back: float32 where the binding is bfloat16."""
    if dtype == "bfloat16":
        return torch.from_numpy(array).view(torch.bfloat16).float().numpy()
    return array


def session(path: Path, threads: int = 2, arena: bool = True) -> onnxruntime.InferenceSession:
    """A plan on the CPU. Without `arena` memory is given back at once, which large units need."""
    options = session_options()
    options.enable_cpu_mem_arena = options.enable_mem_pattern = arena
    if not arena:  # without the layout of the last level, which copies whole pictures
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # a ring that is not bound in place is worth a warning there
    return opened(path, options)


def run(engine: onnxruntime.InferenceSession, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
    """Outputs and next states by name; states are copied."""
    names = [output.name for output in engine.get_outputs()]
    return dict(zip(names, engine.run(names, dict(feeds)), strict=True))


def run_module(spec: PhaseSpec, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
    """The same in PyTorch."""
    arguments = [torch.from_numpy(feeds[name]) for name in spec.input_names]
    with torch.no_grad():
        result = spec.module(*arguments)
    tensors = result if isinstance(result, tuple) else (result,)
    return {n: t.numpy() for n, t in zip(spec.output_names, tensors, strict=True)}


def random_inputs(manifest: Manifest, plan: Plan, rows: int, seed: str) -> Arrays:
    """Plausible values for every input and state of a plan; equal arguments give equal values."""
    window, tokens = manifest.window.frames, manifest.geometry.tokens_per_frame
    return plausible((*plan.inputs, *plan.state), rows, seed, window, tokens)


def plausible(
    values: Sequence[Binding | StateBinding], rows: int, seed: str, window: int, tokens: int
) -> Arrays:
    """The same for bindings, a window in latent frames and tokens per latent frame."""
    feeds: Arrays = {}
    for value in values:
        name = value.name if isinstance(value, Binding) else value.input
        generator = np.random.default_rng(zlib.crc32(f"{seed} {name}".encode()))
        feeds[name] = _random(name, concrete(value.shape, rows), generator, window, tokens)
    return feeds


def _random(
    name: str, shape: tuple[int, ...], generator: np.random.Generator, window: int, tokens: int
) -> NDArray[Any]:
    """One value: normal numbers, unless its name says what it must be (docs/interfaces.md)."""
    # The slot that a row writes, and the last slot that it does not see.
    slots = np.arange(shape[0]) % window
    if name == "token_ids":
        return generator.integers(0, 256, shape, dtype=np.int64)
    if name == "token_mask":
        return (np.arange(shape[-1]) < (shape[-1] + 1) // 2).astype(np.float32).reshape(shape)
    if name == "timestep":
        return generator.uniform(0, 1000, shape).astype(np.float32)
    if name in ("rope", "rope_time"):
        angles = generator.uniform(0, 2 * np.pi, (shape[0], *shape[2:]))
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    if name == "write_index":
        return slots * tokens
    if name == "mask":
        hidden = np.arange(window) > np.maximum(slots, window - 2)[:, None]
        row = np.where(hidden, -np.inf, 0).astype(np.float32)
        return np.repeat(row, tokens, axis=1).reshape(shape)
    return generator.standard_normal(shape, dtype=np.float32)
