"""A stand-in for a GPU: what is asked of it happens as late as it may, in order, and what it reads
from the host it reads then. Memory that nothing wrote to holds garbage.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from rt.devices import Device, stored
from rt.frame import Array


@dataclass(frozen=True, slots=True)
class LateDevice(Device):
    """Calls are carried out by `wait`, and by nothing else."""

    calls: deque[Callable[[], object]] = field(default_factory=deque, compare=False)
    turn: threading.RLock = field(default_factory=threading.RLock, compare=False)

    def zeros(self, shape: Sequence[int], dtype: DTypeLike) -> Array:
        return np.zeros(tuple(shape), stored(dtype))

    def put(self, name: Hashable, array: Array) -> Array:
        pinned = self.place((name, "pinned"), array.shape, array.dtype)
        pinned[...] = array
        place = self.place((name, "put"), array.shape, array.dtype)
        self.copy(place, pinned)
        return place

    def copy(self, out: Array, source: Any) -> None:
        self.do(partial(np.copyto, out, source, casting="unsafe"))

    def do(self, call: Callable[[], object]) -> None:
        with self.turn:
            self.calls.append(call)

    def wait(self) -> None:
        with self.turn:
            while self.calls:
                self.calls.popleft()()


@dataclass(frozen=True, slots=True)
class ForgetfulDevice(LateDevice):
    """The fault: one kind of wait, that at the end of a pass, returns at once."""

    def wait(self) -> None:
        if not threading.current_thread().name.startswith("stage-"):
            LateDevice.wait(self)
