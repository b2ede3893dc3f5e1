"""Unit -> AOTInductor package: one compile per graph and phase, weights as arguments.

A unit's outputs and states are arguments too, written in place, so that a package runs over fixed
addresses and a ring is never copied. Owns the card that says how to call a package.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
import warnings
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

from export import toolkit
from export.narrow import narrow, narrowed_module
from export.onnx import Stored
from export.units import EXAMPLE_ROWS, PhaseSpec, concrete
from rt.backends.inductor import (
    CARD,
    NARROW,
    Card,
    architecture,
    host,
    laid_out,
    library_version,
    read_card,
    rows_lie_anywhere,
)
from rt.errors import ConfigError, Error
from rt.manifest import Binding, StateBinding

SUFFIX = ".pt2"
ROWS = 64
"""Most rows that a batched package takes."""
_OPTIONS: Mapping[str, object] = {"cpp.dynamic_threads": True}
"""The processor's loops run on as many threads as the runtime says, not as the compiler had."""
_GPU_OPTIONS: Mapping[str, object] = {"force_pointwise_cat": True}
"""History and chunk are put together by the kernel that normalises the chunk, in the layout that
the convolution after it reads.
"""
_USER_INPUT = torch.export.graph_signature.InputKind.USER_INPUT


WORKING = {"fp32": "float32", "bf16": "bfloat16", "fp8": "bfloat16"}
"""Precision -> type of the weights, of what a seat keeps and of what flows inside the VAE. At fp8
the linear layers of a block multiply e4m3 by e4m3; all else is as at bf16.
"""
_FP8_SINCE = (8, 9)
"""The first compute capability that multiplies e4m3."""
_FULL = {
    *("pixels", "latent", "noisy", "velocity", "clean", "restyled", "embeddings", "token_mask"),
    *("timestep", "rope_time", "rope", "mask", "modulation", "head_modulation", "x"),
}
"""Values along the chain that stay float32: what ops write and read, and the residual stream."""


@dataclass(frozen=True, slots=True)
class Package:
    """A compiled graph, its card still without the places of weights, and the weights it reads."""

    data: bytes
    card: Card
    weights: tuple[str, ...]


def library() -> str:
    """What a package depends on: torch, and the processor or GPU that it is compiled for."""
    return f"{library_version()}, {target()}"


def gpu_architecture() -> str | None:
    """The GPU that packages are compiled for; None where there is none."""
    return architecture() if torch.cuda.is_available() else None


def target() -> str:
    """The GPU that is here, otherwise the processor."""
    return gpu_architecture() or host()


def check_precision(precision: str) -> None:
    """Raise ConfigError where the GPU that is here has no arithmetic of `precision`. The processor
    has it of each, if only to be compared with (of fp8 with torch 2.13; 2.11 does not compile it).
    """
    if precision != "fp8" or not torch.cuda.is_available():
        return
    capability = torch.cuda.get_device_capability()
    if capability < _FP8_SINCE:
        here, first = (".".join(map(str, c)) for c in (capability, _FP8_SINCE))
        raise ConfigError(
            f"precision: got fp8 on a GPU of compute capability {here}, which multiplies e4m3 from "
            f"{first} on; expected bf16"
        )


def in_precision(spec: PhaseSpec, precision: str) -> PhaseSpec:
    """`spec` with the types that its bindings have in a plan of this precision."""
    working = WORKING[precision]

    def typed(b: Binding) -> Binding:
        keeps = b.dtype != "float32" or b.tensor in _FULL
        return b if keeps else replace(b, dtype=working)

    return replace(
        spec,
        inputs=tuple(map(typed, spec.inputs)),
        outputs=tuple(map(typed, spec.outputs)),
        state=tuple(replace(s, dtype=working) for s in spec.state),
    )


def compile_package(
    spec: PhaseSpec,
    *,
    precision: str = "fp32",
    may_ignore: Collection[str] = (),
    options: Mapping[str, object] | None = None,
) -> Package:
    """`spec`, as `in_precision` types it, compiled for this machine; `options` are inductor's own.

    Raises Error for an input that the graph does not use, unless it is in `may_ignore`, and
    ConfigError for a precision that this machine cannot run.
    """
    check_precision(precision)
    unit = _InPlace(spec, tuple(spec.module.state_dict()), precision)
    program = unit.export()
    unused, weights = unit.unused(program)
    if lost := unused - set(may_ignore):
        raise Error(f"unused input {min(lost)!r} in an exported graph; remove it from the unit")
    if weights:  # another phase reads them
        unit = _InPlace(spec, tuple(n for n in unit.weights if n not in weights), precision)
        program = unit.export()
    own = _OPTIONS if gpu_architecture() is None else _GPU_OPTIONS
    with tempfile.TemporaryDirectory() as folder, _quiet(), _linking(Path(folder)):
        path = Path(folder) / "unit.pt2"
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(path), inductor_configs={**own, **(options or {})}
        )
        data = path.read_bytes()
    card = Card(
        graph=hashlib.sha256(data).hexdigest(),
        torch=torch.__version__,
        device=target(),
        precision=WORKING[precision],
        arguments=tuple((name, v.dtype, v.shape) for name, v in unit.bindings.items()),
        aliases=unit.aliases,
        weights={},
        wide=tuple(sorted(_wide(spec.module).intersection(unit.weights))),
        narrow=tuple(sorted(narrow(spec.module, precision).intersection(unit.weights))),
    )
    return Package(data, card, unit.weights)


def plan(package: Package, stored: Mapping[str, Stored]) -> bytes:
    """The plan of one unit: the package with a card that says where its weights lie."""
    fields = asdict(package.card)
    fields["weights"] = {
        n: (w.file, w.offset, w.length, w.dtype, w.shape)
        for n in package.weights
        for w in (stored[n],)
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "unit.pt2"
        path.write_bytes(package.data)
        with zipfile.ZipFile(path, "a") as archive:
            root = archive.namelist()[0].split("/", 1)[0]
            entry = zipfile.ZipInfo(f"{root}/extra/{CARD}")  # without the time: bytes repeat
            archive.writestr(entry, json.dumps(fields))
        return path.read_bytes()


def weights_of(path: Path) -> dict[str, Stored]:
    """The weights of a plan by the name that the module gives them."""
    return {name: Stored(*where) for name, where in read_card(path).weights.items()}


def graph_sha256(path: Path) -> str:
    """Hash of the package without its card: equal for all units that are one graph."""
    return read_card(path).graph


def _wide(module: nn.Module) -> set[str]:
    """Weights that stay float32: of normalisations, and what scales and shifts. They are small."""
    norms = {n for n, m in module.named_modules() if isinstance(m, (nn.LayerNorm, nn.RMSNorm))}
    return {
        name
        for name in module.state_dict()
        if name.rpartition(".")[0] in norms or name.endswith(("modulation", "gamma"))
    }


class _InPlace(nn.Module):
    """A unit that is told where to write: `forward(*inputs and states, *outputs, *weights)`.

    The unit's own tensors are hidden from the exporter, so that no weight gets into the package;
    its tables, which are no weights, do. Autocast decides which operator works in bfloat16. A
    narrow weight is two arguments, itself and its scales.
    """

    def __init__(self, spec: PhaseSpec, weights: tuple[str, ...], precision: str) -> None:
        super().__init__()
        narrowing = narrow(spec.module, precision)
        module = narrowed_module(spec.module, narrowing) if narrowing else spec.module
        self._unit = spec, module  # in a tuple, so that the unit is no submodule
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self.weights = weights
        self.aliases = {s.output: s.input for s in spec.state if s.mode == "alias"}
        inputs = {b.name: b for b in spec.inputs} | {s.input: s for s in spec.state}
        outputs = {b.name: b for b in spec.outputs} | {
            s.output: s for s in spec.state if s.mode != "alias"
        }
        self.bindings: dict[str, Binding | StateBinding] = inputs | outputs
        own = spec.module.state_dict()
        self._working: torch.dtype = getattr(torch, WORKING[precision])
        wide = _wide(spec.module)
        # Weights are arguments, so their values do not matter here; they may be on no device.
        self._held: dict[str, Tensor] = {}
        for name in weights:
            kind = NARROW if name in narrowing else torch.float32 if name in wide else self._working
            held = torch.empty_like(own[name], device=self._device, dtype=kind)
            self._held[name] = laid_out(held)
            if name in narrowing:
                scales = torch.empty(len(own[name]), 1, device=self._device)
                self._held[f"{name.removesuffix('weight')}scale"] = scales
        self._tables = {
            name: tensor.to(self._device)
            for name, tensor in module.named_buffers()
            if name not in own and name not in self._held
        }

    def forward(self, *arguments: Tensor) -> None:
        spec, module = self._unit
        bound = len(self.bindings)
        given = dict(zip(self.bindings, arguments[:bound], strict=True))
        weights = dict(zip(self._held, arguments[bound:], strict=True))
        inputs = tuple(given[name] for name in spec.input_names)
        lowered = self._working is not torch.float32
        with torch.autocast(self._device, self._working, enabled=lowered):
            results = functional_call(module, {**weights, **self._tables}, inputs)
        results = results if isinstance(results, tuple) else (results,)
        for name, result in zip(spec.output_names, results, strict=True):
            given[self.aliases.get(name, name)].copy_(result)

    def export(self) -> torch.export.ExportedProgram:
        """The traced program; the leading dimension of every binding is free where it is B."""
        spec, _ = self._unit
        bound = [self._example(v) for v in self.bindings.values()]
        arguments = (*bound, *self._held.values())
        rows = {0: torch.export.Dim("B", min=1, max=ROWS)} if spec.batched else {}
        dynamic = (tuple(rows if i < len(bound) else {} for i in range(len(arguments))),)
        with torch.no_grad(), _quiet():
            return torch.export.export(self, arguments, dynamic_shapes=dynamic, strict=False)

    def _example(self, binding: Binding | StateBinding) -> Tensor:
        """Zeros; beside a multiple of 16 bytes where a row may begin there. What begins otherwise
        than its example is copied first by a package on a GPU, which then writes to the copy.
        """
        kind: torch.dtype = getattr(torch, binding.dtype)
        shape = concrete(binding.shape, EXAMPLE_ROWS)
        beside = int(rows_lie_anywhere(binding.shape, kind))
        whole = torch.zeros(math.prod(shape) + beside, dtype=kind, device=self._device)
        return whole[beside:].view(shape)

    def unused(self, program: torch.export.ExportedProgram) -> tuple[set[str], set[str]]:
        """The bindings, and the weights, that no node of the program reads or writes."""
        holders = [node for node in program.graph.nodes if node.op == "placeholder"]
        kinds = [spec.kind for spec in program.graph_signature.input_specs]
        users = [n for n, kind in zip(holders, kinds, strict=True) if kind is _USER_INPUT]
        idle = [not node.users for node in users]
        bound = len(self.bindings)
        return (
            {name for name, unused in zip(self.bindings, idle[:bound], strict=True) if unused},
            {name for name, unused in zip(self._held, idle[bound:], strict=True) if unused},
        )


def _linking(folder: Path) -> AbstractContextManager[None]:
    """What the compiler needs to link for the GPU that is here; `folder` takes what it makes."""
    return nullcontext() if gpu_architecture() is None else toolkit.found_by_torch(folder)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the compiler says about itself; its errors still raise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
