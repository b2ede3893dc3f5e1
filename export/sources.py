"""Where a build takes its weights from, without holding them: modules without storage, and one
tensor at a time out of the mapped files of a checkpoint.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from export.models.dit import Dit, DitIn
from export.models.presets import ModelConfig
from export.models.text import TextEncoder, relative_buckets
from export.units import Chain, UnitSpec

Module = TypeVar("Module", bound=nn.Module)
_PAGEOUT = 21
"""Advice to the kernel (Linux 5.4): these pages will not be needed soon. Changes no content."""


Read = Callable[[UnitSpec, str, str], Tensor]
"""(unit, phase, name in the module) -> the weight, as it is stored; mapped, not held."""


Named = Callable[[str, torch.Size], Tensor]
"""(original name, shape) -> a weight of a DiT or a text encoder."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A chain whose modules may be without storage, and the way to each weight."""

    chain: Chain
    read: Read


def from_modules(chain: Chain) -> Opened:
    """The weights that the modules of a chain hold themselves."""
    return Opened(chain, _own)


def from_files(chain: Chain, dit: Named, text: Named) -> Opened:
    """DiT and text encoder from tensors by their original names, given name and shape; the VAE's
    from itself.
    """

    def read(unit: UnitSpec, phase: str, name: str) -> Tensor:
        own = _own(unit, phase, name)
        if unit.kind in ("encode", "decode"):
            return own
        if unit.kind == "text":
            return text(name, own.shape)
        in_block = unit.kind in ("block", "prompt_kv")
        return dit(f"blocks.{unit.index}.{name}" if in_block else name, own.shape)

    return Opened(chain, read)


def _own(unit: UnitSpec, phase: str, name: str) -> Tensor:
    tensor: Tensor = unit.phases[phase].module.state_dict()[name]
    return tensor


def release(tensor: Tensor) -> None:
    """The memory that maps a tensor from its file may go: it has been read."""
    start = tensor.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    length = tensor.data_ptr() + tensor.numel() * tensor.element_size() - start
    _libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), _PAGEOUT)


_libc = ctypes.CDLL(None)


def hollow_dit(config: ModelConfig, latent_height: int, latent_width: int) -> Dit:
    """A DiT whose blocks and large layers take no memory: for its graphs, not for its values."""
    with torch.device("meta"):
        dit = Dit(config.dit, latent_height, latent_width)
    dit.dit_in = DitIn(config.dit, latent_height, latent_width)  # has tables of its own
    return _hollow(dit)


def hollow_text(config: ModelConfig) -> TextEncoder:
    """The same for a text encoder."""
    length = config.dit.text_length
    with torch.device("meta"):
        text = TextEncoder(config.text, length)
    text.buckets = relative_buckets(length, config.text.buckets, config.text.max_distance)
    return _hollow(text)


def _hollow(module: Module) -> Module:
    """Give parameters on the meta device a storage of one element, seen at every place."""
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None and parameter.is_meta:
                seen = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
                part._parameters[name] = nn.Parameter(seen, requires_grad=False)
    return module
