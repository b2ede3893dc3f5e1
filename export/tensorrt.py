"""Graph -> engine, by TensorRT or TensorRT for RTX: lowering, checks, profiles, one build.

TensorRT for RTX builds ahead of time without a GPU; TensorRT builds on the GPU that runs the
engine. A graph that would run in another way than it was written is refused: an input that nothing
reads, attention that is not one kernel, a ring that is not updated in place.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
from onnx import TensorProto, helper

from export.onnx import DOMAIN, OPSET, PREFIX, Graph
from rt.backends.tensorrt import library
from rt.errors import ConfigError, Error

_TRT = "trt"
"""Any domain serves: the parser knows its own operators by name."""
_WORKSPACE = 8 << 30
_FIRST = {"bf16": 8.0, "fp8": 8.9}
"""Precision -> the first compute capability that has arithmetic of it."""
_TABLES = 1 << 20
"""Constants that a small graph may have: angles, indices."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What the network of a unit must have: rings (input, output) updated in place, and how many
    attentions are one kernel each; None where attention may be several.
    """

    aliases: tuple[tuple[str, str], ...] = ()
    fused: int | None = None


@dataclass(frozen=True, slots=True)
class Engine:
    """A built engine, and what building it took."""

    data: Any
    seconds: float
    layers: int


def lower(graph: Graph) -> Graph:
    """`graph` with TensorRT's own operators for rings and attention: every attention that is left
    in it must become one kernel, and a build without one fails.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type == "RingWrite" and node.domain == DOMAIN:
            nodes += _ring_write(node)
        elif node.op_type in ("RingAttention", "Attention"):
            nodes.append(_one_kernel(node))
        elif node.domain == DOMAIN:
            raise Error(f"no lowering for operator {DOMAIN}::{node.op_type}")
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", OPSET))
    model.opset_import.append(helper.make_opsetid(_TRT, 1))
    return Graph(model, graph.weights)


def check_graph(model: onnx.ModelProto, expected: Expected) -> None:
    """Refuse what a parser would pass over in silence. Raises Error that names it."""
    read = {value.name for value in model.graph.output}
    for node in reversed(model.graph.node):  # a graph is sorted: each node after what it reads
        if read.intersection(node.output):
            read.update(node.input)
    inputs = {value.name for value in model.graph.input}
    if unused := sorted(inputs - read):
        raise Error(f"unused input {unused[0]!r} in a graph for TensorRT")
    inside, apart = sum(t.ByteSize() for t in model.graph.initializer), weight_bytes(model)
    if inside > max(_TABLES, apart // 20):
        raise Error(f"{inside} bytes of constants beside {apart} of weights; make them inputs")
    writes = [n for n in model.graph.node if n.op_type == "TRT_KVCacheUpdate"]
    aliases = {(node.input[0], node.output[0]) for node in writes}
    if aliases != set(expected.aliases):
        raise Error(f"rings {sorted(aliases)}, declared are {sorted(expected.aliases)}")
    if expected.fused is None:
        return
    whole = [n for n in model.graph.node if n.op_type == "TRT_Attention" and not _decomposable(n)]
    if len(whole) != expected.fused or any(n.op_type == "Softmax" for n in model.graph.node):
        raise Error(f"{len(whole)} attentions are one kernel, expected {expected.fused}, no other")


class Builder:
    """One library, some GPUs, one timing cache, one log; builds engine after engine."""

    def __init__(self, flavour: str, capabilities: Sequence[str], timing: Path, log: Path) -> None:
        self._trt = library(flavour)
        self._flavour = flavour
        self._capabilities = tuple(capabilities)
        self._timing = timing
        self._log = log

    def build(self, graph: Graph, rows: int, expected: Expected) -> Engine:
        """`rows` > 0: one profile for each batch from 1 to `rows`. Raises Error with TensorRT's
        own words where it refuses.
        """
        check_graph(graph.model, expected)
        trt = self._trt
        clock, logger = time.perf_counter(), _logger(trt)
        try:
            builder = trt.Builder(logger)
            flag = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
            network = builder.create_network(flag)
            self._parse(network, logger, graph)
            check_network(network, expected)
            config = self._config(builder, network, rows)
            data = builder.build_serialized_network(network, config)
        finally:
            self._write_log(logger)
        if data is None:
            raise Error(
                f"{self._flavour} builds no engine for {', '.join(self._capabilities)}: "
                f"{_reason(logger)}; leave a GPU out of --compute-capability, or ask for another "
                f"--precision (all it said is in {self._log})"
            )
        if ignored := [text for _, text in logger.said if "nused Input" in text]:
            raise Error(f"{self._flavour} passes over an input: {ignored[0]}")
        if self._flavour == "tensorrt":
            self._timing.write_bytes(config.get_timing_cache().serialize())
        return Engine(data, time.perf_counter() - clock, network.num_layers)

    def _parse(self, network: Any, logger: Any, graph: Graph) -> None:
        parser = self._trt.OnnxParser(network, logger)
        if not parser.parse(graph.model.SerializeToString()):
            said = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
            raise Error(f"{self._flavour} does not read the graph: {said.splitlines()[0]}")

    def _config(self, builder: Any, network: Any, rows: int) -> Any:
        trt = self._trt
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, _WORKSPACE)
        if known := _capabilities(trt):
            config.num_compute_capabilities = len(self._capabilities)
            for index, name in enumerate(self._capabilities):
                config.set_compute_capability(known[name], index)
        if self._flavour == "tensorrt":  # the other says of itself that it uses none
            cache = self._timing.read_bytes() if self._timing.is_file() else b""
            config.set_timing_cache(config.create_timing_cache(cache), ignore_mismatch=False)
        inputs = [network.get_input(index) for index in range(network.num_inputs)]
        for batch in range(1, rows + 1):
            profile = builder.create_optimization_profile()
            for tensor in inputs:
                if -1 in (shape := tuple(tensor.shape)):
                    shape = tuple(batch if size == -1 else size for size in shape)
                    profile.set_shape(tensor.name, shape, shape, shape)
            config.add_optimization_profile(profile)
        return config

    def _write_log(self, logger: Any) -> None:
        with self._log.open("a") as file:
            file.writelines(f"{severity}: {text}\n" for severity, text in logger.said)


def check_network(network: Any, expected: Expected) -> None:
    """The same promises, in what the parser made of the graph. Raises Error."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    kinds = Counter(layer.type.name for layer in layers)
    updates = [layer for layer in layers if layer.type.name == "KV_CACHE_UPDATE"]
    aliases = {(layer.get_input(0).name, layer.get_output(0).name) for layer in updates}
    if aliases != set(expected.aliases):
        raise Error(f"rings {sorted(aliases)}, declared are {sorted(expected.aliases)}")
    if expected.fused is not None and kinds["ATTENTION_INPUT"] != expected.fused:
        raise Error(f"{kinds['ATTENTION_INPUT']} attentions, expected {expected.fused}")
    if expected.fused is not None and kinds["SOFTMAX"]:
        raise Error(f"{kinds['SOFTMAX']} attentions are written out, expected one kernel for each")


def drop_ignored(graph: Graph, names: Collection[str]) -> Graph:
    """`graph` without those inputs among `names` that no node reads."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    read = {name for node in model.graph.node for name in node.input}
    kept = [v for v in model.graph.input if v.name in read or v.name not in names]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return Graph(model, graph.weights)


def weight_bytes(model: onnx.ModelProto) -> int:
    """Bytes of the inputs that are weights."""
    return sum(
        math.prod(d.dim_value for d in v.type.tensor_type.shape.dim)
        * helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type).itemsize
        for v in model.graph.input
        if v.name.startswith(PREFIX)
    )


def check_capabilities(flavour: str, names: Sequence[str], precision: str) -> None:
    """Raise ConfigError for a GPU that the library does not build for, or that has no arithmetic of
    the precision; or without the library.
    """
    known = _capabilities(library(flavour))
    for name in names:
        if known and name not in known:
            said = f"got {name!r}, expected of {sorted(known, key=float)} for {flavour}"
            raise ConfigError(f"compute-capability: {said}")
        if float(name) < (first := _FIRST.get(precision, 0.0)):
            raise ConfigError(
                f"compute-capability: got {name!r} with precision {precision}, which GPUs have "
                f"from {first} on; leave it out, or use --precision fp16"
            )


def _capabilities(trt: ModuleType) -> dict[str, Any]:
    """The library's own values by "8.9"; none where it builds for the GPU that is present."""
    if not hasattr(trt, "ComputeCapability"):
        return {}
    members = trt.ComputeCapability.__members__.items()
    return {f"{k[2:-1]}.{k[-1]}": value for k, value in members if k.startswith("SM")}


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """The most memory of this process while the body ran, in bytes, in a list of one."""
    peak = [0]
    Path("/proc/self/clear_refs").write_text("5")  # the mark of the most memory starts again
    try:
        yield peak
    finally:
        status = Path("/proc/self/status").read_text()
        peak[0] = next(int(s.split()[1]) for s in status.splitlines() if s.startswith("VmHWM"))
        peak[0] *= 1024


def _ring_write(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    index = f"{node.output[0]}.index"
    cast = helper.make_node("Cast", [node.input[2]], [index], to=TensorProto.INT32)
    inputs = [node.input[0], node.input[1], index]
    return [cast, helper.make_node("TRT_KVCacheUpdate", inputs, node.output, domain=_TRT, axis=-2)]


def _one_kernel(node: onnx.NodeProto) -> onnx.NodeProto:
    scale = next((a.f for a in node.attribute if a.name == "scale"), 1.0)
    if scale != 1.0 or len(node.input) > 4:
        raise Error(f"attention {node.output[0]} is scaled by {scale}; scale its query instead")
    return helper.make_node(
        "TRT_Attention", node.input, node.output, domain=_TRT, TRT_decomposable=0
    )


def _decomposable(node: onnx.NodeProto) -> bool:
    return any(a.name == "TRT_decomposable" and a.i for a in node.attribute)


def _reason(logger: Any) -> str:
    errors = [text for severity, text in logger.said if severity in ("ERROR", "INTERNAL_ERROR")]
    return errors[-1].splitlines()[0] if errors else "it gives no reason"


def _logger(trt: ModuleType) -> Any:
    """A logger of the library's own kind that keeps what it is told, and prints nothing."""

    class Kept(trt.ILogger):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.said: list[tuple[str, str]] = []

        def log(self, severity: Any, text: str) -> None:
            if severity <= trt.ILogger.INFO:
                self.said.append((severity.name, text))

    return Kept()
