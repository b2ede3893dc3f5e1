"""A build that keeps nothing: each engine is made, checked, measured and deleted. And what an
engine will take on a device, before anything is built.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from export.build import TOLERANCE, check, open_chain, trial_key
from export.engines import Entry, Making, check_once, typed, typed_state
from export.options import Options, Progress, Work
from export.precision import DTYPES
from export.sources import Opened
from export.staging import staged
from export.tensorrt import peak_memory
from export.units import Chain, PhaseSpec, UnitSpec, concrete
from rt.errors import ConfigError
from rt.manifest import Binding, StateBinding

GB = 1e9
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8}


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
        making = Making(Work(options, opened, staging, TOLERANCE[options.precision]))
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
        for name, dtype in making.weight_types(unit, phase).items():
            making.weight(unit, phase, name, dtype)
    return peak[0]


def _share(making: Making, chosen: Sequence[UnitSpec]) -> float:
    """Each weight once, with the engines that were built."""
    weights = {
        (unit.name, name): spec.module.state_dict()[name].numel() * _BYTES[dtype]
        for unit in chosen
        for phase, spec in unit.phases.items()
        for name, dtype in making.weight_types(unit, phase).items()
    }
    return check_once(making.entries.values(), sum(weights.values()))


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one device that holds the whole chain for `seats` sessions. `scratch` is estimated
    from the largest operation of a unit; all else is counted.
    """

    weights: int
    rings: int
    prompts: int
    caches: int
    values: int
    scratch: int

    @property
    def total(self) -> int:
        parts = (self.weights, self.rings, self.prompts, self.caches, self.values, self.scratch)
        return sum(parts)


def memory_of(options: Options, seats: int, steps: int) -> Memory:
    """What the chain of `options` needs on a device. Builds nothing and reads no weights."""
    check(options)
    chain = open_chain(replace(options, checkpoint=None)).chain
    rows, precision = seats * steps, options.precision
    state = {"block": 0, "encode": 0, "decode": 0}
    for unit in chain.chain:
        for value in next(iter(unit.phases.values())).state:
            state[unit.kind] += _size(typed_state(value, precision), 1)
    prompt = [u.phases["step"].outputs for u in chain.prompt if u.kind == "prompt_kv"]
    values = {b.tensor: _size(typed(b, precision), options.max_batch) for b in _flowing(chain)}
    return Memory(
        weights=_weights(chain, precision),
        rings=rows * state["block"],
        prompts=rows * sum(_size(typed(b, precision), 1) for pair in prompt for b in pair),
        caches=2 * seats * (state["encode"] + state["decode"]),
        values=2 * sum(values.values()),
        scratch=max(_largest(s) for u in chain.units for s in u.phases.values())
        * _BYTES[DTYPES[precision]] // 4,
    )  # fmt: skip


def _weights(chain: Chain, precision: str) -> int:
    """Every weight once."""
    tensors: dict[tuple[str, str], int] = {
        (unit.name, name): tensor.numel()
        for unit in chain.units
        for spec in unit.phases.values()
        for name, tensor in spec.module.state_dict().items()
    }
    return sum(tensors.values()) * _BYTES[DTYPES[precision]]


def _flowing(chain: Chain) -> Iterator[Binding]:
    for unit in chain.chain:
        for spec in unit.phases.values():
            yield from (*spec.inputs, *spec.outputs)


def _size(value: Binding | StateBinding, rows: int) -> int:
    return math.prod(concrete(value.shape, rows)) * _BYTES[value.dtype]


def _largest(spec: PhaseSpec) -> int:
    """Bytes in and out of the largest operation."""
    found = 0

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal found
            result = func(*args, **(kwargs or {}))
            tensors = [t for t in (*args, result) if isinstance(t, Tensor)]
            found = max(found, sum(t.numel() * t.element_size() for t in tensors))
            return result

    tensors = {**dict(spec.module.named_parameters()), **dict(spec.module.named_buffers())}
    weights = {name: tensor.detach().to("meta") for name, tensor in tensors.items()}
    with torch.no_grad(), Watch():  # type: ignore[no-untyped-call]
        functional_call(spec.module, weights, spec.arguments(1, "meta"))
    return found
