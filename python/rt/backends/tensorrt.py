"""Engines by TensorRT and TensorRT for RTX. The only importer of both."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..errors import ConfigError, EngineMismatch
from ..frame import Array
from ..manifest import Plan, mending
from .base import Engine, Launch, library_name


@dataclass(frozen=True, slots=True)
class Flavour:
    """One of the two libraries: its releases, how to get it."""

    first: tuple[int, int]
    before: int
    install: str


FLAVOURS = {
    "tensorrt": Flavour(
        (11, 0),
        12,
        "pip install 'streamdiffusion-rt[tensorrt]' "
        "(its libraries come from NVIDIA's own package index, not from PyPI)",
    ),
    "tensorrt-rtx": Flavour(
        (1, 7),
        2,
        "pip install 'streamdiffusion-rt[tensorrt-rtx]'",
    ),
}


@dataclass(frozen=True, slots=True)
class Card:
    """A plan: which engine runs a unit, for what it was built, and where its weights lie.

    `weights` are the engine's inputs that hold weights: (file, offset, length, dtype, shape).
    `ignores` are bindings of the unit that the engine does not have.
    """

    engine: str
    graph: str
    library: str
    compute_capability: tuple[str, ...]
    ignores: tuple[str, ...]
    weights: Mapping[str, tuple[str, int, int, str, tuple[int, ...]]]

    def encoded(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode() + b"\n"


def read_card(path: Path) -> Card:
    """The card in a plan file. Raises EngineMismatch for a file that is none."""
    try:
        fields = json.loads(path.read_text())
        capabilities, ignores = (
            tuple(fields.pop(name)) for name in ("compute_capability", "ignores")
        )
        weights = {n: (*w[:4], tuple(w[4])) for n, w in fields.pop("weights").items()}
        return Card(compute_capability=capabilities, ignores=ignores, weights=weights, **fields)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineMismatch(f"{path} is no plan of this exporter: {error}") from None


def library(flavour: str) -> ModuleType:
    """The library of a flavour. Raises ConfigError that says how to install it."""
    wanted = FLAVOURS[flavour]
    if (name := library_name(flavour)) is None:
        raise ConfigError(f"backend {flavour}: not installed; install it: {wanted.install}")
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"backend {flavour}: {reason}; install it: {wanted.install}") from error
    release = tuple(int(part) for part in module.__version__.split(".")[:2])
    if not wanted.first <= release < (wanted.before,):
        low = ".".join(map(str, wanted.first))
        raise ConfigError(
            f"backend {flavour}: got {module.__version__}, expected >={low},<{wanted.before}; "
            f"install it: {wanted.install}"
        )
    return module


def library_version(flavour: str) -> str:
    """The library that builds and runs engines, e.g. "tensorrt-rtx 1.7.1.116"."""
    return f"{flavour} {library(flavour).__version__}"


class Arena:
    """Scratch memory that contexts share which never run at the same time: as large as the largest
    of them needs.
    """

    def __init__(self, allocate: Callable[[int], Any]) -> None:
        self._allocate = allocate
        self._memory: Any = None
        self.size = 0

    def reserve(self, size: int) -> None:
        """Before the first launch is captured: growing moves it."""
        if size > self.size:
            self._memory, self.size = self._allocate(size), size

    @property
    def address(self) -> int:
        return int(self._memory.ptr) if self.size else 0


class TensorRtEngine:
    """An engine with the weights of one unit. Units of one graph share its contexts."""

    def __init__(
        self, loaded: Loaded, weights: Mapping[str, Any], ignores: Sequence[str], file: str
    ) -> None:
        self._loaded = loaded
        self._ignores = frozenset(ignores)
        self._weights = {name: int(array.data.ptr) for name, array in weights.items()}
        self._alive = tuple(weights.values())
        self._file = file

    def bind(self, arrays: Mapping[str, Array]) -> Launch:
        declared = self._loaded.bindings
        arrays = {name: array for name, array in arrays.items() if name not in self._ignores}
        if differing := set(declared) ^ (set(arrays) | set(self._weights)):
            raise EngineMismatch(
                f"{self._file}: bindings {sorted(differing)} differ from the manifest"
            )
        rows = 1
        for name, array in arrays.items():
            shape = declared[name]
            if len(shape) != len(array.shape) or any(
                d not in (-1, n) for d, n in zip(shape, array.shape, strict=True)
            ):
                raise EngineMismatch(
                    f"{self._file}: {name} is {list(shape)}, the manifest needs {list(array.shape)}"
                )
            rows = array.shape[0] if shape and shape[0] == -1 else rows
        addresses = {name: _address(array) for name, array in arrays.items()}
        for output, given in self._loaded.aliases.items():
            assert addresses[output] == addresses[given], output
        context = self._loaded.context(rows)
        everything = tuple((addresses | self._weights).items())
        alive = (tuple(arrays.values()), self._alive)
        return functools.partial(_launch, self._loaded, context, everything, alive)


class Loaded:
    """An engine in the library, its bindings by name, and one context for each batch."""

    def __init__(self, trt: ModuleType, cupy: ModuleType, engine: Any, arena: Arena) -> None:
        self._trt, self._cupy, self._engine, self._arena = trt, cupy, engine, arena
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self.bindings = {name: tuple(engine.get_tensor_shape(name)) for name in names}
        given = {name: engine.get_aliased_input_tensor(name) for name in names}
        self.aliases = {name: source for name, source in given.items() if source}
        self._contexts: dict[int, Any] = {}

    def context(self, rows: int) -> Any:
        """The context of the profile for `rows` rows; its scratch is the arena."""
        if rows not in self._contexts:
            strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
            context = self._engine.create_execution_context(strategy)
            free = {n: s for n, s in self.bindings.items() if -1 in s}
            profile = rows - 1 if free else 0
            if profile >= self._engine.num_optimization_profiles:
                raise EngineMismatch(
                    f"{rows} rows, the engine has profiles up to "
                    f"{self._engine.num_optimization_profiles}"
                )
            context.set_optimization_profile_async(profile, self.stream)
            for name, shape in free.items():
                if self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT:
                    context.set_input_shape(name, tuple(rows if d == -1 else d for d in shape))
            self._arena.reserve(self._engine.get_device_memory_size_for_profile_v2(profile))
            self._contexts[rows] = context
        return self._contexts[rows]

    @property
    def stream(self) -> int:
        """The CUDA stream that is current: launches and captures go to it."""
        return int(self._cupy.cuda.get_current_stream().ptr)

    def run(self, context: Any, addresses: Sequence[tuple[str, int]]) -> None:
        context.set_device_memory(self._arena.address, self._arena.size)
        for name, address in addresses:
            context.set_tensor_address(name, address)
        if not context.execute_async_v3(self.stream):
            raise RuntimeError("TensorRT did not run an engine")


class TensorRtBackend:
    """Loads engines of one flavour for one GPU. Each engine and each weight is loaded once."""

    def __init__(self, flavour: str, index: int = 0) -> None:
        self.name = flavour
        self._trt = library(flavour)
        if importlib.util.find_spec("cupy") is None:
            raise ConfigError(
                f"backend {flavour}: CuPy is not installed; install it: {FLAVOURS[flavour].install}"
            )
        self._cupy = importlib.import_module("cupy")
        self._logger = self._trt.Logger(self._trt.Logger.ERROR)
        self._runtime = self._trt.Runtime(self._logger)
        self._gpu = _dotted(self._cupy.cuda.Device(index).compute_capability)
        self._arena = Arena(self._cupy.cuda.alloc)
        self._engines: dict[Path, Loaded] = {}
        self._weights: dict[tuple[Path, int], Any] = {}

    def load(self, directory: Path, plan: Plan) -> Engine:
        card = read_card(directory / plan.file)
        here = library_version(self.name)
        if card.library != here:
            raise EngineMismatch(
                f"{plan.file} is for {card.library}, here is {here}; {mending(directory)}"
            )
        if self._gpu not in card.compute_capability:
            wanted = ", ".join(card.compute_capability)
            raise EngineMismatch(
                f"{plan.file} is for GPUs {wanted}, here is {self._gpu}; "
                f"{mending(directory, self._gpu)}"
            )
        path = directory / card.engine
        if path not in self._engines:
            engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
            if engine is None:
                raise EngineMismatch(f"{path}: {here} refuses it; {mending(directory)}")
            self._engines[path] = Loaded(self._trt, self._cupy, engine, self._arena)
        weights = {name: self._weight(directory, place) for name, place in card.weights.items()}
        return TensorRtEngine(self._engines[path], weights, card.ignores, plan.file)

    def _weight(self, directory: Path, place: tuple[str, int, int, str, tuple[int, ...]]) -> Any:
        """The bytes of one weight on the device."""
        file, offset, length, _, _ = place
        key = (directory / file, offset)
        if key not in self._weights:
            data = np.fromfile(key[0], np.uint8, length, offset=offset)
            if len(data) != length:
                raise EngineMismatch(f"{key[0]} ends before {offset + length} bytes")
            self._weights[key] = self._cupy.asarray(data)
        return self._weights[key]


def capture(launches: Sequence[Launch], cupy: ModuleType) -> Launch:
    """Launches in order -> one launch that replays them as a CUDA graph over the same addresses.

    Runs them once before, as the library wants it: what they write is written at load already.
    """
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        for launch in launches:
            launch()
        stream.synchronize()
        stream.begin_capture()
        for launch in launches:
            launch()
        graph = stream.end_capture()
    return functools.partial(_replay, graph, cupy, tuple(launches))


def data_centre(_threads: int, index: int = 0, _cuda_stream: int = 0) -> TensorRtBackend:
    """The backend of `tensorrt`. It launches on the CUDA stream that is current."""
    return TensorRtBackend("tensorrt", index)


def rtx(_threads: int, index: int = 0, _cuda_stream: int = 0) -> TensorRtBackend:
    """The backend of `tensorrt-rtx`. It launches on the CUDA stream that is current."""
    return TensorRtBackend("tensorrt-rtx", index)


def _launch(
    loaded: Loaded, context: Any, addresses: Sequence[tuple[str, int]], _alive: object
) -> None:
    loaded.run(context, addresses)


def _replay(graph: Any, cupy: ModuleType, _alive: object) -> None:
    graph.launch(cupy.cuda.get_current_stream())


def _address(array: Any) -> int:
    """Where an array on the device begins."""
    return int(array.__cuda_array_interface__["data"][0])


def _dotted(capability: str) -> str:
    return f"{capability[:-1]}.{capability[-1]}"
