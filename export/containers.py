"""Containers of tensors: safetensors, and the zipped and the old pickles of torch, told by their
first bytes. Runs no code from a file.

Tensors are mapped from the file, read-only and shared: a file may be larger than the memory.
"""

from __future__ import annotations

import json
import mmap
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from rt.errors import CheckpointError

_PICKLE = b"\x80"
_DAMAGE = (
    SafetensorError,
    pickle.UnpicklingError,
    struct.error,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
)
"""What the readers of the formats raise for a file that is cut, corrupt or holds code."""
_MEND = "expected safetensors or a pickle of tensors: fetch it again, or name another file"
_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def open_file(path: Path) -> object:
    """The content of a file: tensors, or what its pickle holds them in. Raises CheckpointError."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
        if start[8:] == b"{":
            return _safetensors(path)
        zipped = zipfile.is_zipfile(path)
        if not zipped and not start.startswith(_PICKLE):
            raise CheckpointError(f"{path}: truncated or not a weights file; {_MEND}")
        with warnings.catch_warnings():  # about the age of a pickle
            warnings.simplefilter("ignore", UserWarning)
            return _zip(path) if zipped else _pickle(path)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None
    except _DAMAGE as error:
        said = str(error)
        if code := re.search(r"Unsupported (?:global|class): GLOBAL (\S+)", said):
            raise CheckpointError(f"{path}: holds more than tensors, refused ({code[1]})") from None
        if isinstance(error, pickle.UnpicklingError):
            said = "its pickle does not hold tensors alone"  # torch's words advise to run it
        detail = said.splitlines()[0] if said else type(error).__name__
        raise CheckpointError(
            f"{path}: truncated or not a weights file ({detail}); {_MEND}"
        ) from None


def header_of(path: Path) -> dict[str, Any]:
    """The header of a safetensors file, which the library has checked."""
    with safe_open(path, framework="np"):
        pass
    with path.open("rb") as file:
        header: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return header


def _safetensors(path: Path) -> dict[str, Tensor]:
    header = header_of(path)
    header.pop("__metadata__", None)
    with path.open("rb") as file:
        data = 8 + int.from_bytes(file.read(8), "little")
        view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    state = {}
    for name, said in header.items():
        start, stop = said["data_offsets"]
        seen = _seen(view, data + start, stop - start)
        state[name] = seen.view(_TYPES[said["dtype"]]).view(said["shape"])
    return state


def _zip(path: Path) -> object:
    """A pickle whose tensors are read without their values, which are then seen in the file.

    torch's own mapping is private: the kernel counts it as memory, and refuses a file that is
    larger than what the machine has.
    """
    with FakeTensorMode():
        content = _pickle(path)
    with path.open("rb") as file:
        view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    storages: dict[int, Tensor] = {}

    def real(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: real(entry) for name, entry in value.items()}
        if not isinstance(value, Tensor):
            return value
        storage = value.untyped_storage()
        at = storage._checkpoint_offset
        assert at is not None
        if at not in storages:
            storages[at] = _seen(view, at, storage.nbytes())
        whole = storages[at].view(value.dtype)
        return whole.as_strided(value.shape, value.stride(), value.storage_offset())

    return real(content)


def _pickle(path: Path) -> object:
    with path.open("rb") as file:  # of a path torch would believe the suffix
        content: object = torch.load(file, "cpu", weights_only=True)
    return content


def _seen(view: mmap.mmap, offset: int, length: int) -> Tensor:
    """Bytes of a mapped file; nothing here writes to them."""
    if length == 0:
        return torch.empty(0, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about bytes that cannot be written
        return torch.frombuffer(view, dtype=torch.uint8, count=length, offset=offset)
