"""A model small enough that a test can build an engine of it, and the builder that tests share.

Exports of equal units are remembered for the whole test session: another variant of the engine
costs only the graphs that differ.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from moving import SIZE
from torch.onnx._internal.exporter._registration import ONNXRegistry

from export import onnx as graphs
from export import plans
from export.build import build_engines
from export.models.presets import (
    DitConfig,
    ModelConfig,
    Sampling,
    TaehvConfig,
    TextConfig,
    VaeConfig,
)
from export.options import Options

_DIT = DitConfig(width=32, ffn=64, heads=2, blocks=2, text_length=8, text_width=16, head_dim=16)
_TEXT = TextConfig(width=16, ffn=32, heads=1, head_dim=16, blocks=1, vocabulary=1024)
_TAEHV = TaehvConfig(
    encoder_widths=(8, 8, 8),
    encoder_blocks=(1, 1, 1),
    encoder_time=(2, 2, 1),
    encoder_stride=(1, 2, 2),
    decoder_widths=(8, 8, 8, 8),
    decoder_blocks=(1, 1, 1),
    decoder_time=(1, 2, 2),
    decoder_scale=(2, 2, 1),
    patch=2,
)

MICRO = ModelConfig("micro", _DIT, _TAEHV, _TEXT, Sampling())
"""TAEHV, DiT of two blocks, text encoder of one."""
MICRO_WAN = ModelConfig("micro-wan", _DIT, VaeConfig(width=8, residual_blocks=1), _TEXT, Sampling())
"""The same with a Wan VAE."""

exports: dict[object, graphs.Graph] = {}


def micro_options(out: Path, **changes: Any) -> Options:
    """What to build below `out`; any field of `Options` may be changed."""
    given = {"config": MICRO, "height": SIZE, "width": SIZE, "out": out / "engines", **changes}
    return Options(**({"name": given["config"].name} | given))


def build_micro(out: Path, **changes: Any) -> Path:
    """Build and return the engine directory."""
    with remembered_exports():
        return build_engines(micro_options(out, **changes)).directory


@contextmanager
def remembered_exports() -> Iterator[None]:
    """Make `export_graph` answer from memory when it is asked for the same unit again."""
    export = graphs.export_graph

    def remembered(module: Any, arguments: Any, inputs: Any, outputs: Any, **rest: Any) -> Any:
        weights = tuple((name, tuple(t.shape)) for name, t in module.state_dict().items())
        shapes = tuple(tuple(tensor.shape) for tensor in arguments)
        facts = (type(module).__name__, getattr(module, "phase", None), weights, shapes)
        key = (*facts, tuple(inputs), tuple(outputs), repr(rest))
        if key not in exports:
            exports[key] = export(module, arguments, inputs, outputs, **rest)
        return exports[key]

    # The exporter parses its whole library again for every graph, which is most of its time.
    library = patch.object(ONNXRegistry, "from_torchlib", staticmethod(_from_torchlib))
    here, there = (patch.object(module, "export_graph", remembered) for module in (graphs, plans))
    with library, here, there:
        yield


_read_torchlib = ONNXRegistry.from_torchlib


@functools.cache
def _from_torchlib(*arguments: Any, **named: Any) -> ONNXRegistry:
    return _read_torchlib(*arguments, **named)
