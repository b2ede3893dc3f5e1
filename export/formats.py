"""Formats of weights files: wrappers of training code and naming schemes, told by content.

Reads every format in circulation into tensors under the original names; whether they fit a model is
the business of `export.checkpoints`. Tensors stay memory-mapped in their stored type.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Size, Tensor, nn

from export.containers import open_file
from export.models.vae import diffusers_to_original
from rt.errors import CheckpointError

Part = Literal["dit", "vae", "taehv", "text"]
State = dict[str, Tensor]
"""Tensors by name."""

DIT_FILES = "diffusion_pytorch_model*.safetensors"
SHARDS = (DIT_FILES, "model*.safetensors")
"""Names of the files of a folder that is one checkpoint: of diffusers and Wan, of transformers."""
TEXT_FILES = "models_t5_umt5*"
VAE_FILE = "Wan2.1_VAE.pth"
TAEHV_FILE = "taew2_1.pth"
TOKENIZER_FILE = "google/umt5-xxl/tokenizer.json"
CONFIG_FILE = "config.json"
STYLES_FILE = "styles.json"
"""Our own: the names of the only styles that a small model knows, as a JSON list."""

_WRAPPERS = ("generator", "generator_ema", "generator_lora", "state_dict")
"""Under what training code stores the weights, in order of preference; may be nested."""
_PREFIXES = re.compile(r"_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.|_orig_mod\.|^model\.")
_NAMED = 4
"""How many names a message spells out before it counts the rest."""

_DIT_NAMES = {
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
}
_DIT_BLOCK_NAMES = {
    "modulation": "scale_shift_table",
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    **{
        f"{ours}.{mine}": f"{theirs}.{other}"
        for ours, theirs in (("self_attn", "attn1"), ("cross_attn", "attn2"))
        for mine, other in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0"))
    },
    **{
        f"{ours}.{norm}": f"{theirs}.{norm}"
        for ours, theirs in (("self_attn", "attn1"), ("cross_attn", "attn2"))
        for norm in ("norm_q", "norm_k")
    },
}
"""Original name -> diffusers name, of a module or parameter; the second within `blocks.N.`."""

_TEXT_BLOCK_NAMES = {
    **{f"attn.{name}": f"layer.0.SelfAttention.{name}" for name in "qkvo"},
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm1": "layer.0.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
    "norm2": "layer.1.layer_norm",
}
"""Original name -> transformers name, within `blocks.N.` and `encoder.block.N.`."""


def dit_from_diffusers(name: str) -> str:
    """The original name of a tensor of diffusers' `WanTransformer3DModel`; others keep theirs."""
    block, rest = block_of(name, "blocks")
    if block is None:
        return _renamed(name, _DIT_NAMES)
    return f"blocks.{block}.{_renamed(rest, _DIT_BLOCK_NAMES)}"


def text_from_transformers(name: str) -> str:
    """The original name of a tensor of transformers' `UMT5EncoderModel`; others keep theirs."""
    block, rest = block_of(name, "encoder.block")
    if block is None:
        known = {"token_embedding": "shared", "norm": "encoder.final_layer_norm"}
        return _renamed(name, known)
    return f"blocks.{block}.{_renamed(rest, _TEXT_BLOCK_NAMES)}"


@dataclass(frozen=True, slots=True)
class Family:
    """A naming scheme: which part of the model it holds, the names that give it away, its map."""

    name: str
    part: Part
    marks: tuple[str, ...]
    rename: Callable[[Mapping[str, Tensor]], State]


def _as_is(state: Mapping[str, Tensor]) -> State:
    return dict(state)


def _by_name(rename: Callable[[str], str]) -> Callable[[Mapping[str, Tensor]], State]:
    return lambda state: {rename(name): tensor for name, tensor in state.items()}


def _text_of_transformers(state: Mapping[str, Tensor]) -> State:
    # the tied embedding may be stored under its second name as well
    kept = {name: t for name, t in state.items() if name != "encoder.embed_tokens.weight"}
    return _by_name(text_from_transformers)(kept)


FAMILIES = (
    Family("Wan DiT", "dit", ("patch_embedding.weight", "head.modulation"), _as_is),
    Family(
        "Wan DiT (diffusers)",
        "dit",
        ("patch_embedding.weight", "condition_embedder.time_proj.weight"),
        _by_name(dit_from_diffusers),
    ),
    Family("Wan VAE", "vae", ("encoder.conv1.weight", "conv2.weight"), _as_is),
    Family(
        "Wan VAE (diffusers)",
        "vae",
        ("encoder.conv_in.weight", "post_quant_conv.weight"),
        diffusers_to_original,
    ),
    Family("TAEHV", "taehv", ("encoder.0.weight", "decoder.1.weight"), _as_is),
    Family(
        "UMT5",
        "text",
        ("token_embedding.weight", "blocks.0.pos_embedding.embedding.weight"),
        _as_is,
    ),
    Family(
        "UMT5 (transformers)",
        "text",
        ("shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight"),
        _text_of_transformers,
    ),
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a file or folder of weights holds: its family and its tensors under original names."""

    path: Path
    family: Family
    state: State


def read(path: Path) -> Checkpoint:
    """Open a file, or a folder of safetensors shards, and recognise it.

    Raises CheckpointError for what cannot be read, is not only tensors, or is of no known family.
    """
    state = tensors_of(path)
    for family in FAMILIES:
        if state.keys() >= set(family.marks):
            return Checkpoint(path, family, family.rename(state))
    likely = max(FAMILIES, key=lambda family: len(state.keys() & set(family.marks)))
    if (missing := set(likely.marks) - state.keys()) != set(likely.marks):
        raise CheckpointError(f"{path}: {likely.name}, {len(missing)} missing ({listed(missing)})")
    names = ", ".join(family.name for family in FAMILIES)
    raise CheckpointError(f"{path}: holds {len(state)} tensors ({listed(state)}), none of: {names}")


def tensors_of(path: Path) -> State:
    """The tensors of a file, or of all shards of a folder, as they are named there but for the
    wrappers of training code. Raises CheckpointError.
    """
    state: State = {}
    for file in files_of(path):
        tensors = _unwrapped(file, open_file(file))
        if state.keys() & tensors.keys():
            raise CheckpointError(f"{file}: repeats {listed(state.keys() & tensors.keys())}")
        state |= tensors
    return state


def files_of(folder: Path) -> list[Path]:
    """The files of a folder that is one checkpoint, none of which is absent; a file is its own."""
    if not folder.is_dir():
        return [folder]
    files = next((found for name in SHARDS if (found := sorted(folder.glob(name)))), [])
    if not files:
        raise CheckpointError(f"{folder}: no {' or '.join(SHARDS)} in this folder")
    for file in files:
        if numbered := re.fullmatch(r"(.+-)\d+(-of-(\d+)\.safetensors)", file.name):
            for number in range(1, int(numbered[3]) + 1):
                shard = f"{numbered[1]}{number:05}{numbered[2]}"
                if not (folder / shard).is_file():
                    raise CheckpointError(f"{folder}: shard {shard} is missing")
    return files


def tensor_shapes(module: nn.Module) -> dict[str, Size]:
    """Every tensor that a module keeps in a file."""
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def _unwrapped(path: Path, content: object) -> State:
    """The tensors below the wrappers of training code, without the prefixes of wrapping modules."""
    while isinstance(content, Mapping):
        inner = [w for w in _WRAPPERS if isinstance(content.get(w), Mapping)]
        if not inner:
            break
        content = content[inner[0]]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path}: expected tensors by name, got {type(content).__name__}")
    if odd := [str(name) for name, value in content.items() if not isinstance(value, Tensor)]:
        raise CheckpointError(f"{path}: {len(odd)} entries are not tensors ({listed(odd)})")
    state = {_PREFIXES.sub("", str(name)): tensor for name, tensor in content.items()}
    if len(state) != len(content):
        raise CheckpointError(f"{path}: holds a tensor twice, with and without a prefix")
    return state


def block_of(name: str, root: str) -> tuple[str | None, str]:
    """("3", rest) of a name `root.3.rest`, else (None, name)."""
    match = re.match(rf"{re.escape(root)}\.(\d+)\.", name)
    return (match[1], name[match.end() :]) if match else (None, name)


def _renamed(name: str, originals: Mapping[str, str]) -> str:
    """`name` with the leading value of `originals` that it starts with replaced by its key."""
    for original, other in originals.items():
        if name == other or name.startswith(other + "."):
            return original + name[len(other) :]
    return name


def listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    rest = len(ordered) - _NAMED
    return ", ".join(ordered[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
