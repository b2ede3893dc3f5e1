"""Weights -> modules: finds the files of a model, checks them strictly and fills the modules.

Fills no gap and ignores no key: what is missing, unexpected, misshapen or not finite is a
`CheckpointError` that names it. What a file may look like is known to `export.formats`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from export import formats, lora, random_weights
from export.formats import Checkpoint, Part, State, listed
from export.layout import Files
from export.models import taehv, vae
from export.models.dit import Dit, checkpoint_shapes
from export.models.presets import DitConfig, ModelConfig, TaehvConfig, TextConfig, VaeConfig
from export.models.text import TextEncoder
from export.random_weights import make_tokenizer, write_random
from export.sources import Named, hollow_dit, hollow_text
from export.units import Parts
from rt.errors import CheckpointError

__all__ = [
    "check",
    "dimensions",
    "fill",
    "fill_dit",
    "load_dit",
    "load_parts",
    "load_taehv",
    "load_text",
    "load_vae",
    "make_tokenizer",
    "open_parts",
    "open_random",
    "write_random",
]

VAE_STRIDE = 8
TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""In which weights may be stored."""
Loras = Sequence[tuple[Path, float]]
"""Files and their weights, added in this order."""
HEAD_DIM, TEXT_LENGTH = 128, 512
"""Of every published Wan 2.1; a file of weights does not say, a config.json beside it may."""


def load_parts(
    config: ModelConfig,
    files: Files,
    height: int,
    width: int,
    *,
    fold_time: bool = True,
    loras: Loras = (),
) -> Parts:
    """The modules of `config` with their weights, for pictures of `height` x `width` pixels.

    The text encoder is optional. `fold_time`: as `WanVae`. Raises CheckpointError.
    """
    dit = Dit(config.dit, height // VAE_STRIDE, width // VAE_STRIDE)
    fill_dit(dit, lora.merged(load_dit(files.dit, config.dit)[0], loras))
    text = None
    if files.text is not None:
        text = TextEncoder(config.text, config.dit.text_length)
        fill(text, load_text(files.text, config.text))
    return Parts(dit, text, _autoencoder(config, files, fold_time))


def open_parts(
    config: ModelConfig,
    files: Files,
    height: int,
    width: int,
    *,
    fold_time: bool = True,
    loras: Loras = (),
) -> tuple[Parts, Named, Named]:
    """As `load_parts`, but the DiT and the text encoder are without values, which come beside them
    as mapped tensors by their original names.
    """
    dit = hollow_dit(config, height // VAE_STRIDE, width // VAE_STRIDE)
    state = lora.merged(load_dit(files.dit, config.dit)[0], loras)
    text, said = None, State()
    if files.text is not None:
        text, said = hollow_text(config), load_text(files.text, config.text)
    parts = Parts(dit, text, _autoencoder(config, files, fold_time))
    return parts, lambda name, _: state[name], lambda name, _: said[name]


def open_random(
    config: ModelConfig, seed: int, height: int, width: int, *, fold_time: bool, text: bool
) -> tuple[Parts, Named, Named]:
    """As `open_parts`, of seeded random weights that are made when they are asked for."""
    dit = hollow_dit(config, height // VAE_STRIDE, width // VAE_STRIDE)
    autoencoder: vae.WanVae | taehv.Taehv
    if isinstance(config.vae, VaeConfig):
        autoencoder = vae.WanVae(config.vae, fold_time)
        fill(autoencoder, random_weights.random_vae(config.vae, seed))
    else:
        autoencoder = taehv.Taehv(config.vae)
        fill(autoencoder, random_weights.random_taehv(config.vae, seed))
    return (
        Parts(dit, hollow_text(config) if text else None, autoencoder),
        lambda name, shape: random_weights.dit_tensor(name, shape, seed),
        lambda name, shape: random_weights.text_tensor(name, shape, seed, config.text),
    )


def _autoencoder(config: ModelConfig, files: Files, fold_time: bool) -> vae.WanVae | taehv.Taehv:
    if isinstance(config.vae, VaeConfig):
        autoencoder = vae.WanVae(config.vae, fold_time)
        fill(autoencoder, load_vae(_found(files, files.vae, formats.VAE_FILE), config.vae))
        return autoencoder
    small = taehv.Taehv(config.vae)
    fill(small, load_taehv(_found(files, files.taehv, formats.TAEHV_FILE), config.vae))
    return small


def _found(files: Files, path: Path | None, name: str) -> Path:
    if path is None:
        raise CheckpointError(
            f"{files.dit}: no {name} beside it; give the folder that has one with --base"
        )
    return path


def styles_of(files: Files) -> tuple[str, ...]:
    """The names of the styles that a checkpoint is limited to; none for a model that reads any
    text. Raises CheckpointError.
    """
    if files.styles is None:
        return ()
    try:
        found = json.loads(files.styles.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{files.styles}: {error}; expected a JSON list of names") from None
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise CheckpointError(f"{files.styles}: got {found!r}, expected a JSON list of names")
    return tuple(found)


def load_dit(path: Path, config: DitConfig | None = None) -> tuple[State, DitConfig]:
    """Weights of a DiT, every tensor of it and nothing else, and its dimensions.

    Without `config` the dimensions come from the tensors and a config.json beside them. `path` is a
    file or a folder of shards. Raises CheckpointError.
    """
    state = _read_part(path, "dit").state
    if config is None:
        config = dimensions(path, state)
    check(path, state, checkpoint_shapes(config))
    return state, config


def load_vae(path: Path, config: VaeConfig) -> State:
    """Weights of a Wan VAE under the original names. Raises CheckpointError."""
    state = _read_part(path, "vae").state
    with torch.device("meta"):
        check(path, state, formats.tensor_shapes(vae.WanVae(config)))
    return state


def load_taehv(path: Path, config: TaehvConfig) -> State:
    """Weights of a TAEHV as `Taehv` takes them. Raises CheckpointError."""
    with torch.device("meta"):
        model = taehv.Taehv(config)
    state = taehv.adapt_state_dict(_read_part(path, "taehv").state, model)
    check(path, state, formats.tensor_shapes(model))
    return state


def load_text(path: Path, config: TextConfig) -> State:
    """Weights of a UMT5 encoder under the original names. Raises CheckpointError."""
    state = _read_part(path, "text").state
    with torch.device("meta"):
        check(path, state, formats.tensor_shapes(TextEncoder(config, 1)))
    return state


def fill(module: nn.Module, state: Mapping[str, Tensor], prefix: str = "") -> None:
    """Copy the checked `state` into `module`, whose parameters lie below `prefix` in it.

    Raises CheckpointError for a tensor that is not finite.
    """
    own = {name: state[prefix + name] for name in module.state_dict()}
    broken = [prefix + name for name, tensor in own.items() if not tensor.isfinite().all()]
    if broken:
        raise CheckpointError(f"weights that are NaN or infinite: {listed(broken)}")
    module.load_state_dict(own, strict=True)


def fill_dit(dit: Dit, state: Mapping[str, Tensor]) -> None:
    """`fill` for every unit of a whole DiT."""
    for prefix, unit in dit.units():
        fill(unit, state, prefix)


def check(path: Path, state: Mapping[str, Tensor], expected: Mapping[str, Sequence[int]]) -> None:
    """Compare names, shapes and types. Raises one CheckpointError that names all that differs."""
    problems = []
    if missing := expected.keys() - state.keys():
        problems.append(f"{len(missing)} missing ({listed(missing)})")
    if unexpected := state.keys() - expected.keys():
        problems.append(f"{len(unexpected)} unexpected ({listed(unexpected)})")
    shared = [name for name in expected if name in state]
    misshapen = [
        f"{name}: got {list(state[name].shape)}, expected {list(expected[name])}"
        for name in shared
        if tuple(state[name].shape) != tuple(expected[name])
    ]
    if misshapen:
        problems.append(f"{len(misshapen)} misshapen ({listed(misshapen)})")
    if foreign := [name for name in shared if state[name].dtype not in TYPES]:
        types = ", ".join(sorted({str(state[n].dtype).removeprefix("torch.") for n in foreign}))
        problems.append(f"{len(foreign)} of type {types} and no wider float ({listed(foreign)})")
    if problems:
        raise CheckpointError(f"{path}: {'; '.join(problems)}")


def _read_part(path: Path, part: Part) -> Checkpoint:
    found = formats.read(path)
    if found.family.part != part:
        raise CheckpointError(f"{path}: is {found.family.name}, expected weights of the {part}")
    return found


def dimensions(path: Path, state: Mapping[str, Tensor]) -> DitConfig:
    """DitConfig of the tensors; heads and text length from config.json, or as published."""
    needed = (
        "patch_embedding.weight",
        "text_embedding.0.weight",
        "time_embedding.0.weight",
        "blocks.0.ffn.0.weight",
    )
    if missing := [name for name in needed if name not in state]:
        raise CheckpointError(f"{path}: {len(missing)} missing ({listed(missing)})")
    width, channels = state["patch_embedding.weight"].shape[:2]
    said = _config_beside(path)
    heads = said.get("num_heads", said.get("num_attention_heads", width // HEAD_DIM))
    found = {
        "dim": width,
        "ffn_dim": state["blocks.0.ffn.0.weight"].shape[0],
        "freq_dim": state["time_embedding.0.weight"].shape[1],
        "num_layers": 1 + max(int(formats.block_of(name, "blocks")[0] or 0) for name in state),
        "in_dim": channels,
    }
    for key, value in found.items():
        if said.get(key, value) != value:
            raise CheckpointError(
                f"{path}: {formats.CONFIG_FILE} says {key} = {said[key]}, the tensors say {value}"
            )
    if heads < 1 or width % heads:
        raise CheckpointError(f"{path}: {heads} heads do not divide a width of {width}")
    return DitConfig(
        width=width,
        ffn=found["ffn_dim"],
        heads=heads,
        blocks=found["num_layers"],
        text_length=said.get("text_len", TEXT_LENGTH),
        text_width=state["text_embedding.0.weight"].shape[1],
        head_dim=width // heads,
        latent_channels=channels,
        frequency_width=found["freq_dim"],
    )


def _config_beside(path: Path) -> dict[str, int]:
    """The whole numbers of a Wan config.json in the folder of the weights; {} without one."""
    file = (path if path.is_dir() else path.parent) / formats.CONFIG_FILE
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise CheckpointError(f"{file}: is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: expected an object, got {type(content).__name__}")
    return {key: value for key, value in content.items() if type(value) is int}
