"""Every format of weights loads to the same tensors; what is wrong with a file is one line."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from export import checkpoints, formats, inspect, random_weights
from export.formats import State
from export.layout import find
from export.models.dit import checkpoint_shapes
from export.models.presets import PRESETS, DitConfig, ModelConfig, TextConfig, VaeConfig
from rt.errors import CheckpointError

DIT = DitConfig(
    width=256, ffn=40, heads=2, blocks=3, text_length=512, text_width=24, frequency_width=16
)
"""head_dim and text length as published, so that the tensors alone say all."""
TEXT = TextConfig(width=16, ffn=24, heads=2, head_dim=8, blocks=2, vocabulary=1024)
LISTED = json.loads((Path(__file__).parents[1] / "data/names-dit-text.json").read_text())


def listed(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a published checkpoint."""
    return {
        key.replace(".N.", f".{index}."): tuple(shape)
        for key, shape in LISTED[name]["tensors"].items()
        for index in range(LISTED[name]["blocks"])
    }


def in_diffusers_names(state: State, config: DitConfig = DIT) -> State:
    """The inverse of the map, made from the published names."""
    theirs = {
        name.replace("blocks.0.", f"blocks.{index}.")
        for name in listed("dit-diffusers-wan-1.3b")
        if name.startswith("blocks.0.") or not name.startswith("blocks.")
        for index in range(config.blocks)
    }
    return {name: state[formats.dit_from_diffusers(name)] for name in theirs}


@pytest.fixture(scope="module")
def state() -> State:
    return random_weights.random_dit(DIT, seed=3)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.pt"


def same(got: State, expected: State) -> bool:
    return got.keys() == expected.keys() and all(torch.equal(got[k], expected[k]) for k in got)


def refused(path: Path, *said: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load_dit(path, DIT)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    for text in said:
        assert text in message


@pytest.mark.parametrize("size", ["1.3b", "14b"])
def test_names_and_shapes_are_those_of_the_checkpoints(size: str) -> None:
    shapes = {k: tuple(v) for k, v in checkpoint_shapes(PRESETS[f"wan-{size}"].dit).items()}
    original, other = (listed(f"dit-{names}-wan-{size}") for names in ("original", "diffusers"))
    assert shapes == original
    assert {formats.dit_from_diffusers(name): shape for name, shape in other.items()} == original
    assert len(original) == len(other) == {"1.3b": 825, "14b": 1095}[size]


WRAPPED: dict[str, Callable[[State], object]] = {
    "bare": lambda s: s,
    "generator": lambda s: {"generator": s, "critic": {"x": torch.zeros(1)}, "step": 3},
    "generator_ema": lambda s: {"generator_ema": s},
    "state_dict": lambda s: {"state_dict": s},
    "nested": lambda s: {"state_dict": {"generator": s}},
    "model": lambda s: {"generator": {f"model.{k}": v for k, v in s.items()}},
    "fsdp": lambda s: {
        "generator_ema": {
            "model._fsdp_wrapped_module." + k.replace(".self", "._fsdp_wrapped_module.self"): v
            for k, v in s.items()
        }
    },
    "diffusers": in_diffusers_names,
    "bfloat16": lambda s: {k: v.bfloat16() for k, v in s.items()},
}


@pytest.mark.parametrize("wrapping", WRAPPED)
def test_every_wrapping_loads(state: State, file: Path, wrapping: str) -> None:
    torch.save(WRAPPED[wrapping](state), file)
    got, config = checkpoints.load_dit(file)
    assert config == DIT
    if wrapping == "bfloat16":
        assert {t.dtype for t in got.values()} == {torch.bfloat16}
        return
    assert same(got, state)


def test_every_container_loads(state: State, tmp_path: Path) -> None:
    """Told by content, not by name; a folder of shards is one checkpoint."""
    torch.save(state, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    save_file({f"model.{k}": v for k, v in state.items()}, tmp_path / "single.bin")
    names = sorted(state)
    for index, part in enumerate((names[:20], names[20:]), 1):
        shard = f"diffusion_pytorch_model-{index:05}-of-00002.safetensors"
        save_file({name: state[name] for name in part}, tmp_path / shard)
    for path in (tmp_path / "old.bin", tmp_path / "single.bin", tmp_path):
        assert same(checkpoints.load_dit(path)[0], state)


def test_heads_and_text_length_come_from_the_configuration(state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    config = dataclasses.replace(DIT, heads=4, head_dim=64, text_length=32)
    (tmp_path / "config.json").write_text(json.dumps(random_weights.wan_config(config)))
    assert checkpoints.load_dit(tmp_path)[1] == config
    (tmp_path / "config.json").write_text(json.dumps({"dim": 128}))
    with pytest.raises(CheckpointError, match="says dim = 128, the tensors say 256"):
        checkpoints.load_dit(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"num_heads": 3}))
    with pytest.raises(CheckpointError, match="3 heads do not divide"):
        checkpoints.load_dit(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not JSON"):
        checkpoints.load_dit(tmp_path)


def test_names_all_that_differs(state: State, file: Path) -> None:
    broken = dict(state)
    del broken["blocks.1.ffn.0.bias"], broken["head.head.bias"]
    broken["img_emb.proj.0.weight"] = torch.zeros(3)
    broken["blocks.2.norm3.weight"] = torch.zeros(7)
    torch.save(broken, file)
    refused(
        file,
        "2 missing (blocks.1.ffn.0.bias, head.head.bias)",
        "1 unexpected (img_emb.proj.0.weight)",
        "1 misshapen (blocks.2.norm3.weight: got [7], expected [256])",
    )


def test_shortens_long_lists(state: State, file: Path) -> None:
    torch.save({k: v for k, v in state.items() if "blocks.1." not in k}, file)
    refused(file, "27 missing (blocks.1.cross_attn.k.bias, ", " and 23 more)")


def test_refuses_what_is_no_checkpoint(state: State, file: Path) -> None:
    refused(file, "No such file")
    file.write_bytes(b"not weights at all")
    refused(file, "not a weights file")
    file.write_bytes(b"")
    refused(file, "not a weights file")
    torch.save([1, 2], file)
    refused(file, "expected tensors by name, got list")
    torch.save({}, file)
    refused(file, "expected tensors by name")
    torch.save({"generator": {**state, "note": "hello", "step": 3}}, file)
    refused(file, "2 entries are not tensors (note, step)")
    torch.save({"a.weight": torch.zeros(1)}, file)
    refused(file, "holds 1 tensors (a.weight), none of: Wan DiT,")
    torch.save({**state, "model.head.head.bias": state["head.head.bias"]}, file)
    refused(file, "holds a tensor twice")
    torch.save({**state, "head.head.bias": torch.zeros(64, dtype=torch.int64)}, file)
    refused(file, "1 of type int64 and no wider float (head.head.bias)")
    refused(file.parent / "..", "no diffusion_pytorch_model*.safetensors or")


@pytest.mark.parametrize("container", ["safetensors", "zip", "pickle"])
def test_refuses_truncated_files(state: State, file: Path, container: str) -> None:
    if container == "safetensors":
        save_file(state, file)
    else:
        torch.save(state, file, _use_new_zipfile_serialization=container == "zip")
    whole = file.read_bytes()
    for share in (0.001, 0.5, 0.99):
        file.write_bytes(whole[: int(len(whole) * share)])
        refused(file, "truncated or not a weights file")


class Payload:
    """Writes a file when it is unpickled by a careless reader."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.write_text, (self.target, "ran")


@pytest.mark.parametrize("container", ["zip", "torch", "pickle"])
def test_never_runs_code(state: State, file: Path, container: str) -> None:
    target = file.with_name("payload")
    content = {**state, "extra": Payload(target)}
    if container == "pickle":
        file.write_bytes(pickle.dumps(content))
        refused(file, "not a weights file")
    else:
        torch.save(content, file, _use_new_zipfile_serialization=container == "zip")
        refused(file, "holds more than tensors, refused (getattr)")
    assert not target.exists()


def test_fill_refuses_nan_by_name(state: State) -> None:
    config = dataclasses.replace(DIT, blocks=1)
    dit = checkpoints.Dit(config, 2, 2)
    broken = dict(state)
    broken["blocks.0.ffn.2.bias"] = torch.full((256,), torch.nan)
    with pytest.raises(CheckpointError, match=r"NaN or infinite: blocks\.0\.ffn\.2\.bias"):
        checkpoints.fill_dit(dit, broken)


def test_other_parts_are_told_apart(tmp_path: Path) -> None:
    vae, small = VaeConfig(width=8), PRESETS["tiny"].vae
    assert not isinstance(small, VaeConfig)
    weights = {
        "vae.pth": random_weights.random_vae(vae, 0),
        "taehv.pth": random_weights.random_taehv(small, 0),
        "text.pth": random_weights.random_text(TEXT, 0),
    }
    for name, tensors in weights.items():
        torch.save(tensors, tmp_path / name)
        refused(tmp_path / name, "expected weights of the dit")
    assert same(checkpoints.load_vae(tmp_path / "vae.pth", vae), weights["vae.pth"])
    assert same(checkpoints.load_taehv(tmp_path / "taehv.pth", small), weights["taehv.pth"])
    assert same(checkpoints.load_text(tmp_path / "text.pth", TEXT), weights["text.pth"])
    with pytest.raises(CheckpointError, match="expected weights of the text"):
        checkpoints.load_text(tmp_path / "vae.pth", TEXT)
    said = list(inspect.weights(tmp_path / "taehv.pth"))
    assert ": TAEHV, 74 tensors, " in said[0]
    assert said[1:] == ["  complete"]


def test_random_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    config = ModelConfig("small", DIT, PRESETS["tiny"].vae, TEXT, PRESETS["tiny"].sampling)
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        checkpoints.write_random(config, tmp_path / folder, seed)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 5
    for name in files:
        content = [(tmp_path / folder / name).read_bytes() for folder in "abc"]
        assert content[0] == content[1]
        assert (content[0] == content[2]) == (name.suffix == ".json")
    weights = load_file(tmp_path / "a/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(t.half().float(), t) for t in weights.values())
    assert checkpoints.load_dit(tmp_path / "a")[1] == DIT


def test_random_weights_are_written_in_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random_weights, "SHARD_BYTES", 2 << 20)
    config = ModelConfig("small", DIT, PRESETS["tiny"].vae, TEXT, PRESETS["tiny"].sampling)
    checkpoints.write_random(config, tmp_path, 1, text=False)
    shards = list(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    assert max(path.stat().st_size for path in shards) < (2 << 20) + 10_000
    assert same(checkpoints.load_dit(tmp_path)[0], random_weights.random_dit(DIT, 1))
    assert find(tmp_path).tokenizer is None


def test_tiny_model_gives_a_velocity_of_order_one(tmp_path: Path) -> None:
    config = PRESETS["tiny"]
    checkpoints.write_random(config, tmp_path, 0)
    parts = checkpoints.load_parts(config, find(tmp_path), 64, 64)
    dit, text = parts.dit.requires_grad_(False), parts.text
    assert text is not None
    mask = torch.zeros(1, config.dit.text_length)
    mask[:, :3] = 1
    embeddings = text.requires_grad_(False)(torch.full(mask.shape, 9), mask)
    pairs = config.dit.rope_pairs[0]
    start = torch.stack([torch.ones(1, pairs), torch.zeros(1, pairs)], dim=1)
    x, modulation, head_modulation, rope = dit.dit_in(
        torch.randn(1, 16, 8, 8), torch.tensor([700.0]), start
    )
    context = dit.prompt_in(embeddings)
    for block, kv in zip(dit.block, dit.prompt_kv, strict=True):
        ring = torch.zeros(1, config.dit.heads, 16, config.dit.head_dim)
        write, visible = torch.zeros(1, dtype=torch.int64), torch.zeros(1, 1, 1, 16)
        x, _, _ = block(x, modulation, rope, write, visible, *kv(context), ring, ring)
    assert 0.3 < float(dit.dit_out(x, head_modulation).std()) < 3


def test_tokenizer_reads_any_text(tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        checkpoints.make_tokenizer(tmp_path / name)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    tokenizer = Tokenizer.from_file(str(tmp_path / "a.json"))
    assert tokenizer.get_vocab_size() <= 1024
    assert tokenizer.id_to_token(0) == "<pad>"
    assert tokenizer.encode("").ids == [1]
    assert len(tokenizer.encode("Pencil sketch").ids) == 3
    for text in ("oil painting, d\u00e9tail", "\u6f22\u5b57 \U0001f600\n\t\x00"):
        ids = tokenizer.encode(text).ids
        assert 0 not in ids
        assert ids[-1] == 1
        assert tokenizer.decode(ids).strip() == text.strip()
