"""Engines by AOTInductor: packages that torch compiled, on the processor or on a GPU. The only
importer of torch.

A package takes its weights as arguments, so that all units of one graph share one loaded library;
a device holds every weight once. What a package writes, it writes into the arrays that it is given.
Owns what a number of eight bits is here: packages narrow their inputs as weights are narrowed.
"""

from __future__ import annotations

import functools
import json
import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import EngineMismatch
from ..frame import Array
from ..manifest import Plan, mending
from .base import Engine, Launch

CARD = "plan.json"
"""The entry of a package, below its own folder `extra`, that says how to call it."""

ALIGNED = 16
"""Bytes: what code for a GPU reads at once."""

NARROW = torch.float8_e4m3fn
"""What the factors of a product are at precision fp8."""

Kind = torch.dtype
Loader = Any  # torch._C._aoti.AOTIModelPackageLoader


@dataclass(frozen=True, slots=True)
class Card:
    """How to call a package: its arguments in order, then the weights.

    `arguments` are (binding, dtype, shape), `aliases` the outputs that are an input, by name.
    `weights` are (file, offset, length, dtype stored, shape); they enter as `precision`, those of
    `wide` as float32, those of `narrow` as the two tensors of `narrowed`.
    """

    graph: str
    torch: str
    device: str
    precision: str
    arguments: tuple[tuple[str, str, tuple[int | str, ...]], ...]
    aliases: Mapping[str, str]
    weights: Mapping[str, tuple[str, int, int, str, tuple[int, ...]]]
    wide: tuple[str, ...]
    narrow: tuple[str, ...]

    def kind(self, weight: str) -> Kind:
        """The type that a weight enters in."""
        if weight in self.narrow:
            return NARROW
        found: Kind = getattr(torch, "float32" if weight in self.wide else self.precision)
        return found


def read_card(package: Path) -> Card:
    """The card of a package. Raises EngineMismatch for a file that has none."""
    try:
        with zipfile.ZipFile(package) as archive:
            (name,) = (n for n in archive.namelist() if n.endswith(f"/extra/{CARD}"))
            fields = json.loads(archive.read(name))
        arguments = tuple((n, dtype, tuple(shape)) for n, dtype, shape in fields["arguments"])
        weights = {n: (*w[:4], tuple(w[4])) for n, w in fields["weights"].items()}
        fields |= {kind: tuple(fields[kind]) for kind in ("wide", "narrow")}
        return Card(**fields | {"arguments": arguments, "weights": weights})
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise EngineMismatch(f"{package} is no package of this exporter: {error}") from None


def narrowed(rows: Tensor) -> tuple[Tensor, Tensor]:
    """[rows, n] -> e4m3 [rows, n] and float32 [rows, 1]: the largest of a row becomes 448, and a
    product of both is within 1/16 of each value that is not far smaller than that.
    """
    wide = rows.float()
    scale = wide.abs().amax(1, keepdim=True).clamp(min=1e-30) / torch.finfo(NARROW).max
    return (wide / scale).to(NARROW), scale


def laid_out(weight: Tensor) -> Tensor:
    """On a GPU weights of convolutions have their channels last: a package is compiled for the
    layout of its arguments, and gives what enters a convolution the layout of the weight, which
    is the one that kernels for matrix units want.
    """
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(weight.ndim)
    if last is None or weight.device.type == "cpu":
        return weight
    return weight.contiguous(memory_format=last)


def entering(values: Tensor, kind: Kind) -> tuple[Tensor, ...]:
    """The arguments of a package that a weight of these values becomes."""
    return narrowed(values) if kind is NARROW else (laid_out(values.to(kind)),)


def rows_lie_anywhere(shape: Sequence[int | str], kind: Kind) -> bool:
    """Whether a row of such a binding is so short that the next one begins at no multiple of 16
    bytes. All other arrays begin at one.
    """
    batched = bool(shape) and shape[0] == "B"
    return batched and math.prod(int(d) for d in shape[1:]) * kind.itemsize % ALIGNED != 0


def host() -> str:
    """What a package for the processor is compiled for: its widest vectors."""
    return f"cpu {torch.backends.cpu.get_cpu_capability()}"


def architecture(index: int = 0) -> str:
    """What a package for a GPU is compiled for, e.g. sm_90."""
    major, minor = torch.cuda.get_device_capability(index)
    return f"sm_{major}{minor}"


def library_version() -> str:
    """Version of the library that would run the engines."""
    return f"torch {torch.__version__}"


class InductorEngine:
    """A loaded package with the weights of one unit."""

    def __init__(
        self,
        loader: Loader,
        card: Card,
        weights: Sequence[Tensor],
        file: str,
        place: torch.device,
        recorder: Recorder | None,
    ) -> None:
        self._place = place
        self._recorder = recorder
        self._loader = loader
        self._card = card
        self._weights = tuple(weights)
        self._file = file

    def bind(self, arrays: Mapping[str, Array]) -> Launch:
        launch = self.plain(arrays)
        return launch if self._recorder is None else self._recorder.capture([launch])

    def plain(self, arrays: Mapping[str, Array]) -> Launch:
        """As `bind`, but never captured: for a capture of several launches as one."""
        card = self._card
        declared = {name for name, _, _ in card.arguments} | set(card.aliases)
        if differing := declared ^ set(arrays):
            raise EngineMismatch(
                f"{self._file}: bindings {sorted(differing)} differ from the manifest"
            )
        tensors = {name: _tensor(array, self._place) for name, array in arrays.items()}
        for name, dtype, shape in card.arguments:
            if dtype == "bfloat16" and tensors[name].dtype == torch.uint16:
                tensors[name] = tensors[name].view(torch.bfloat16)
            tensor = tensors[name]
            assert tensor.is_contiguous(), name
            if tensor.device != self._place:
                raise EngineMismatch(
                    f"{self._file} runs on {self._place}, {name} is on {tensor.device}; "
                    f"use --devices {self._place}"
                )
            if not rows_lie_anywhere(shape, tensor.dtype):  # Else a package would copy it first.
                assert self._recorder is None or tensor.data_ptr() % ALIGNED == 0, name
            if str(tensor.dtype) != f"torch.{dtype}" or not _fits(tensor.shape, shape):
                raise EngineMismatch(
                    f"{self._file}: {name} is {dtype} {list(shape)}, the manifest needs "
                    f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
                )
        for output, given in card.aliases.items():
            assert tensors[output].data_ptr() == tensors[given].data_ptr(), output
        inputs = [*(tensors[name] for name, _, _ in card.arguments), *self._weights]
        return functools.partial(_run, self._loader, inputs, tuple(arrays.values()))


class InductorBackend:
    """Loads packages for one share of the processor, or for the GPU that they were compiled for."""

    name = "inductor"

    def __init__(self, threads: int, index: int = 0, cuda_stream: int | None = None) -> None:
        self._threads = threads
        self._index = index
        self._cuda_stream = cuda_stream
        self._recorder: Recorder | None = None
        self._loaders: dict[str, Loader] = {}
        self._weights: dict[tuple[str, int, Kind], tuple[Tensor, ...]] = {}

    def load(self, directory: Path, plan: Plan) -> Engine:
        card = read_card(directory / plan.file)
        return self.engine(
            directory / plan.file,
            lambda name, device: self._weight(directory, name, card, device),
        )

    def engine(self, path: Path, weight: Callable[[str, str], Sequence[Tensor]]) -> InductorEngine:
        """The package at `path` with `weight(name, device)` for each of its weights, as its card
        says that they enter.
        """
        card = read_card(path)
        _check(path, card, self._index)
        on_gpu = card.device.startswith("sm_")
        if self._cuda_stream is not None and not on_gpu:
            raise EngineMismatch(
                f"{path} is compiled for {card.device}, the device is cuda:{self._index}; "
                f"{mending(path.parent)}"
            )
        if not on_gpu:
            torch.set_num_threads(self._threads)  # of the processor's loops, for this thread
        if card.graph not in self._loaders:
            from torch._C._aoti import AOTIModelPackageLoader

            try:
                self._loaders[card.graph] = AOTIModelPackageLoader(
                    str(path), "model", True, 1, self._index if on_gpu else -1
                )
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                raise EngineMismatch(
                    f"{path}: torch {torch.__version__} refuses it: {reason}"
                ) from error
        if on_gpu and self._recorder is None:
            self._recorder = Recorder(self._index, self._cuda_stream)
        place = torch.device("cuda", self._index) if on_gpu else torch.device("cpu")
        weights = [tensor for name in card.weights for tensor in weight(name, str(place))]
        loader = self._loaders[card.graph]
        return InductorEngine(loader, card, weights, path.name, place, self._recorder)

    def _weight(self, directory: Path, name: str, card: Card, device: str) -> tuple[Tensor, ...]:
        """One weight as it enters, read once for all units and phases that share it."""
        file, offset, length, stored, shape = card.weights[name]
        kind = card.kind(name)
        key = (file, offset, kind)
        if key not in self._weights:
            path = directory / file
            size = path.stat().st_size
            if offset + length > size:
                raise EngineMismatch(f"{path} has {size} bytes, a plan needs {offset + length}")
            data = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
            values = data[offset : offset + length].view(getattr(torch, stored)).reshape(shape)
            self._weights[key] = entering(values.to(device), kind)
        return self._weights[key]


class Recorder:
    """Captures launches on GPU `index` as CUDA graphs that run on `cuda_stream` (None: on the one
    that is current for torch).

    All graphs of a recorder share the memory of what is neither bound nor a weight, and so do the
    products in them, whose scratch belongs to the CUDA stream of the capture: on one CUDA stream
    graphs run one after the other, beside each other they would spoil it.
    """

    def __init__(self, index: int = 0, cuda_stream: int | None = None) -> None:
        self._follows = cuda_stream is None
        self._device = torch.device("cuda", index)
        with torch.cuda.device(self._device):
            self._pool = torch.cuda.graph_pool_handle()
            self._stream = (
                torch.cuda.Stream()  # type: ignore[no-untyped-call]
                if cuda_stream is None
                else torch.cuda.ExternalStream(  # type: ignore[no-untyped-call]
                    cuda_stream, device=self._device
                )
            )

    def capture(self, launches: Sequence[Launch]) -> Launch:
        """Launches in order -> one launch that replays them all.

        Runs them once before: what they write is written at load already.
        """
        stream, graph = self._stream, torch.cuda.CUDAGraph()
        # By torch's default convolutions of float32 are of TF32, which has ten bits.
        exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        with torch.cuda.device(self._device), exact:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for launch in launches:
                    launch()
            mode = "thread_local"  # Threads of other pipelines may allocate meanwhile.
            with torch.cuda.graph(graph, self._pool, stream, mode):
                for launch in launches:
                    launch()
            stream.synchronize()  # The CUDA stream that replays may not wait for this one.
            torch.cuda.empty_cache()  # What the first run took: CuPy allocates for itself.
        if self._follows:
            return functools.partial(_replay, graph, tuple(launches))
        return functools.partial(_replay_on, stream, graph, tuple(launches))


def capture(launches: Sequence[Launch]) -> Launch:
    """Launches on the first GPU -> one launch that replays them all, where torch is."""
    return Recorder().capture(launches)


def _replay(graph: torch.cuda.CUDAGraph, _alive: tuple[Launch, ...]) -> None:
    graph.replay()


def _replay_on(
    stream: torch.cuda.Stream, graph: torch.cuda.CUDAGraph, _alive: tuple[Launch, ...]
) -> None:
    with torch.cuda.stream(stream):
        graph.replay()


def _run(loader: Loader, inputs: list[Tensor], _alive: tuple[Array, ...]) -> None:
    loader.run(inputs)


def _check(path: Path, card: Card, index: int) -> None:
    """Refuse a package of another torch or another processor: it may crash instead of failing."""
    if card.torch != torch.__version__:
        raise EngineMismatch(
            f"{path} is for torch {card.torch}, here is {torch.__version__}; {mending(path.parent)}"
        )
    if not card.device.startswith("sm_"):
        here = host()
    elif torch.cuda.is_available():
        here = architecture(index)
    else:
        here = "no GPU"
    if card.device != here:
        raise EngineMismatch(
            f"{path} is compiled for {card.device}, here is {here}; {mending(path.parent)}"
        )


def _tensor(array: Array, place: torch.device) -> Tensor:
    """The same memory as a tensor. A type that NumPy and CuPy lack comes as its bits."""
    if isinstance(array, Tensor):
        return array
    if hasattr(array, "__cuda_array_interface__"):
        return torch.as_tensor(array, device=place)  # which it is on, or it would be a copy
    return torch.from_numpy(array)


def _fits(shape: Sequence[int], declared: Sequence[int | str]) -> bool:
    return len(shape) == len(declared) and all(
        d == "B" or d == n for n, d in zip(shape, declared, strict=True)
    )
