"""Prompts -> files of embeddings, so that whoever streams needs no text encoder.

The UMT5 encoder (11 GB) is never in memory as a whole: its blocks are read one by one from the
mapped file, and of its table of tokens the rows that the prompt uses.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save
from tokenizers import Tokenizer
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from export import checkpoints, formats
from export.formats import State
from export.layout import Files
from export.models.presets import TextConfig
from export.models.text import EPS, TextBlock, relative_buckets
from export.sources import release
from export.staging import write_whole
from rt import manifest as records
from rt.devices import Device
from rt.errors import CheckpointError, ConfigError
from rt.prompt import EMBEDDINGS, PromptEncoder

Embeddings = NDArray[np.float32]
"""[tokens, E], without padding."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A prompt, its embeddings, and by what they were made."""

    prompt: str
    embeddings: Embeddings
    encoder: str
    tokenizer_sha256: str


def encode_with_weights(prompts: Sequence[str], files: Files) -> list[Encoded]:
    """With the text encoder and the tokenizer of a checkpoint, in float32.

    Raises CheckpointError where there is none, ConfigError for a prompt that is too long.
    """
    if files.text is None or files.tokenizer is None:
        raise CheckpointError(
            f"{files.dit}: no text encoder or no tokenizer beside it; give the folder with --base"
        )
    state = formats.read(files.text).state
    config = dimensions(files.text, state)
    checkpoints.load_text(files.text, config)
    tokenizer = Tokenizer.from_file(str(files.tokenizer))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    digest = records.sha256_of(files.tokenizer)
    name = f"{formats.read(files.text).family.name}, {config.blocks} x {config.width}"
    tokens = [tokenizer.encode(prompt).ids for prompt in prompts]
    for prompt, ids in zip(prompts, tokens, strict=True):
        if len(ids) > checkpoints.TEXT_LENGTH:
            raise ConfigError(
                f"prompt: {prompt[:40]!r} has {len(ids)} tokens, expected at most "
                f"{checkpoints.TEXT_LENGTH}"
            )
    return [
        Encoded(prompt, embeddings, name, digest)
        for prompt, embeddings in zip(prompts, _run(state, config, tokens), strict=True)
    ]


def encode_with_engine(prompts: Sequence[str], directory: Path) -> list[Encoded]:
    """With the unit `text` of an engine. Raises ConfigError for an engine without one."""
    manifest = records.read(directory)
    records.check_files(manifest, directory)
    encoder = PromptEncoder(manifest, directory, Device("cpu", 0, threads=2))
    found = []
    for prompt in prompts:
        whole, remarks = encoder.embed(prompt)
        if any("was cut" in remark for remark in remarks):
            raise ConfigError(f"prompt: {remarks[0]}")
        used = np.flatnonzero(whole[0].any(axis=1))
        trimmed = whole[0, : used[-1] + 1 if len(used) else 1].copy()
        digest = manifest.text.tokenizer_sha256 or ""
        found.append(Encoded(prompt, trimmed, f"{manifest.model}, unit text", digest))
    return found


def write(encoded: Encoded, path: Path) -> None:
    """The file that `rt` takes as a prompt: one tensor, and what it was made from."""
    about = {
        "prompt": encoded.prompt,
        "encoder": encoded.encoder,
        "tokenizer_sha256": encoded.tokenizer_sha256,
        "sha256": hashlib.sha256(encoded.embeddings.tobytes()).hexdigest(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, [save({EMBEDDINGS: encoded.embeddings}, about)])


def file_name(prompt: str) -> str:
    """A name that tells prompts apart, for people and for sure."""
    words = "-".join(re.findall(r"[a-z0-9]+", prompt.lower()))[:40]
    return f"{words or 'prompt'}-{hashlib.sha256(prompt.encode()).hexdigest()[:8]}.safetensors"


def dimensions(path: Path, state: State) -> TextConfig:
    """TextConfig of the tensors; the largest distance of a bucket is UMT5's own."""
    table, gate = "token_embedding.weight", "blocks.0.ffn.gate.0.weight"
    bias, query = "blocks.0.pos_embedding.embedding.weight", "blocks.0.attn.q.weight"
    if missing := {table, gate, bias, query} - state.keys():
        raise CheckpointError(f"{path}: {len(missing)} missing ({formats.listed(missing)})")
    vocabulary, width = state[table].shape
    buckets, heads = state[bias].shape
    return TextConfig(
        width=width,
        ffn=state[gate].shape[0],
        heads=heads,
        head_dim=state[query].shape[0] // heads,
        blocks=1 + max(int(formats.block_of(name, "blocks")[0] or 0) for name in state),
        vocabulary=vocabulary,
        buckets=buckets,
    )


@torch.inference_mode()
def _run(state: State, config: TextConfig, tokens: Sequence[Sequence[int]]) -> list[Embeddings]:
    """Every prompt at its own length through one block after another."""
    largest = max(max(ids, default=0) for ids in tokens)
    if largest >= config.vocabulary:
        raise CheckpointError(
            f"the tokenizer gives token {largest}, the text encoder has {config.vocabulary}; "
            "they belong to different models"
        )
    xs = [state["token_embedding.weight"][torch.tensor(ids)].float()[None] for ids in tokens]
    with torch.device("meta"):
        block = TextBlock(config)
    for index in range(config.blocks):
        prefix = f"blocks.{index}."
        weights = {name: _wide(state[prefix + name]) for name in block.state_dict()}
        for number, x in enumerate(xs):
            buckets = relative_buckets(x.shape[1], config.buckets, config.max_distance)
            xs[number] = functional_call(block, weights, (x, buckets, torch.zeros(())))
    norm = _wide(state["norm.weight"])
    found: list[Embeddings] = []
    for x in xs:
        embeddings = F.rms_norm(x, (config.width,), norm, EPS)[0]
        if not embeddings.isfinite().all():
            raise CheckpointError("the text encoder gives NaN or infinity: its weights are damaged")
        found.append(embeddings.numpy())
    return found


def _wide(tensor: Tensor) -> Tensor:
    """A mapped weight as float32, its file no longer in memory."""
    wide = tensor.to(torch.float32, copy=True)
    release(tensor)
    return wide
