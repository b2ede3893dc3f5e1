"""Seeded random weights and a small tokenizer, in the layout of the original Wan release.

For models that nobody has trained: what is written here is read back like any other checkpoint.
Values are exact in float16, so that a float16 store of them loses nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torch import Tensor

from export.formats import (
    CONFIG_FILE,
    TAEHV_FILE,
    TOKENIZER_FILE,
    VAE_FILE,
    State,
    tensor_shapes,
)
from export.models import taehv
from export.models.dit import checkpoint_shapes
from export.models.presets import DitConfig, ModelConfig, TaehvConfig, TextConfig, VaeConfig
from export.models.text import TextEncoder
from export.models.vae import WanVae

DIT_STEM = "diffusion_pytorch_model"
TEXT_FILE = "models_t5_umt5-random.pth"
SHARD_BYTES = 4 << 30
"""Most that one file of DiT weights holds, and what writing them takes in memory."""
VOCABULARY = 1024

_WORDS = """
a an and are as at be by for from has have in into is it its like made more no not of on or out over
the this to under up very with without
style picture video frame image scene painting painted drawing drawn sketch pencil charcoal ink line
lines art artwork illustration comic cartoon anime manga animation poster print photo photograph
film cinematic movie vintage retro old modern futuristic cyberpunk steampunk gothic baroque
renaissance impressionist expressionist cubist surreal abstract minimal pop graffiti mosaic stained
glass watercolor watercolour oil acrylic gouache pastel crayon chalk brush strokes canvas paper
texture textured pixel voxel lego clay claymation stop motion plastic wood wooden stone marble
metal gold golden silver bronze copper neon glow glowing light lights lighting shadow shadows dark
bright soft hard warm cold cool dramatic moody dreamy misty foggy rainy sunny snowy stormy night day
dawn dusk sunset sunrise morning evening winter summer spring autumn
black white grey gray red orange yellow green blue purple violet pink brown teal sepia monochrome
color colors colour colours colorful colourful saturated faded muted vivid contrast inverted high
low deep detailed detail sharp blurry smooth rough grain noise clean simple realistic fantasy magic
person people man woman child face portrait hand dog cat horse bird animal robot car road street
city town house building room forest tree trees flower flowers garden mountain river lake sea ocean
beach sky cloud clouds sun moon star stars space fire water ice snow smoke
walking running dancing standing looking moving slow fast close wide view background foreground
masterpiece quality beautiful
"""


def write_random(config: ModelConfig, directory: Path, seed: int, *, text: bool = True) -> None:
    """Random weights of `config` in `directory`, the same for the same seed on every machine.

    Outputs are bounded and of order 1: nothing starts at zero, projections keep their variance.
    Without `text` no text encoder and no tokenizer are written (that of Wan takes 22 GB).
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CONFIG_FILE).write_text(json.dumps(wan_config(config.dit), indent=1) + "\n")
    _write_dit(config.dit, directory, seed)
    if isinstance(config.vae, VaeConfig):
        torch.save(random_vae(config.vae, seed), directory / VAE_FILE)
    else:
        torch.save(random_taehv(config.vae, seed), directory / TAEHV_FILE)
    if text:
        torch.save(random_text(config.text, seed), directory / TEXT_FILE)
        make_tokenizer(directory / TOKENIZER_FILE, min(config.text.vocabulary, VOCABULARY))


def random_dit(config: DitConfig, seed: int) -> State:
    """Weights of a DiT under the original names; its velocity is of order 1."""
    return dict(_dit_tensors(config, seed))


def random_vae(config: VaeConfig, seed: int) -> State:
    """Weights of a Wan VAE under the original names."""
    with torch.device("meta"):
        shapes = tensor_shapes(WanVae(config))
    return {
        name: _normal(name, shape, seed, 0.1, 1)
        if name.endswith("gamma")
        else _projection(name, shape, seed)
        for name, shape in shapes.items()
    }


def random_taehv(config: TaehvConfig, seed: int) -> State:
    """Weights of a TAEHV under the released names."""
    model = taehv.Taehv(config)
    taehv.initialise(model, seed)
    return {name: _exact(tensor) for name, tensor in model.state_dict().items()}


def random_text(config: TextConfig, seed: int) -> State:
    """Weights of a UMT5 encoder under the original names."""
    with torch.device("meta"):
        shapes = tensor_shapes(TextEncoder(config, 1))
    return {name: text_tensor(name, shape, seed, config) for name, shape in shapes.items()}


def wan_config(config: DitConfig) -> dict[str, object]:
    """What the config.json of an original Wan release says."""
    return {
        "_class_name": "WanModel",
        "model_type": "t2v",
        "dim": config.width,
        "eps": config.eps,
        "ffn_dim": config.ffn,
        "freq_dim": config.frequency_width,
        "in_dim": config.latent_channels,
        "num_heads": config.heads,
        "num_layers": config.blocks,
        "out_dim": config.latent_channels,
        "text_len": config.text_length,
    }


def make_tokenizer(path: Path, vocabulary: int = VOCABULARY) -> None:
    """A byte-level BPE tokenizer.json of at most `vocabulary` tokens that reads any text.

    Lower-cases; id 0 is padding, 1 ends every prompt, as in UMT5. Trained on a short list of words
    about style; the same file on every machine.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        show_progress=False,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(_WORDS.split(), trainer)
    end = tokenizer.token_to_id("</s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", end)]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))


def _write_dit(config: DitConfig, directory: Path, seed: int) -> None:
    """One file, or shards of at most SHARD_BYTES, each generated when it is written."""
    shards: list[dict[str, torch.Size]] = [{}]
    filled = 0
    for name, shape in checkpoint_shapes(config).items():
        size = 4 * shape.numel()
        if filled + size > SHARD_BYTES and shards[-1]:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += size
    for index, shapes in enumerate(shards, 1):
        part = f"-{index:05}-of-{len(shards):05}" if len(shards) > 1 else ""
        tensors = {name: dit_tensor(name, shape, seed) for name, shape in shapes.items()}
        save_file(tensors, directory / f"{DIT_STEM}{part}.safetensors")


def _dit_tensors(config: DitConfig, seed: int) -> Iterator[tuple[str, Tensor]]:
    for name, shape in checkpoint_shapes(config).items():
        yield name, dit_tensor(name, shape, seed)


def dit_tensor(name: str, shape: torch.Size, seed: int) -> Tensor:
    """One weight of a DiT by its original name; no other is needed to make it."""
    if "norm" in name and name.endswith("weight"):
        return _normal(name, shape, seed, 0.1, 1)
    if name.endswith("modulation"):
        return _normal(name, shape, seed, shape[-1] ** -0.5)
    return _projection(name, shape, seed)


def text_tensor(name: str, shape: torch.Size, seed: int, config: TextConfig) -> Tensor:
    """One weight of a UMT5 encoder by its original name."""
    if "norm" in name:
        return _normal(name, shape, seed, 0.1, 1)
    if "embedding" in name:
        return _normal(name, shape, seed, 1)
    if name.endswith("attn.q.weight"):  # UMT5 does not scale q k^T
        return _normal(name, shape, seed, (config.width * config.head_dim) ** -0.5)
    return _projection(name, shape, seed)


def _projection(name: str, shape: torch.Size, seed: int) -> Tensor:
    """A weight that keeps the variance of its input, or a small bias."""
    if len(shape) == 1:
        return _normal(name, shape, seed, 0.02)
    return _normal(name, shape, seed, 1 / math.sqrt(math.prod(shape[1:])))


def _normal(name: str, shape: torch.Size, seed: int, std: float, mean: float = 0) -> Tensor:
    """Normal numbers that depend on the name and the seed, not on what was drawn before."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7]))
    return _exact(torch.empty(shape).normal_(mean, std, generator=generator))


def _exact(tensor: Tensor) -> Tensor:
    """The nearest float32 that is a float16 as well, in the same memory."""
    return tensor.copy_(tensor.half())
