"""Every family of weights that people have, in its true names and containers at small sizes: it
loads, and computes what the module does that it was written from. What is wrong is one line.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from export import checkpoints, formats, inspect, layout, random_weights
from export.formats import State
from export.given import given_of
from export.models import taehv, vae
from export.models.dit import checkpoint_shapes, rope_axis
from export.models.presets import (
    PRESETS,
    WAN_LATENTS,
    DitConfig,
    ModelConfig,
    Sampling,
    TaehvConfig,
    TextConfig,
    VaeConfig,
    latents_of,
)
from export.models.vae import diffusers_to_original
from export.options import Options
from export.units import Parts
from rt.errors import CheckpointError, Error

DIT = DitConfig(
    width=256, ffn=40, heads=2, blocks=2, text_length=512, text_width=24, frequency_width=16
)
TEXT = TextConfig(width=24, ffn=32, heads=2, head_dim=8, blocks=2, vocabulary=1024)
WAN = ModelConfig("small", DIT, VaeConfig(width=8), TEXT, Sampling())
SMALL = TaehvConfig(encoder_widths=(8, 8, 8), decoder_widths=(16, 8, 8, 8))
TAEHV = dataclasses.replace(WAN, vae=SMALL)
SIZE = 32
TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Modules:
    """What the files are written from: models of other people, with seeded random weights."""

    dit: WanTransformer3DModel
    vae: AutoencoderKLWan
    text: UMT5EncoderModel
    taehv: taehv.Taehv

    def state(self) -> State:
        """The DiT under the original names."""
        named = {formats.dit_from_diffusers(n): t for n, t in self.dit.state_dict().items()}
        return {name: tensor.contiguous() for name, tensor in named.items()}


@pytest.fixture(scope="module")
def modules() -> Modules:
    torch.manual_seed(0)
    dit = WanTransformer3DModel(
        num_attention_heads=DIT.heads,
        attention_head_dim=DIT.head_dim,
        text_dim=DIT.text_width,
        freq_dim=DIT.frequency_width,
        ffn_dim=DIT.ffn,
        num_layers=DIT.blocks,
        rope_max_seq_len=16,
    )
    text = UMT5EncoderModel(
        UMT5Config(
            vocab_size=TEXT.vocabulary, d_model=TEXT.width, d_kv=TEXT.head_dim, d_ff=TEXT.ffn,
            num_layers=TEXT.blocks, num_heads=TEXT.heads, feed_forward_proj="gated-gelu",
        )
    )  # fmt: skip
    small = taehv.Taehv(SMALL)
    taehv.initialise(small, 0)
    models = Modules(dit, AutoencoderKLWan(base_dim=8), text, small)
    for model in (models.dit, models.vae, models.text, models.taehv):
        model.eval().requires_grad_(False)
    for parameter in models.dit.parameters():  # nothing at its neutral start
        parameter.add_(torch.randn(parameter.shape) * 0.02)
    return models


def original(modules: Modules, folder: Path, shards: int = 1) -> Path:
    """`Wan-AI/Wan2.1-T2V-*`."""
    (folder / "google/umt5-xxl").mkdir(parents=True)
    state = modules.state()
    names = sorted(state)
    for index in range(shards):
        part = {n: state[n] for n in names[index::shards]}
        number = f"-{index + 1:05}-of-{shards:05}" if shards > 1 else ""
        save_file(part, folder / f"diffusion_pytorch_model{number}.safetensors")
    (folder / "config.json").write_text(json.dumps(random_weights.wan_config(DIT)))
    torch.save(diffusers_to_original(modules.vae.state_dict()), folder / "Wan2.1_VAE.pth")
    text = {
        formats.text_from_transformers(n): t
        for n, t in modules.text.state_dict().items()
        if n != "encoder.embed_tokens.weight"
    }
    torch.save(text, folder / "models_t5_umt5-xxl-enc-bf16.pth")
    torch.save(modules.taehv.state_dict(), folder / "taew2_1.pth")
    checkpoints.make_tokenizer(folder / "google/umt5-xxl/tokenizer.json")
    return folder


def diffusers(modules: Modules, folder: Path) -> Path:
    """`Wan-AI/*-Diffusers`, written by diffusers and transformers themselves, in shards."""
    modules.dit.save_pretrained(folder / "transformer", max_shard_size="400KB")
    modules.vae.save_pretrained(folder / "vae")
    modules.text.save_pretrained(folder / "text_encoder", max_shard_size="60KB")
    checkpoints.make_tokenizer(folder / "tokenizer/tokenizer.json")
    for part in ("transformer", "text_encoder"):
        assert len(list((folder / part).glob("*.safetensors"))) > 1
    return folder


def pickled(name: str, wrap: Callable[[State], object]) -> Callable[[Modules, Path], Path]:
    def write(modules: Modules, folder: Path) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True)
        torch.save(wrap(modules.state()), path)
        return path

    return write


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def krea(modules: Modules, folder: Path) -> Path:
    folder.mkdir()
    path = folder / "krea-realtime-video-14b.safetensors"
    save_file(prefixed(modules.state(), "model."), path)
    return path


FAMILIES: dict[str, Callable[[Modules, Path], Path]] = {
    "Wan, original": original,
    "Wan, original, shards": lambda modules, folder: original(modules, folder, 3),
    "Wan, diffusers": diffusers,
    "StreamDiffusionV2": pickled(
        "wan_causal_dmd_v2v/model.pt", lambda s: {"generator": prefixed(s, "model.")}
    ),
    "CausVid": pickled(
        "autoregressive_checkpoint/model.pt",
        lambda s: {"generator": prefixed(s, "model."), "critic": {"x": torch.zeros(1)}},
    ),
    "Self-Forcing": pickled(
        "checkpoints/self_forcing_dmd.pt",
        lambda s: {"generator_ema": prefixed(s, "model._fsdp_wrapped_module.")},
    ),
    "LongLive": pickled("models/longlive_base.pt", lambda s: {"generator": prefixed(s, "model.")}),
    "Krea": krea,
}
WHOLE = ("Wan, original", "Wan, original, shards", "Wan, diffusers")
"""Releases that have all parts; the others need the folder of one of these beside them."""


@pytest.fixture(scope="module")
def written(modules: Modules, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("families")
    return {name: write(modules, folder / name) for name, write in FAMILIES.items()}


def files(written: dict[str, Path], family: str) -> layout.Files:
    base = None if family in WHOLE else written["Wan, original"]
    return layout.find(written[family], base)


def velocity(parts: Parts, noisy: Tensor, timestep: Tensor, embeddings: Tensor) -> Tensor:
    """One frame alone in its window."""
    dit = parts.dit
    tokens = noisy.shape[-1] * noisy.shape[-2] // 4
    start = rope_axis(torch.zeros(1), DIT.rope_pairs[0], DIT.rope_theta).transpose(0, 1)
    x, modulation, head_modulation, rope = dit.dit_in(noisy, timestep, start)
    context = dit.prompt_in(embeddings)
    write, visible = torch.zeros(1, dtype=torch.int64), torch.zeros(1, 1, 1, tokens)
    for block, kv in zip(dit.block, dit.prompt_kv, strict=True):
        ring = torch.zeros(1, DIT.heads, tokens, DIT.head_dim)
        x, _, _ = block(x, modulation, rope, write, visible, *kv(context), ring, ring)
    result: Tensor = dit.dit_out(x, head_modulation)
    return result


def near(got: Tensor, expected: Tensor) -> None:
    assert float(expected.std()) > 1e-2
    assert float((got - expected).abs().max()) <= TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_a_file_gives_what_its_module_gives(
    modules: Modules, written: dict[str, Path], family: str, stream: Callable[..., Tensor]
) -> None:
    found = files(written, family)
    parts = checkpoints.load_parts(WAN, found, SIZE, SIZE)
    assert checkpoints.load_dit(found.dit)[1] == DIT
    g = torch.Generator().manual_seed(1)
    noisy = torch.randn(1, 16, SIZE // 8, SIZE // 8, generator=g)
    embeddings = torch.randn(1, DIT.text_length, DIT.text_width, generator=g)
    timestep = torch.tensor([600.0])
    expected = modules.dit(noisy[:, :, None], timestep, embeddings, return_dict=False)[0]
    near(velocity(parts, noisy, timestep, embeddings), expected[:, :, 0])

    assert isinstance(parts.vae, vae.WanVae)
    mean, std = (t.view(1, -1, 1, 1, 1) for t in vae.latent_statistics(parts.vae))
    video = torch.rand(1, 3, 5, SIZE, SIZE, generator=g) * 2 - 1
    latent = stream(vae.encoder_pieces(parts.vae), [video[:, :, :1], video[:, :, 1:]])
    near(latent, (modules.vae.encode(video).latent_dist.mode() - mean) / std)
    restyled = stream(vae.decoder_pieces(parts.vae), latent.split(1, 2)).clamp(-1, 1)
    near(restyled, modules.vae.decode(latent * std + mean).sample)

    assert parts.text is not None
    ids = torch.arange(2, 2 + DIT.text_length)[None]
    mask = torch.ones(1, DIT.text_length)
    near(parts.text(ids, mask), modules.text(input_ids=ids).last_hidden_state)
    assert found.tokenizer is not None


@pytest.mark.parametrize("family", FAMILIES)
def test_a_build_without_memory_reads_the_same(
    modules: Modules, written: dict[str, Path], family: str
) -> None:
    _, dit, text = checkpoints.open_parts(WAN, files(written, family), SIZE, SIZE)
    for name, tensor in modules.state().items():
        assert torch.equal(dit(name, tensor.shape), tensor)
    named = modules.text.state_dict()
    assert torch.equal(
        text("norm.weight", torch.Size([24])), named["encoder.final_layer_norm.weight"]
    )


def test_a_taehv_takes_the_place_of_the_vae(modules: Modules, written: dict[str, Path]) -> None:
    for family in ("Wan, original", "Krea"):
        parts = checkpoints.load_parts(TAEHV, files(written, family), SIZE, SIZE)
        state = modules.taehv.state_dict()
        assert all(torch.equal(t, state[n]) for n, t in parts.vae.state_dict().items())
    with pytest.raises(CheckpointError, match=r"no taew2_1\.pth beside it; .* --base"):
        checkpoints.load_parts(TAEHV, files(written, "Wan, diffusers"), SIZE, SIZE)


def test_what_the_encoder_gives_belongs_to_the_family(written: dict[str, Path]) -> None:
    """Only StreamDiffusionV2's own DiT takes latents that are not normalised."""
    assert [f for f in FAMILIES if files(written, f).raw_encode] == ["StreamDiffusionV2"]


@pytest.mark.parametrize(
    ("family", "said", "encode"),
    [
        ("StreamDiffusionV2", "auto", False),
        ("StreamDiffusionV2", "normalised", True),
        ("CausVid", "auto", True),
        ("CausVid", "raw", False),
    ],
)
@torch.inference_mode()
def test_latents_are_those_of_the_family_or_as_said(
    modules: Modules,
    written: dict[str, Path],
    stream: Callable[..., Tensor],
    family: str,
    said: Literal["auto", "normalised", "raw"],
    encode: bool,
) -> None:
    """Against diffusers, with and without the statistics; decoding always undoes them."""
    options = Options(
        WAN, SIZE, SIZE, Path("out"), "small", base=written["Wan, original"], latents=said
    )
    given = given_of(options, written[family])
    assert latents_of(given.options.config) == dataclasses.replace(WAN_LATENTS, encode=encode)
    assert given.files is not None
    parts = checkpoints.load_parts(given.options.config, given.files, SIZE, SIZE)
    assert isinstance(parts.vae, vae.WanVae)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (WAN_LATENTS.mean, WAN_LATENTS.std))
    video = torch.rand(1, 3, 5, SIZE, SIZE) * 2 - 1
    z = modules.vae.encode(video).latent_dist.mode()
    latent = stream(vae.encoder_pieces(parts.vae), [video[:, :, :1], video[:, :, 1:]])
    near(latent, (z - mean) / std if encode else z)
    clean = torch.randn_like(z)
    restyled = stream(vae.decoder_pieces(parts.vae), clean.split(1, 2)).clamp(-1, 1)
    near(restyled, modules.vae.decode(clean * std + mean).sample)


@pytest.mark.parametrize("family", FAMILIES)
def test_inspect_says_what_a_file_is(written: dict[str, Path], family: str) -> None:
    found = layout.find(written[family]).dit
    lines = list(inspect.weights(found))
    scheme = "Wan DiT (diffusers)" if family == "Wan, diffusers" else "Wan DiT"
    assert f"{found}: {scheme}, 69 tensors, " in lines[0]
    assert "float32, width 256, 2 blocks, 2 heads, feed-forward 40" in lines[0]
    assert lines[1] == "  complete"


def test_inspect_says_what_a_release_has_and_lacks(
    modules: Modules, written: dict[str, Path], tmp_path: Path
) -> None:
    for family in ("Wan, original", "Wan, diffusers"):
        text = "\n".join(inspect.weights(written[family]))
        assert "latents normalised" in text
        assert "UMT5" in text
        assert "Wan VAE" in text
        assert "tokenizer.json" in text
        assert ("no TAEHV" in text) == (family == "Wan, diffusers")
    alone = "\n".join(inspect.weights(written["StreamDiffusionV2"].parent))
    for lacking in ("no VAE", "no text encoder", "no tokenizer", "latents as its encoder"):
        assert lacking in alone
    path = FAMILIES["Krea"](modules, tmp_path / "broken")
    named = damage(path, "missing")
    lines = list(inspect.weights(path))
    assert lines[0].startswith(f"{path}: Wan DiT, 68 tensors")
    assert "1 missing" in lines[1]
    assert named in lines[1]
    torch.save({"generator_lora": {"blocks.0.ffn.0.lora_A.weight": torch.ones(4, 8)}}, path)
    assert list(inspect.weights(path)) == [
        f"{path}: LoRA, 1 tensors, 32 parameters, 0.0 MB, float32, rank 4"
    ]


# What is wrong with a file, for every file of every family


def dit_files(folder: Path) -> Path:
    return layout.find(folder).dit if folder.is_dir() else folder


PARTS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    **{family: (family, lambda path: formats.files_of(dit_files(path))[-1]) for family in FAMILIES},
    "VAE, original": ("Wan, original", lambda path: path / "Wan2.1_VAE.pth"),
    "VAE, diffusers": (
        "Wan, diffusers",
        lambda path: path / "vae/diffusion_pytorch_model.safetensors",
    ),
    "UMT5, original": ("Wan, original", lambda path: path / "models_t5_umt5-xxl-enc-bf16.pth"),
    "UMT5, transformers": (
        "Wan, diffusers",
        lambda path: formats.files_of(path / "text_encoder")[-1],
    ),
    "TAEHV": ("Wan, original", lambda path: path / "taew2_1.pth"),
}


class Payload:
    """Writes a file when it is unpickled by a careless reader."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.write_text, (self.target, "ran")


def save(content: dict[str, object], path: Path) -> None:
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)


def damage(path: Path, how: str) -> str:
    """Spoil a file; what the message must name."""
    if how == "truncated":
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) * 3 // 5])
        return path.name
    if how == "code":
        path.write_bytes(pickle.dumps({"generator": Payload(path.with_name("ran"))}))
        return path.name
    whole = load_file(path) if path.suffix == ".safetensors" else torch.load(path)
    state = next((whole[w] for w in ("generator", "generator_ema") if w in whole), whole)
    name = sorted(n for n, t in state.items() if t.dim() > 1)[-1]
    if how == "missing":
        del state[name]
    elif how == "unexpected":
        state["mystery.weight"] = torch.zeros(1)
        name = "mystery.weight"
    elif how == "misshapen":
        state[name] = state[name][:-1].clone()
    else:
        state[name] = torch.full_like(state[name], torch.nan)
    save(whole, path)
    return name.rpartition(".")[2] if how != "unexpected" else name


@pytest.mark.parametrize("how", ["missing", "unexpected", "misshapen", "truncated", "nan", "code"])
@pytest.mark.parametrize("part", PARTS)
def test_a_bad_file_is_refused_by_name(
    modules: Modules, written: dict[str, Path], tmp_path: Path, part: str, how: str
) -> None:
    family, at = PARTS[part]
    path = FAMILIES[family](modules, tmp_path / "copy")
    named = damage(at(path), how)
    config = TAEHV if part == "TAEHV" else WAN
    base = None if family in WHOLE else written["Wan, original"]
    with pytest.raises(Error) as caught:
        checkpoints.load_parts(config, layout.find(path, base), SIZE, SIZE)
    message = str(caught.value)
    assert isinstance(caught.value, CheckpointError)
    assert "\n" not in message
    assert named in message
    word = {"nan": "NaN", "code": "not a weights file"}.get(how, how)
    assert word in message
    assert not list(tmp_path.rglob("ran"))


def test_a_missing_shard_is_named(modules: Modules, tmp_path: Path) -> None:
    folder = original(modules, tmp_path / "wan", shards=3)
    (folder / "diffusion_pytorch_model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"shard \S+-00002-of-00003\.safetensors is missing"):
        checkpoints.load_dit(folder)


def test_a_folder_of_several_asks_for_one(modules: Modules, tmp_path: Path) -> None:
    path = FAMILIES["LongLive"](modules, tmp_path / "a")
    torch.save({}, path.with_name("lora.pt"))
    with pytest.raises(CheckpointError, match=r"several .* \(longlive_base\.pt, lora\.pt\)"):
        layout.find(path.parent)
    path.with_name("lora.pt").unlink()
    assert layout.find(path.parent).dit == path


READ = """
import json, resource, sys
from pathlib import Path
from export import checkpoints
from export.models.presets import PRESETS
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
state, config = checkpoints.load_dit(Path(sys.argv[1]))
assert config == PRESETS["wan-14b"].dit
block = [name for name in state if name.startswith("blocks.7.")]
assert all(not state[name].any() for name in block)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_14b_is_mapped_and_never_whole_in_memory(tmp_path: Path) -> None:
    """A file of its true 28.6 GB that is one hole: reading one block costs one block (0.7 GB)."""
    header, end = {}, 0
    for name, shape in checkpoint_shapes(PRESETS["wan-14b"].dit).items():
        start, end = end, end + 2 * shape.numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    assert path.stat().st_size > 28e9
    done = subprocess.run(
        [sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 1500, "MB"
