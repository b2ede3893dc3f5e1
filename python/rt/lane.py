"""A lane: the consecutive units of one kind of pass on one stage, bound once over fixed arrays,
then only launched.

Beside it the arrays around a lane: scratch for values within a pass, the inbox for values from the
stage before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .backends.base import Engine, Launch
from .devices import Device
from .frame import Array
from .manifest import Binding, Unit

Own = Callable[[Unit], Mapping[str, Array]]
"""unit -> the arrays that belong to it, by binding name: state, and prompt keys and values."""

HANDOVER_PLACES = 3
"""Passes that a stage may hold of one kind: one that runs, one that waits, one on its way in."""


class Scratch:
    """Arrays for values that live within one pass. A stage runs one pass at a time, so all its
    lanes share them.
    """

    def __init__(self, device: Device, max_batch: int) -> None:
        self._device = device
        self._max_batch = max_batch
        self._arrays: dict[tuple[str, str, int], Array] = {}

    def array(self, binding: Binding, phase: str, copy: int, batch: int) -> Array:
        """`copy` 0 or 1 tells two arrays of one tensor apart: a unit may read one and write the
        other.
        """
        key = (binding.tensor, phase, copy)
        if key not in self._arrays:
            shape = [self._max_batch if d == "B" else d for d in binding.shape]
            self._arrays[key] = self._device.zeros(shape, binding.dtype)
        array = self._arrays[key]
        return array[:batch] if binding.shape and binding.shape[0] == "B" else array


@dataclass(frozen=True, slots=True)
class Lane:
    """Launches in order, with the number of the unit that each belongs to, and the values that
    leave the lane.
    """

    launches: tuple[tuple[int, Launch], ...]
    values: Mapping[str, Array]

    def run(self, device: Device, busy_ns: NDArray[np.int64]) -> None:
        """Launch every unit; adds each one's time on the host to `busy_ns[unit number]`."""
        clock = time.perf_counter_ns
        start = clock()
        for number, launch in self.launches:
            device.do(launch)
            stop = clock()
            busy_ns[number] += stop - start
            start = stop


class Inbox:
    """Values handed over by the stage before, copied into arrays that were allocated at load.

    `arrays` are the ones that the launches read. The scheduler bounds how many passes are handed
    over.
    """

    def __init__(self, device: Device, arrays: Mapping[str, Array]) -> None:
        self.arrays = arrays
        self._device = device
        self._free = [
            {name: device.zeros(a.shape, a.dtype) for name, a in arrays.items()}
            for _ in range(HANDOVER_PLACES)
        ]
        self._full: dict[int, dict[str, Array]] = {}

    def put(self, number: int, values: Mapping[str, Array], source: Device) -> None:
        """Copy in what task `number` carries, in the order of the device that made it; called by
        the stage before.
        """
        place = self._free.pop()
        for name, array in place.items():
            source.copy(array[: len(values[name])], values[name])
        self._full[number] = place

    def take(self, number: int) -> None:
        """Copy out what task `number` carries, into `arrays`; called by the stage itself, which
        drops the task when the copy is done.
        """
        place = self._full[number]
        for name, array in self.arrays.items():
            self._device.copy(array, place[name])

    def drop(self, number: int) -> None:
        """Forget what a task carried, if it carried anything."""
        if number in self._full:
            self._free.append(self._full.pop(number))


def build(
    units: Sequence[tuple[int, Unit, Engine]],
    phase: str,
    given: Mapping[str, Array],
    own: Own,
    scratch: Scratch,
    batch: int = 1,
) -> Lane:
    """Bind `units` (number, unit, engine) in order. `given` are the values from outside, by tensor
    name.
    """
    values: dict[str, Array] = dict(given)
    copies: dict[str, int] = {}
    launches: list[tuple[int, Launch]] = []
    for number, unit, engine in units:
        plan = unit.plans[phase]
        arrays = dict(own(unit))
        for binding in plan.inputs:
            if binding.name not in arrays:
                arrays[binding.name] = values[binding.tensor]
        for binding in plan.outputs:
            copies[binding.tensor] = copy = 1 - copies.get(binding.tensor, 1)
            arrays[binding.name] = scratch.array(binding, phase, copy, batch)
        launches.append((number, engine.bind(arrays)))
        values.update({b.tensor: arrays[b.name] for b in plan.outputs})
    return Lane(tuple(launches), values)
