"""A build that keeps nothing: each engine is made, checked, measured and deleted. And what an
engine will take on a device, before anything is built.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from export.build import check, open_chain, trial_key, weights_digest, work_of
from export.engines import Entry, Making, check_once, typed, typed_state
from export.options import Options, Progress
from export.precision import DTYPES
from export.quantize import E4M3
from export.sources import Opened
from export.staging import staged
from export.tensorrt import peak_memory
from export.units import Chain, PhaseSpec, UnitSpec, concrete
from rt.errors import ConfigError
from rt.manifest import Binding, StateBinding

GB = 1e9
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, E4M3: 1}


@dataclass(frozen=True, slots=True)
class Trial:
    """What was built and deleted: a line for each unit and phase, bytes of the plan for each byte
    of weights, and the most memory that the process held at any time, in bytes.
    """

    found: tuple[tuple[str, Entry], ...]
    share: float
    peak_bytes: int


def build_and_delete(options: Options, units: Collection[str], progress: Progress) -> Trial:
    """Engines of `units` (all, if none are named), one for each graph; and all weights, read once.

    What was measured before a cut is not measured again. Raises ConfigError for a unit that the
    chain does not have.
    """
    check(options)
    with peak_memory() as opening:
        opened = open_chain(options)
    chosen = _chosen(opened, units)
    options.out.mkdir(parents=True, exist_ok=True)
    found: list[tuple[str, Entry]] = []
    with staged(options.out, f"{options.name}.trial", trial_key(options)) as staging:
        making = Making(work_of(options, opened, staging, weights_digest(options)))
        total = sum(len(unit.phases) for unit in chosen)
        for unit in chosen:
            for phase, spec in unit.phases.items():
                progress(f"{unit.name} {phase}", len(found), total)
                entry = making.engine(unit, phase, spec)
                (staging / entry.engine).write_bytes(b"")  # done; a rerun does not build it again
                reading = _read_weights(making, unit, phase)
                most = max(entry.peak_bytes, reading)
                found.append((f"{unit.name} {phase}", replace(entry, peak_bytes=most)))
        peak = max(opening[0], *(entry.peak_bytes for _, entry in found))
        return Trial(tuple(found), _share(making, chosen), peak)


def _chosen(opened: Opened, names: Collection[str]) -> list[UnitSpec]:
    units = {unit.name: unit for unit in opened.chain.units}
    if unknown := sorted(set(names) - set(units)):
        raise ConfigError(f"units: got {unknown[0]!r}, expected of {', '.join(units)}")
    return [unit for name, unit in units.items() if not names or name in names]


def _read_weights(making: Making, unit: UnitSpec, phase: str) -> int:
    """Each weight read and checked alone; the most memory that it took, in bytes."""
    with peak_memory() as peak:
        for name, (dtype, _) in making.weight_facts(unit, phase).items():
            making.weight(unit, phase, name, dtype)
    return peak[0]


def _share(making: Making, chosen: Sequence[UnitSpec]) -> float:
    """Each weight once, with the engines that were built."""
    weights = {
        (unit.name, name): math.prod(shape) * _BYTES[dtype]
        for unit in chosen
        for phase in unit.phases
        for name, (dtype, shape) in making.weight_facts(unit, phase).items()
    }
    return check_once(making.entries.values(), sum(weights.values()))


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one device that holds the whole chain for `seats` sessions. `scratch` is estimated
    from the largest operation of a unit; all else is counted. `text` is the text encoder, which a
    server does without where prompts come as embeddings.
    """

    weights: int
    text: int
    rings: int
    sinks: int
    prompts: int
    caches: int
    values: int
    scratch: int

    @property
    def total(self) -> int:
        parts: list[int] = [getattr(self, field.name) for field in fields(self)]
        return sum(parts)


def memory_of(options: Options, seats: int, steps: int) -> Memory:
    """What the chain of `options` needs on a device. Builds nothing and reads no weights."""
    check(options)
    chain = open_chain(replace(options, checkpoint=None)).chain
    rows, precision, dit = seats * steps, options.precision, options.config.dit
    state = {"block": 0, "encode": 0, "decode": 0}
    for unit in chain.chain:
        for value in next(iter(unit.phases.values())).state:
            state[unit.kind] += _size(typed_state(value, precision), 1)
    prompt = [u.phases["step"].outputs for u in chain.prompt if u.kind == "prompt_kv"]
    values = {b.tensor: _size(typed(b, precision), options.max_batch) for b in _flowing(chain)}
    # un-rotated time channels of the sinks' keys, a part of half of the rings
    share = options.pinned / options.frames * 2 * dit.rope_pairs[0] / dit.head_dim
    return Memory(
        weights=sum(_weights(u, precision) for u in chain.units if u.kind != "text"),
        text=sum(_weights(u, precision) for u in chain.units if u.kind == "text"),
        rings=rows * state["block"],
        sinks=round(rows * state["block"] / 2 * share),
        prompts=rows * sum(_size(typed(b, precision), 1) for pair in prompt for b in pair),
        caches=2 * seats * (state["encode"] + state["decode"]),
        values=2 * sum(values.values()),
        scratch=max(
            _largest(s, options.max_batch if s.batched else 1)
            for u in chain.units
            for s in u.phases.values()
        )
        * _BYTES[DTYPES[precision]] // 4,
    )  # fmt: skip


def _weights(unit: UnitSpec, precision: str) -> int:
    """Every weight of a unit once; at fp8 the matrices of a block have one byte."""
    tensors = {n: t for spec in unit.phases.values() for n, t in spec.module.state_dict().items()}
    low = _BYTES[DTYPES[precision]]
    narrow = 1 if precision == "fp8" and unit.kind == "block" else low
    sizes: list[int] = [t.numel() * (narrow if t.ndim == 2 else low) for t in tensors.values()]
    return sum(sizes)


def _flowing(chain: Chain) -> Iterator[Binding]:
    for unit in chain.chain:
        for spec in unit.phases.values():
            yield from (*spec.inputs, *spec.outputs)


def _size(value: Binding | StateBinding, rows: int) -> int:
    return math.prod(concrete(value.shape, rows)) * _BYTES[value.dtype]


def _largest(spec: PhaseSpec, rows: int) -> int:
    """Bytes in and out of the largest operation, in float32; but not of scores, which a kernel of
    attention keeps to itself.
    """
    found = 0
    values: tuple[Binding | StateBinding, ...] = (*spec.inputs, *spec.state)
    names = {(v.name if isinstance(v, Binding) else v.input): v for v in values}
    attended = {names[n].shape[-2] for n in ("k_ring", "prompt_k") if n in names}

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal found
            result = func(*args, **(kwargs or {}))
            tensors = [t for t in (*args, result) if isinstance(t, Tensor) and id(t) not in held]
            if not any(t.ndim == 4 and t.shape[-1] in attended for t in tensors):
                found = max(found, sum(t.numel() * t.element_size() for t in tensors))
            return result

    tensors = {**dict(spec.module.named_parameters()), **dict(spec.module.named_buffers())}
    weights = {name: tensor.detach().to("meta") for name, tensor in tensors.items()}
    held = {id(tensor) for tensor in weights.values()}
    with torch.no_grad(), Watch():  # type: ignore[no-untyped-call]
        functional_call(spec.module, weights, spec.arguments(rows, "meta"))
    return found
