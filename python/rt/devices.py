"""Devices by name, and the arrays on them. Which device runs what is decided by `placement`.

A logical device may share hardware with another: `cpu:0,cpu:1` are two shares of the processor's
cores.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from .errors import ConfigError
from .frame import Array


@dataclass(frozen=True, slots=True)
class Device:
    """One logical device. `threads` is its share of the processor's cores (host devices only),
    `cores` the numbers of those that it has for itself; none where there are too few.
    """

    kind: str
    index: int
    threads: int
    cores: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.kind}:{self.index}"

    def zeros(self, shape: Sequence[int], dtype: DTypeLike) -> Array:
        """A new zeroed C-contiguous array on this device."""
        return np.zeros(tuple(shape), dtype)

    def pin(self) -> None:
        """Keep this thread, and those that it starts from now on, on the device's cores."""
        if self.cores:
            os.sched_setaffinity(0, self.cores)

    @contextlib.contextmanager
    def pinned(self) -> Iterator[None]:
        """`pin`, for as long as this lasts."""
        before = os.sched_getaffinity(0)
        self.pin()
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0))


def resolve(devices: str | Sequence[str]) -> tuple[Device, ...]:
    """Names -> devices. "auto" is the best device that this machine and version can run on.

    Raises ConfigError for a name that is not a device, or a device that is not there.
    """
    names = (
        ["cpu"]
        if devices == "auto"
        else devices.split(",")
        if isinstance(devices, str)
        else list(devices)
    )
    if not names:
        raise ConfigError("devices: got none, expected names like cpu:0 (or auto)")
    parsed = [_parse(name.strip()) for name in names]
    share = max(1, cores() // len(parsed))
    numbers = sorted(os.sched_getaffinity(0)) if 1 < len(parsed) <= cores() else []
    return tuple(
        Device(kind, index, share, tuple(numbers[i * share : (i + 1) * share]))
        for i, (kind, index) in enumerate(parsed)
    )


def _parse(name: str) -> tuple[str, int]:
    match = re.fullmatch(r"(cpu|cuda)(?::(\d+))?", name)
    if match is None:
        raise ConfigError(
            f"devices: got {name!r}, expected cpu, cpu:N or cuda:N, separated by commas"
        )
    kind, index = match[1], int(match[2] or 0)
    if kind == "cuda":
        raise ConfigError(
            f"devices: got {name!r}, but {gpu_report()}; use --devices cpu (or cpu:0,cpu:1)"
        )
    return kind, index


def gpu_report() -> str:
    """What is known of GPUs on this machine, in a few words for a message."""
    if not os.path.exists("/proc/driver/nvidia/version"):
        return f"this machine has no NVIDIA driver (0 GPUs; {cores()} processor cores)"
    return "this version runs engines on the processor only"


def gpus(count: int) -> tuple[str, ...]:
    """Names of the first `count` GPUs. Raises ConfigError that says what is there and what would
    work.
    """
    if count < 1:
        raise ConfigError(
            f"gpus: got {count}, expected at least 1; leave it out to use the processor"
        )
    several = ",".join(f"cpu:{i}" for i in range(min(count, cores())))
    raise ConfigError(f"gpus: got {count}, but {gpu_report()}; use --devices {several} instead")
