"""LoRA files -> what they add to the weights of a DiT, merged one tensor at a time.

Reads the key formats in circulation (PEFT and diffusers, kohya, ComfyUI) and refuses every key that
it cannot place: what is not merged is never ignored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from export import formats
from export.containers import header_of
from export.formats import State, listed
from export.sources import release
from rt.errors import CheckpointError

ADAPTER_CONFIG = "adapter_config.json"
METADATA = "lora_adapter_metadata"
"""Under which diffusers keeps the same in the header of its file."""
_PREFIX = re.compile(r"^(base_model\.model|transformer|diffusion_model|model)\.")
_KOHYA = ("lora_unet_", "lora_transformer_")
_KEY = re.compile(
    r"(?P<module>.+?)\.(?:(?P<part>lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up)"
    r"(?:\.default)?\.weight|(?P<alone>alpha|diff|diff_b))$"
)
_PARTS = {
    **dict.fromkeys(("lora_A", "lora_down", "lora.down"), "down"),
    **dict.fromkeys(("lora_B", "lora_up", "lora.up"), "up"),
}


@dataclass(frozen=True, slots=True)
class Delta:
    """What one file adds to one weight: `scale` times the product of `factors`, up then down, or
    times the one that there is.
    """

    scale: float
    factors: tuple[Tensor, ...]

    def value(self, shape: torch.Size) -> Tensor:
        """float32, in the shape of the weight. Of a convolution the inner dimensions are joined."""
        product = self.factors[0].float()
        if len(self.factors) == 2:
            product = product.flatten(1) @ self.factors[1].float().flatten(1)
        return self.scale * product.reshape(shape)


class Merged(Mapping[str, Tensor]):
    """Weights with what LoRA files add to them, made when they are asked for and not kept (but for
    the last one, which a build reads twice). A merged weight is float32.
    """

    def __init__(self, state: Mapping[str, Tensor], added: Sequence[Mapping[str, Delta]]) -> None:
        self._state = state
        self._added = added
        self._last: tuple[str, Tensor] | None = None

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._state[name]
        deltas = [deltas[name] for deltas in self._added if name in deltas]
        if not deltas:
            return tensor
        if self._last is None or self._last[0] != name:
            merged = tensor.float() + sum(delta.value(tensor.shape) for delta in deltas)
            release(tensor)
            self._last = name, merged
        return self._last[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)


def merged(
    state: Mapping[str, Tensor], files: Sequence[tuple[Path, float]]
) -> Mapping[str, Tensor]:
    """`state`, weights of a DiT under the original names, with each file added by its weight.

    Raises CheckpointError for a file that does not fit them.
    """
    shapes = {name: tensor.shape for name, tensor in state.items()}
    return Merged(state, [read(path, weight, shapes) for path, weight in files]) if files else state


def files_of(path: Path) -> list[Path]:
    """The file, and what beside it decides how it is merged."""
    beside = path.with_name(ADAPTER_CONFIG)
    return [path, beside] if beside.is_file() else [path]


def is_lora(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of a LoRA file."""
    return any((key := _KEY.match(name)) and key["part"] for name in state)


def read(path: Path, weight: float, shapes: Mapping[str, torch.Size]) -> dict[str, Delta]:
    """What a file adds to the weights of `shapes`, by their names. Raises CheckpointError."""
    state = formats.tensors_of(path)
    parts, unknown = _placed(state, shapes)
    problems = [f"{len(unknown)} unexpected ({listed(unknown)})"] if unknown else []
    if broken := [name for name, tensor in state.items() if not _finite(tensor)]:
        problems.append(f"{len(broken)} NaN, infinite or no floats ({listed(broken)})")
    scale = _scale_beside(path)
    found: dict[str, Delta] = {}
    odd = []
    for target, held in parts.items():
        if fault := _fault(held, shapes[target]):
            odd.append(f"{target}: {fault}")
        elif "whole" in held:
            found[target] = Delta(weight, (held["whole"],))
        else:
            rank = held["down"].shape[0]
            own = float(held["alpha"]) / rank if "alpha" in held else scale
            found[target] = Delta(weight * own, (held["up"], held["down"]))
    if odd:
        problems.append(f"{len(odd)} do not fit ({listed(odd)})")
    if not found and not problems:
        problems.append("holds no LoRA")
    if problems:
        raise CheckpointError(f"{path}: {'; '.join(problems)}")
    return found


def _placed(
    state: State, shapes: Mapping[str, torch.Size]
) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """What each weight gets, as up, down and alpha or as a whole; and the keys without a place."""
    underscored = {
        "_".join(name.split(".")[:-1]): name.rpartition(".")[0]
        for name in shapes
        if name.endswith(".weight")
    }
    parts: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for name, tensor in state.items():
        key = _KEY.match(name)
        module = _module(key["module"], underscored) if key else ""
        target = f"{module}.bias" if key and key["alone"] == "diff_b" else f"{module}.weight"
        target = formats.dit_from_diffusers(target)
        part = (_PARTS.get(key["part"]) or key["alone"].replace("diff_b", "diff")) if key else ""
        part = part.replace("diff", "whole")
        if key is None or target not in shapes or part in parts.get(target, {}):
            unknown.append(name)
        else:
            parts.setdefault(target, {})[part] = tensor
    return parts, unknown


def _module(name: str, underscored: Mapping[str, str]) -> str:
    """The name of a module without the prefixes of the tool that wrote it."""
    for prefix in _KOHYA:
        if name.startswith(prefix):
            short = name.removeprefix(prefix)
            return underscored.get(short, short)
    while stripped := _PREFIX.match(name):
        name = name[stripped.end() :]
    return name


def _finite(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and bool(tensor.isfinite().all())


def _fault(held: Mapping[str, Tensor], shape: torch.Size) -> str | None:
    """Why the parts for one weight cannot be merged into it."""
    if "whole" in held:
        got = list(held["whole"].shape)
        return None if got == list(shape) and len(held) == 1 else f"difference {got}"
    if missing := {"up", "down"} - held.keys():
        return f"without {' and '.join(sorted(missing))}"
    up, down = (held[name].shape for name in ("up", "down"))
    flat = torch.Size((shape[0], shape[1:].numel()))
    if (
        len(up) < 2
        or len(down) < 2
        or (up[0], down[1:].numel()) != flat
        or up[1:].numel() != down[0]
    ):
        return f"up {list(up)}, down {list(down)}, expected for {list(shape)}"
    return None


def _scale_beside(path: Path) -> float:
    """alpha / rank of a file whose keys do not say it: from its header, from the configuration in
    its folder, or 1. Raises CheckpointError for what a merge cannot do.
    """
    file, said = path.with_name(ADAPTER_CONFIG), {}
    try:
        if path.suffix == ".safetensors":
            said = json.loads(header_of(path).get("__metadata__", {}).get(METADATA, "{}"))
        if not said and file.is_file():
            said = json.loads(file.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path}: its configuration is not JSON ({error})") from None
    said = {key.removeprefix("transformer."): value for key, value in said.items()}
    if bad := [key for key in ("use_dora", "alpha_pattern", "rank_pattern") if said.get(key)]:
        raise CheckpointError(f"{path}: {', '.join(bad)} cannot be merged, expected a plain LoRA")
    if not said.get("r") or "lora_alpha" not in said:
        return 1.0
    rank = float(said["r"])
    return float(said["lora_alpha"]) / (rank**0.5 if said.get("use_rslora") else rank)
