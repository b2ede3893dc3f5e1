"""The UMT5 encoder against transformers, with the same weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from export.checkpoints import fill
from export.formats import tensor_shapes, text_from_transformers
from export.models.presets import PRESETS, TextConfig
from export.models.text import TextEncoder
from export.random_weights import random_text

CONFIG = TextConfig(width=48, ffn=80, heads=3, head_dim=16, blocks=2, vocabulary=100)
DATA = Path(__file__).parents[1] / "data"


def encoder(length: int, config: TextConfig = CONFIG) -> TextEncoder:
    model = TextEncoder(config, length).eval().requires_grad_(False)
    fill(model, random_text(config, seed=2))
    return model


def oracle(config: TextConfig = CONFIG) -> UMT5EncoderModel:
    model = UMT5EncoderModel(
        UMT5Config(
            vocab_size=config.vocabulary,
            d_model=config.width,
            d_kv=config.head_dim,
            d_ff=config.ffn,
            num_layers=config.blocks,
            num_heads=config.heads,
            relative_attention_num_buckets=config.buckets,
            relative_attention_max_distance=config.max_distance,
            feed_forward_proj="gated-gelu",
            attn_implementation="eager",
        )
    )
    state = random_text(config, seed=2)
    model.load_state_dict(
        {
            name: state["token_embedding.weight"]
            if name == "encoder.embed_tokens.weight"
            else state[text_from_transformers(name)]
            for name in model.state_dict()
        }
    )
    return model.eval().requires_grad_(False)


def prompt(length: int, tokens: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(length)
    ids = torch.randint(2, CONFIG.vocabulary, (1, length), generator=g)
    mask = (torch.arange(length) < tokens).float()[None]
    return ids * mask.long(), mask


@pytest.mark.parametrize(("length", "tokens"), [(8, 8), (32, 5), (300, 290), (16, 1)])
def test_equals_transformers(length: int, tokens: int) -> None:
    """290 tokens reach every bucket, beyond the largest distance too."""
    ids, mask = prompt(length, tokens)
    got = encoder(length)(ids, mask)
    expected = oracle()(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    assert float((got - expected)[:, :tokens].abs().max()) <= 1e-4
    assert float(expected[:, :tokens].std()) > 0.1
    assert torch.equal(got[:, tokens:], torch.zeros(1, length - tokens, CONFIG.width))


def test_padding_and_length_change_nothing() -> None:
    ids, mask = prompt(32, 6)
    other = ids.clone()
    other[:, 6:] = 77
    got = encoder(32)(ids, mask)
    assert torch.equal(encoder(32)(other, mask), got)
    torch.testing.assert_close(encoder(6)(ids[:, :6], mask[:, :6]), got[:, :6])


def test_prompt_without_tokens_is_zero() -> None:
    ids, mask = prompt(8, 0)
    assert torch.equal(encoder(8)(ids, mask), torch.zeros(1, 8, CONFIG.width))


def test_names_are_those_of_the_checkpoint() -> None:
    listed = json.loads((DATA / "names-dit-text.json").read_text())["text-umt5-xxl-original"]
    expected = {
        name.replace(".N.", f".{index}."): tuple(shape)
        for name, shape in listed["tensors"].items()
        for index in range(listed["blocks"])
    }
    with torch.device("meta"):
        model = TextEncoder(PRESETS["wan-1.3b"].text, 512)
    assert {name: tuple(shape) for name, shape in tensor_shapes(model).items()} == expected
