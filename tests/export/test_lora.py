"""LoRA files in every key format that people have are merged as diffusers and peft define it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from micro_engine import MICRO, micro_options, remembered_exports
from safetensors.torch import save_file
from torch import Tensor

from export import checkpoints, formats, lora, random_weights, verify
from export import commands as cli
from export.build import build_engines
from export.formats import State
from export.layout import find
from rt import manifest as records
from rt.errors import CheckpointError, ConfigError

DIT = MICRO.dit
RANK = 3
ADAPTED = ("self_attn.q", "self_attn.o", "cross_attn.k", "ffn.0", "ffn.2")
MODULES = [f"blocks.{index}.{name}" for index in range(DIT.blocks) for name in ADAPTED]
Pairs = dict[str, tuple[Tensor, Tensor]]


@pytest.fixture(scope="module")
def state() -> State:
    return random_weights.random_dit(DIT, seed=0)


@pytest.fixture(scope="module")
def pairs(state: State) -> Pairs:
    """Down [rank, in] and up [out, rank] of some linear layers."""
    g = torch.Generator().manual_seed(0)
    found = {}
    for module in MODULES:
        out, into = state[f"{module}.weight"].shape
        found[module] = torch.randn(RANK, into, generator=g), torch.randn(out, RANK, generator=g)
    return found


def expected(state: State, pairs: Pairs, scale: float) -> State:
    """Three lines of algebra: W + scale * up down, in float64."""
    merged = dict(state)
    for module, (down, up) in pairs.items():
        name = f"{module}.weight"
        merged[name] = (state[name].double() + scale * (up.double() @ down.double())).float()
    return merged


def diffusers_name(module: str) -> str:
    """The inverse of the map, by trying every name of diffusers."""
    block, rest = formats.block_of(module, "blocks")
    for theirs in (f"{a}.{p}" for a in ("attn1", "attn2") for p in ("to_q", "to_k", "to_out.0")):
        if formats.dit_from_diffusers(f"blocks.{block}.{theirs}") == f"blocks.{block}.{rest}":
            return f"blocks.{block}.{theirs}"
    ends = {"ffn.0": "ffn.net.0.proj", "ffn.2": "ffn.net.2"}
    return f"blocks.{block}.{ends[rest]}"


def ab(pairs: Pairs, key: Callable[[str, str], str], a: str = "lora_A", b: str = "lora_B") -> State:
    return {
        name: tensor
        for module, (down, up) in pairs.items()
        for name, tensor in ((key(module, a), down), (key(module, b), up))
    }


def with_alpha(keys: State, pairs: Pairs, alpha: float, key: Callable[[str], str]) -> State:
    return keys | {key(module): torch.tensor(alpha) for module in pairs}


def kohya(module: str, part: str) -> str:
    return f"lora_unet_{module.replace('.', '_')}.{part}.weight"


FORMATS: dict[str, tuple[Callable[[Pairs], State], float]] = {
    "peft": (lambda p: ab(p, lambda m, x: f"base_model.model.{m}.{x}.weight"), 1.0),
    "peft, named": (lambda p: ab(p, lambda m, x: f"base_model.model.{m}.{x}.default.weight"), 1.0),
    "diffusers": (lambda p: ab(p, lambda m, x: f"transformer.{diffusers_name(m)}.{x}.weight"), 1.0),
    "diffusers, old": (
        lambda p: ab(
            p, lambda m, x: f"transformer.{diffusers_name(m)}.{x}.weight", "lora.down", "lora.up"
        ),
        1.0,
    ),
    "comfy": (lambda p: ab(p, lambda m, x: f"diffusion_model.{m}.{x}.weight"), 1.0),
    "comfy, alpha": (
        lambda p: with_alpha(
            ab(p, lambda m, x: f"diffusion_model.{m}.{x}.weight", "lora_down", "lora_up"),
            p,
            1.5,
            lambda m: f"diffusion_model.{m}.alpha",
        ),
        0.5,
    ),
    "kohya": (
        lambda p: with_alpha(
            ab(p, kohya, "lora_down", "lora_up"),
            p,
            6.0,
            lambda m: f"lora_unet_{m.replace('.', '_')}.alpha",
        ),
        2.0,
    ),
    "original": (lambda p: ab(p, lambda m, x: f"{m}.{x}.weight"), 1.0),
}


def close(got: Tensor, wanted: Tensor) -> bool:
    return bool(torch.allclose(got, wanted, atol=1e-5, rtol=1e-5))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("container", ["safetensors", "pt"])
def test_every_format_gives_the_merged_weights(
    state: State, pairs: Pairs, tmp_path: Path, name: str, container: str
) -> None:
    write, scale = FORMATS[name]
    path = tmp_path / f"lora.{container}"
    tensors = write(pairs)
    if container == "pt":  # LongLive keeps it beside the one of its critic
        torch.save({"generator_lora": tensors, "critic_lora": {}, "step": 3}, path)
    else:
        save_file(tensors, path)
    got = lora.merged(state, [(path, 0.7)])
    wanted = expected(state, pairs, 0.7 * scale)
    assert list(got) == list(wanted)
    assert all(close(got[key], wanted[key]) for key in wanted)
    changed = [key for key in wanted if not torch.equal(got[key], state[key])]
    assert changed == [key for key in state if key.removesuffix(".weight") in pairs]


def test_the_module_with_merged_weights_gives_the_same(
    state: State, pairs: Pairs, tmp_path: Path
) -> None:
    """W x + up down x, computed apart, is what the merged block's layer gives."""
    save_file(FORMATS["comfy"][0](pairs), tmp_path / "lora.safetensors")
    dit = checkpoints.Dit(DIT, 2, 2).requires_grad_(False)
    checkpoints.fill_dit(dit, lora.merged(state, [(tmp_path / "lora.safetensors", -0.5)]))
    x = torch.randn(4, DIT.width, generator=torch.Generator().manual_seed(2))
    down, up = pairs["blocks.1.self_attn.q"]
    q = state["blocks.1.self_attn.q.weight"], state["blocks.1.self_attn.q.bias"]
    wanted = torch.nn.functional.linear(x, *q) - 0.5 * (x @ down.T @ up.T)
    torch.testing.assert_close(dit.block[1].self_attn.q(x), wanted, atol=1e-4, rtol=1e-4)


def test_peft_itself_agrees_on_its_configuration(
    state: State, pairs: Pairs, tmp_path: Path
) -> None:
    """alpha beside the file: plain, rank-stabilised, and in the header that diffusers writes."""
    tensors = FORMATS["peft"][0](pairs)
    name = f"{MODULES[0]}.weight"
    for said, scale in (
        ({"r": 3, "lora_alpha": 6}, 2.0),
        ({"r": 3, "lora_alpha": 6, "use_rslora": True}, 6 / 3**0.5),
    ):
        save_file(tensors, tmp_path / "adapter_model.safetensors")
        (tmp_path / "adapter_config.json").write_text(json.dumps(said))
        got = lora.merged(state, [(tmp_path / "adapter_model.safetensors", 1.0)])
        assert close(got[name], expected(state, pairs, scale)[name])
        header = {
            "lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in said.items()})
        }
        save_file(tensors, tmp_path / "plain.safetensors", header)
        got = lora.merged(state, [(tmp_path / "plain.safetensors", 1.0)])
        assert close(got[name], expected(state, pairs, scale)[name])
    (tmp_path / "adapter_config.json").write_text('{"r": 3, "lora_alpha": 3, "use_dora": true}')
    with pytest.raises(CheckpointError, match="use_dora cannot be merged"):
        lora.merged(state, [(tmp_path / "adapter_model.safetensors", 1.0)])


def test_differences_of_whole_weights_and_several_files(
    state: State, pairs: Pairs, tmp_path: Path
) -> None:
    whole = {
        "diffusion_model.blocks.0.norm3.diff": torch.ones(DIT.width),
        "diffusion_model.blocks.0.self_attn.q.diff_b": torch.ones(DIT.width),
        "diffusion_model.patch_embedding.diff": torch.ones(DIT.width, 16, 1, 2, 2),
    }
    save_file(whole, tmp_path / "whole.safetensors")
    save_file(FORMATS["comfy"][0](pairs), tmp_path / "pairs.safetensors")
    files = [(tmp_path / "whole.safetensors", 2.0), (tmp_path / "pairs.safetensors", 1.0)]
    got = lora.merged(state, [*files, files[1]])
    for name in ("blocks.0.norm3.weight", "blocks.0.self_attn.q.bias", "patch_embedding.weight"):
        assert close(got[name], state[name] + 2)
    q = "blocks.0.self_attn.q.weight"
    assert close(got[q], expected(state, pairs, 2.0)[q])


def test_a_convolution_is_adapted_as_a_matrix(state: State, tmp_path: Path) -> None:
    down, up = torch.randn(2, 16, 1, 2, 2), torch.randn(DIT.width, 2, 1, 1, 1)
    keys = {"patch_embedding.lora_down.weight": down, "patch_embedding.lora_up.weight": up}
    save_file(keys, tmp_path / "lora.safetensors")
    got = lora.merged(state, [(tmp_path / "lora.safetensors", 1.0)])["patch_embedding.weight"]
    added = torch.einsum("or,rctij->octij", up.flatten(1), down)
    assert close(got, state["patch_embedding.weight"] + added)


def without(state: State, name: str) -> State:
    return {key: tensor for key, tensor in state.items() if key != name}


KEY = "diffusion_model.blocks.0.self_attn.q"
BAD: dict[str, tuple[Callable[[State], State], str]] = {
    "unknown module": (
        lambda s: s | {"lora_te_text.lora_up.weight": torch.ones(1, 1)},
        "lora_te_text",
    ),
    "unknown part": (
        lambda s: s | {f"{KEY}.dora_scale": torch.ones(1)},
        "1 unexpected .*dora_scale",
    ),
    "block out of range": (
        lambda s: s | {"diffusion_model.blocks.99.self_attn.q.lora_A.weight": torch.ones(1, 1)},
        r"blocks\.99",
    ),
    "no up": (lambda s: without(s, f"{KEY}.lora_B.weight"), "self_attn.q.weight: without up"),
    "no down": (lambda s: without(s, f"{KEY}.lora_A.weight"), "self_attn.q.weight: without down"),
    "misshapen": (lambda s: s | {f"{KEY}.lora_A.weight": torch.ones(RANK, 5)}, r"down \[3, 5\]"),
    "rank": (lambda s: s | {f"{KEY}.lora_A.weight": torch.ones(2, DIT.width)}, r"down \[2, 32\]"),
    "nan": (lambda s: s | {f"{KEY}.lora_A.weight": torch.full((RANK, 32), torch.nan)}, "NaN"),
    "integers": (
        lambda s: s | {f"{KEY}.lora_A.weight": torch.ones(RANK, 32, dtype=torch.int8)},
        "no floats",
    ),
}


@pytest.mark.parametrize("how", BAD)
def test_a_bad_file_is_refused_in_one_line(
    state: State, pairs: Pairs, tmp_path: Path, how: str
) -> None:
    spoil, said = BAD[how]
    path = tmp_path / "lora.safetensors"
    save_file(spoil(FORMATS["comfy"][0](pairs)), path)
    with pytest.raises(CheckpointError) as caught:
        lora.merged(state, [(path, 1.0)])
    message = str(caught.value)
    assert re.search(said, message)
    assert str(path) in message
    assert "\n" not in message


def test_a_file_cut_or_with_code_is_refused(state: State, pairs: Pairs, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_file(FORMATS["comfy"][0](pairs), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        lora.merged(state, [(path, 1.0)])
    torch.save({"a": tmp_path}, path)
    with pytest.raises(CheckpointError, match=r"refused|not hold tensors alone"):
        lora.merged(state, [(path, 1.0)])


def test_a_build_merges_it_and_its_hash_says_so(
    state: State, pairs: Pairs, tiny_engine: Path, tmp_path: Path
) -> None:
    """From a checkpoint and from an engine alike; another weight is another engine."""
    checkpoint = next((tiny_engine.parents[1] / "checkpoints").glob("micro-random-0-*"))
    path = tmp_path / "lora.safetensors"
    save_file(FORMATS["comfy"][0](pairs), path)
    with remembered_exports():
        plain = build_engines(micro_options(tmp_path / "a", checkpoint=checkpoint)).manifest
        built = {
            (source, weight): build_engines(
                micro_options(
                    tmp_path / f"{source}{weight}",
                    checkpoint={"weights": checkpoint, "engine": tiny_engine}[source],
                    loras=((path, weight),),
                )
            )
            for source, weight in (("weights", 0.5), ("engine", 0.5), ("weights", 0.6))
        }
    hashes = {plain.weights_sha256, *(b.manifest.weights_sha256 for b in built.values())}
    assert len(hashes) == 3, "the engine was built from the same checkpoint"
    for (_, weight), one in built.items():
        chain = verify.twin(one.manifest, one.directory, MICRO, True)
        unit = next(u for u in chain.units if u.name == "block_0")
        got = unit.phases["step"].module.state_dict()["ffn.0.weight"]
        assert close(got, expected(state, pairs, weight)["blocks.0.ffn.0.weight"])
        records.check_files(one.manifest, one.directory)


def test_what_cannot_be_merged_into(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lora: got .*nothing"):
        build_engines(micro_options(tmp_path, checkpoint=tmp_path, loras=((Path("nothing"), 1.0),)))


def test_the_command_line_reads_path_and_weight() -> None:
    parse = cli._parser().parse_args
    given = parse(["build-engines", "--lora", "a/b.pt:0.5", "--lora", "c.safetensors"]).lora
    assert given == [(Path("a/b.pt"), 0.5), (Path("c.safetensors"), 1.0)]
    with pytest.raises(ConfigError, match="--lora: invalid"):
        parse(["build-engines", "--lora", "a.pt:much"])


def test_a_build_without_memory_reads_merged_weights(
    state: State, pairs: Pairs, tiny_engine: Path, tmp_path: Path
) -> None:
    checkpoint = next((tiny_engine.parents[1] / "checkpoints").glob("micro-random-0-*"))
    save_file(FORMATS["kohya"][0](pairs), tmp_path / "lora.safetensors")
    loras = ((tmp_path / "lora.safetensors", 1.0),)
    _, dit, _ = checkpoints.open_parts(MICRO, find(checkpoint), 64, 64, loras=loras)
    wanted = expected(state, pairs, 2.0)
    assert all(close(dit(name, tensor.shape), tensor) for name, tensor in wanted.items())
