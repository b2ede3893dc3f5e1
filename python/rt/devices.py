"""Devices by name, and the arrays on them. Which device runs what is decided by `placement`.

A logical device may share hardware with another: `cpu:0,cpu:1` are two shares of the processor's
cores, `cuda:0,cuda:0` two queues of one GPU. What is done to arrays is asked of a device: it
happens in the order in which it was asked for, and is done for certain only after `wait`.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from . import backends
from .backends.base import Backend
from .errors import ConfigError
from .frame import Array


def stored(dtype: DTypeLike) -> DTypeLike:
    """The type of an array that holds values of `dtype`: bfloat16 travels as uint16."""
    return np.uint16 if dtype == "bfloat16" else dtype


@dataclass(frozen=True, slots=True)
class Device:
    """One logical device. `threads` is its share of the processor's cores (host devices only),
    `cores` the numbers of those that it has for itself; none where there are too few.
    """

    kind: str
    index: int
    threads: int
    cores: tuple[int, ...] = ()
    _places: dict[Hashable, Array] = field(default_factory=dict, compare=False, repr=False)

    @property
    def name(self) -> str:
        return f"{self.kind}:{self.index}"

    def zeros(self, shape: Sequence[int], dtype: DTypeLike) -> Array:
        """A new zeroed C-contiguous array on this device."""
        return np.zeros(tuple(shape), stored(dtype))

    def place(self, name: Hashable, shape: Sequence[int], dtype: DTypeLike) -> Array:
        """The array of this name and shape, made when it is first asked for."""
        key = (name, tuple(shape), np.dtype(dtype).str)
        if key not in self._places:
            self._places[key] = self.zeros(shape, dtype)
        return self._places[key]

    def put(self, name: Hashable, array: Array) -> Array:  # noqa: ARG002 - no copy is needed here
        """What a host array holds now, on the device; a name serves once between two waits."""
        return array

    def copy(self, out: Array, source: Any) -> None:
        """`out[...] = source`. Either may lie on the host or on another device of this kind."""
        out[...] = source

    def do(self, call: Callable[[], object]) -> None:
        """Launch something here."""
        call()

    def fill(self, array: Array, value: int) -> None:
        """`array[...] = value`, an array of this device."""
        self.do(lambda: array.fill(value))

    def wait(self) -> None:
        """Return when all is done that was asked for."""

    @property
    def cuda_stream(self) -> int:
        """The handle that operators are launched on; 0 on the host."""
        return 0

    def backend(self, name: str) -> Backend:
        """The backend `name` for this device. Raises ConfigError where it cannot be had."""
        if name.startswith("tensorrt"):
            raise ConfigError(
                f"backend {name} runs on a GPU; got {self.name}, use --devices cuda:0, or build an "
                "engine for the processor: python -m export build-engines --backend onnxruntime"
            )
        return backends.create(name, self.threads)

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


@dataclass(frozen=True, slots=True)
class CudaDevice(Device):
    """A GPU by CuPy, with a CUDA stream of its own: several of one index run beside each other."""

    cupy: Any = field(default=None, compare=False)
    queue: Any = field(default=None, compare=False)

    def zeros(self, shape: Sequence[int], dtype: DTypeLike) -> Array:
        with self.pinned():
            array: Array = self.cupy.zeros(tuple(shape), stored(dtype))
            self.queue.synchronize()
        return array

    def put(self, name: Hashable, array: Array) -> Array:
        key = (name, array.shape, array.dtype.str, "pinned")
        if key not in self._places:
            pinned = importlib.import_module("cupyx").empty_pinned
            self._places[key] = pinned(array.shape, array.dtype)
        place = self.place(name, array.shape, array.dtype)
        self._places[key][...] = array
        with self.pinned():
            _from_host(place, self._places[key], self.queue)
        return place

    def copy(self, out: Array, source: Any) -> None:
        with self.pinned():
            if isinstance(out, np.ndarray):
                source.get(stream=self.queue, out=out, blocking=False)
            elif isinstance(source, self.cupy.ndarray):
                _between(out, source, self.queue)
            else:  # Memory that is not pinned may be read late, where the GPU can reach it.
                host = np.broadcast_to(np.asarray(source, out.dtype), out.shape)
                _from_host(out, np.ascontiguousarray(host), self.queue)
                self.queue.synchronize()

    def fill(self, array: Array, value: int) -> None:
        """0 or -1, whose bytes are all alike: CuPy would compile a kernel."""
        assert value in (0, -1), value
        with self.pinned():
            for part in _whole(array):
                part.data.memset_async(value & 0xFF, part.nbytes, self.queue)

    def do(self, call: Callable[[], object]) -> None:
        with self.pinned():
            call()

    def wait(self) -> None:
        self.queue.synchronize()

    def pin(self) -> None:
        self.cupy.cuda.Device(self.index).use()

    @contextlib.contextmanager
    def pinned(self) -> Iterator[None]:
        with self.cupy.cuda.Device(self.index), self.queue:
            yield

    @property
    def cuda_stream(self) -> int:
        return int(self.queue.ptr)

    def backend(self, name: str) -> Backend:
        return backends.create(name, self.threads, (self.index, self.cuda_stream))


def _whole(array: Any) -> Iterator[Any]:
    """The pieces of an array that have no gaps."""
    if array.flags.c_contiguous:
        yield array
    else:
        for part in array:
            yield from _whole(part)


def _from_host(out: Any, source: Array, queue: Any) -> None:
    out.set(source, stream=queue)


def _between(out: Any, source: Any, queue: Any) -> None:
    """From one device's memory to another's, or to its own; CUDA takes the way that there is."""
    assert out.flags.c_contiguous
    assert source.flags.c_contiguous
    assert (out.shape, out.dtype) == (source.shape, source.dtype)
    out.data.copy_from_device_async(source.data, out.nbytes, queue)


DRIVER = ("/proc/driver/nvidia/version", "/dev/nvidiactl")
"""One of them is there where an NVIDIA driver is; a container may hide the other."""


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0))


def resolve(devices: str | Sequence[str]) -> tuple[Device, ...]:
    """Names -> devices. "auto" is the best device that this machine and version can run on.

    Raises ConfigError for a name that is not a device, or a device that is not there.
    """
    names: Any = devices.split(",") if isinstance(devices, str) else devices
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"devices: got {devices!r}, expected text, or a list of names like cpu:0")
    if devices == "auto":
        names = ["cpu"]
    if not names:
        raise ConfigError("devices: got none, expected names like cpu:0 (or auto)")
    parsed = [_parse(name.strip()) for name in names]
    if {"cpu", "cuda"} <= {kind for kind, _ in parsed}:
        raise ConfigError(f"devices: got {', '.join(names)}, expected devices of one kind")
    if parsed[0][0] == "cuda":
        return tuple(_gpu(index) for _, index in parsed)
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
    if kind == "cuda" and (why := gpu_report(index)):
        raise ConfigError(f"devices: got {name!r}, but {why}; use --devices cpu (or cpu:0,cpu:1)")
    return kind, index


def _gpu(index: int) -> CudaDevice:
    cupy = _cupy()
    with cupy.cuda.Device(index):
        queue = cupy.cuda.Stream(non_blocking=True)
    return CudaDevice("cuda", index, cores(), cupy=cupy, queue=queue)


def _cupy() -> ModuleType:
    return importlib.import_module("cupy")


def gpu_report(index: int = 0) -> str:
    """Why GPU `index` cannot be had on this machine, in a few words for a message; "" if it can."""
    if not any(map(os.path.exists, DRIVER)):
        return f"this machine has no NVIDIA driver (0 GPUs; {cores()} processor cores)"
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed (pip install cupy-cuda13x)"
    from .ops import cuda_archs

    if not cuda_archs():
        return "the extension is built without CUDA (pip install -e . where nvcc is)"
    runtime = _cupy().cuda.runtime
    try:
        count = int(runtime.getDeviceCount())
    except runtime.CUDARuntimeError as error:
        return f"CUDA does not start ({error})"
    return "" if index < count else f"this machine has {count} GPUs"


def gpus(count: int) -> tuple[str, ...]:
    """Names of the first `count` GPUs. Raises ConfigError that says what is there and what would
    work.
    """
    if count < 1:
        raise ConfigError(
            f"gpus: got {count}, expected at least 1; leave it out to use the processor"
        )
    if not (why := gpu_report(count - 1)):
        return tuple(f"cuda:{i}" for i in range(count))
    several = ",".join(f"cpu:{i}" for i in range(min(count, cores())))
    raise ConfigError(f"gpus: got {count}, but {why}; use --devices {several} instead")
