"""The weights file of an engine: every tensor of every unit once, in one safetensors file.

Plans point into it by offset, so the two phases of a unit share what they have in common, and a
tensor that loses nothing by it is stored as float16.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.onnx import Stored
from export.staging import write_whole
from export.units import Chain

FILE_NAME = "weights.safetensors"
_SHORT = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3"}
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1}
_ALIGNMENT = 64


def write(chain: Chain, directory: Path) -> dict[tuple[str, str], dict[str, Stored]]:
    """Write the weights of all units, unless the file is there.

    Returns where each lies, by (unit, phase) and name in the module. A tensor is stored as float16
    if that is exact in every unit of the same graph, so that these stay one graph.
    """
    half = _exact_in_half(chain)
    names: dict[str, str] = {}
    tensors: dict[str, Tensor] = {}
    placed: dict[tuple[str, str], dict[str, str]] = {}
    for unit in chain.units:
        for phase, spec in unit.phases.items():
            here = placed[unit.name, phase] = {}
            for name, tensor in spec.module.state_dict().items():
                kept = tensor.half() if (unit.graph, name) in half else tensor
                digest = hashlib.sha256(content(kept)).hexdigest()
                fact = f"{kept.dtype} {tuple(kept.shape)} {digest}"
                here[name] = names.setdefault(fact, f"{unit.name}.{name}")
                tensors.setdefault(here[name], kept)
    header, places = layout({name: (_dtype(t), tuple(t.shape)) for name, t in tensors.items()})
    if not (directory / FILE_NAME).is_file():
        write_whole(directory / FILE_NAME, (header, *(content(tensors[name]) for name in places)))
    return {
        place: {name: places[stored] for name, stored in found.items()}
        for place, found in placed.items()
    }


def read(directory: Path, where: Stored) -> Tensor:
    """One tensor, as float32."""
    path = directory / where.file
    count = where.length // np.dtype(where.dtype).itemsize
    data = np.fromfile(path, where.dtype, count, offset=where.offset)
    return torch.from_numpy(data.astype(np.float32).reshape(where.shape))


def _exact_in_half(chain: Chain) -> set[tuple[str, str]]:
    """(graph, weight) pairs whose every value in every unit is a float16."""
    exact: dict[tuple[str, str], bool] = {}
    for unit in chain.units:
        for spec in unit.phases.values():
            for name, tensor in spec.module.state_dict().items():
                place = unit.graph, name
                exact[place] = exact.get(place, True) and torch.equal(tensor.half().float(), tensor)
    return {place for place, lossless in exact.items() if lossless}


def layout(shapes: Mapping[str, tuple[str, tuple[int, ...]]]) -> tuple[bytes, dict[str, Stored]]:
    """Header of the file and the place of each tensor, of its type and shape: float32 before the
    narrower types, all aligned. The tensors follow in the order of the result.
    """
    header: dict[str, object] = {}
    spans: dict[str, Stored] = {}
    end = 0
    for name in sorted(shapes, key=lambda name: -_BYTES[shapes[name][0]]):
        dtype, shape = shapes[name]
        start, end = end, end + math.prod(shape) * _BYTES[dtype]
        header[name] = {"dtype": _SHORT[dtype], "shape": shape, "data_offsets": (start, end)}
        spans[name] = Stored(FILE_NAME, start, end - start, dtype, shape)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    data = 8 + len(text)
    moved = {
        name: Stored(FILE_NAME, data + s.offset, s.length, s.dtype, s.shape)
        for name, s in spans.items()
    }
    return len(text).to_bytes(8, "little") + text, moved


def content(tensor: Tensor) -> memoryview:
    """The bytes of a tensor."""
    whole = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    array: NDArray[np.uint8] = whole.numpy()
    return array.data


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
