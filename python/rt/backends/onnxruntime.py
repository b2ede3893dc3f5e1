"""Engines by ONNX Runtime on the processor. The only importer of onnxruntime."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state

from .. import ops
from ..errors import EngineMismatch
from ..frame import Array
from ..manifest import Plan, mending
from .base import Engine, Launch


class OnnxRuntimeEngine:
    """One session. Every launch of it has its own IO binding over raw addresses."""

    def __init__(self, session: ort.InferenceSession, file: str) -> None:
        self._session = session
        self._inputs = {i.name: i for i in session.get_inputs()}
        self._outputs = {o.name: o for o in session.get_outputs()}
        self._file = file

    def bind(self, arrays: Mapping[str, Array]) -> Launch:
        declared = self._inputs | self._outputs
        missing = set(declared) ^ set(arrays)
        if missing:
            raise EngineMismatch(
                f"{self._file}: bindings {sorted(missing)} differ from the manifest"
            )
        binding = self._session.io_binding()
        for name, array in arrays.items():
            assert array.flags.c_contiguous, name
            if not _fits(array, declared[name]):
                raise EngineMismatch(
                    f"{self._file}: {name} is {declared[name].type} {declared[name].shape}, "
                    f"the manifest needs {array.dtype} {list(array.shape)}"
                )
            bind = binding.bind_input if name in self._inputs else binding.bind_output
            bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        # The binding holds addresses only; the closure keeps the arrays themselves alive.
        return functools.partial(_run, self._session, binding, tuple(arrays.values()))


def _fits(array: Array, declared: ort.NodeArg) -> bool:
    """Whether dtype and shape are those of the plan; a dimension that it names may be any."""
    same_rank = len(array.shape) == len(declared.shape)
    return (
        _TYPES.get(array.dtype.name) == declared.type
        and same_rank
        and all(
            not isinstance(d, int) or d == n
            for n, d in zip(array.shape, declared.shape, strict=True)
        )
    )


_TYPES = {
    "float32": "tensor(float)",
    "float16": "tensor(float16)",
    "int32": "tensor(int32)",
    "int64": "tensor(int64)",
    "bool": "tensor(bool)",
}


def _run(session: ort.InferenceSession, binding: ort.IOBinding, _alive: tuple[Array, ...]) -> None:
    session.run_with_iobinding(binding)


class OnnxRuntimeBackend:
    """Loads ONNX plans for one share of the processor."""

    name = "onnxruntime"

    def __init__(self, threads: int) -> None:
        self._options = session_options()
        self._options.intra_op_num_threads = threads
        self._options.inter_op_num_threads = 1
        self._options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        self._options.log_severity_level = 3
        # A pool that spins takes its core from the next unit's pool, and from whoever reads and
        # writes the video (measured: docs/decisions.md).
        self._options.add_session_config_entry("session.intra_op.allow_spinning", "0")

    def load(self, directory: Path, plan: Plan) -> Engine:
        return OnnxRuntimeEngine(opened(directory / plan.file, self._options), plan.file)


_REFUSALS = (
    RuntimeError,
    ValueError,
    state.Fail,
    state.InvalidArgument,
    state.InvalidGraph,
    state.InvalidProtobuf,
    state.NoModel,
    state.NoSuchFile,
    state.NotImplemented,
    state.RuntimeException,
)
"""How ONNX Runtime says no: its own errors have no base in common but Exception."""


def opened(path: Path, options: ort.SessionOptions) -> ort.InferenceSession:
    """A plan on the processor. Raises EngineMismatch for one that is refused, such as one of
    another version of the exporter, with operators that the extension does not have.
    """
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except _REFUSALS as error:
        reason = str(error).partition("\n")[0]
        raise EngineMismatch(
            f"{path}: ONNX Runtime {ort.__version__} refuses it ({reason}); {mending(path.parent)}"
        ) from error


def session_options() -> ort.SessionOptions:
    """Options of a session that knows the operators of our domain."""
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(ops.extension()))
    return options


def library_version() -> str:
    """Version of the library that would run the engines."""
    return f"onnxruntime {ort.__version__}"
