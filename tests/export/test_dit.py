"""The causal DiT: diffusers on one frame, the laws of streaming, independence of rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Self, get_args

import numpy as np
import onnxruntime
import pytest
import torch
from diffusers import WanTransformer3DModel
from standard_operators import standard_operators
from torch import Tensor, nn
from torch.nn import functional as F

from export.checkpoints import fill_dit
from export.formats import dit_from_diffusers
from export.models.dit import Dit, join_heads, modulate, rope_axis, rope_frequencies, rotate
from export.models.presets import DitConfig
from export.models.ring import ring_attention, ring_write
from export.onnx import PREFIX, export_graph
from export.random_weights import random_dit
from rt import ops

TOLERANCE = 1e-4
CHUNKS = 40
HEIGHT, WIDTH = 4, 6
TOKENS = HEIGHT * WIDTH // 4
WINDOWS = [(6, 3), (6, 0), (5, 4), (3, 1), (1, 0)]
Positions = Literal["absolute", "window"]
POSITIONS = get_args(Positions)


def config_of(head_dim: int, blocks: int = 2) -> DitConfig:
    return DitConfig(
        width=2 * head_dim,
        ffn=3 * head_dim,
        heads=2,
        blocks=blocks,
        text_length=7,
        text_width=24,
        head_dim=head_dim,
    )


STREAMED = config_of(24)


def dit_of(config: DitConfig, height: int = HEIGHT, width: int = WIDTH) -> Dit:
    dit = Dit(config, height, width).eval().requires_grad_(False)
    fill_dit(dit, random_dit(config, seed=1))
    return dit


@pytest.fixture(scope="module")
def streamed() -> Dit:
    return dit_of(STREAMED)


def rope_time(dit: Dit, positions: Tensor) -> Tensor:
    """What the runtime gives: cos, sin of the time angles [B, 2, P]."""
    pairs, theta = dit.config.rope_pairs[0], dit.config.rope_theta
    return rope_axis(positions, pairs, theta).transpose(0, 1)


def slot(index: int, window: int, sinks: int) -> int:
    """Where frame `index` is written."""
    return index if index < window else sinks + (index - sinks) % (window - sinks)


@dataclass
class Rings:
    """Rings of all blocks for some rows, with the un-rotated time channels of their sinks."""

    dit: Dit
    window: int
    sinks: int
    positions: Positions
    k: Tensor
    v: Tensor
    time: Tensor
    index: Tensor

    @classmethod
    def empty(cls, dit: Dit, rows: int, window: int, sinks: int, positions: Positions) -> Self:
        c = dit.config
        ring = (c.blocks, rows, c.heads, window * TOKENS, c.head_dim)
        side = (c.blocks, rows, c.heads, sinks * TOKENS, 2 * c.rope_pairs[0])
        index = torch.full((c.blocks, rows, sinks), -1)
        tensors = torch.zeros(ring), torch.zeros(ring), torch.zeros(side), index
        return cls(dit, window, sinks, positions, *tensors)

    def refresh(self, row: int, query: int) -> None:
        """Steps 1 and 3 of docs/interfaces.md "Ring and sinks", after frame `query - 1`."""
        last, channels = query - 1, self.time.shape[-1]
        keys = self.k[:, row, ..., :channels]
        if 0 <= last < self.sinks:
            place = slice(last * TOKENS, (last + 1) * TOKENS)
            self.time[:, row, :, place] = self.turned(keys[:, :, place], -last)
        if self.positions == "window" and query >= self.window:
            for sink in range(self.sinks):
                place = slice(sink * TOKENS, (sink + 1) * TOKENS)
                position = query - (self.window - 1) + sink
                keys[:, :, place] = self.turned(self.time[:, row, :, place], position)

    def turned(self, x: Tensor, position: int) -> Tensor:
        """Time channels [blocks, N, S, 2P] rotated by `position`."""
        rope = rope_time(self.dit, torch.tensor([position]))[:, :, None].expand(-1, -1, TOKENS, -1)
        return rotate(x, rope)


class RingsOfRuntime(Rings):
    """The same, with the runtime's operator."""

    def refresh(self, row: int, query: int) -> None:
        one = slice(row, row + 1)
        ops.refresh_sinks(
            *(t[:, one].numpy() for t in (self.k, self.v, self.time, self.index)),
            np.array([query - 1]),
            np.array([query]),
            window=self.window,
            sinks=self.sinks,
            tokens_per_frame=TOKENS,
            theta=self.dit.config.rope_theta,
            threshold=None,
            positions=self.positions,
        )


def run_pass(
    rings: Rings, noisy: Tensor, timestep: Tensor, prompt: Tensor, indices: list[int]
) -> Tensor:
    """One pass of all blocks over rows at the frames `indices`: velocity [B, 16, h, w]."""
    dit, window, sinks = rings.dit, rings.window, rings.sinks
    for row, index in enumerate(indices):
        rings.refresh(row, index)
    x, modulation, head_modulation, rope = dit.dit_in(
        noisy, timestep, rope_time(dit, torch.tensor(indices))
    )
    write = torch.tensor([slot(i, window, sinks) * TOKENS for i in indices])
    visible = torch.tensor([min(i + 1, window) * TOKENS for i in indices])
    hidden = torch.arange(window * TOKENS) >= visible[:, None]
    mask = torch.zeros(hidden.shape).masked_fill(hidden, -math.inf)[:, None, None]
    for index, (block, kv) in enumerate(zip(dit.block, dit.prompt_kv, strict=True)):
        prompt_k, prompt_v = (t.expand(len(indices), -1, -1, -1) for t in kv(prompt))
        x, rings.k[index], rings.v[index] = block(
            x, modulation, rope, write, mask, prompt_k, prompt_v, rings.k[index], rings.v[index]
        )
    velocity: Tensor = dit.dit_out(x, head_modulation)
    return velocity


@dataclass(frozen=True)
class Video:
    """Noisy latents [T, 16, h, w], a timestep for each [T], and one prompt's context [1, L, D]."""

    noisy: Tensor
    timestep: Tensor
    prompt: Tensor

    @staticmethod
    def random(dit: Dit, seed: int, frames: int = CHUNKS) -> Video:
        g = torch.Generator().manual_seed(seed)
        c = dit.config
        embeddings = torch.randn(1, c.text_length, c.text_width, generator=g)
        return Video(
            torch.randn(frames, c.latent_channels, HEIGHT, WIDTH, generator=g),
            torch.randint(1, 1000, (frames,), generator=g).float(),
            dit.prompt_in(embeddings),
        )

    def stream(self, rings: Rings) -> Tensor:
        """One session, one row: velocities [T, 16, h, w]."""
        frames = [
            run_pass(rings, self.noisy[i : i + 1], self.timestep[i : i + 1], self.prompt, [i])
            for i in range(len(self.noisy))
        ]
        return torch.cat(frames)


def seen(index: int, window: int, sinks: int) -> list[int]:
    """The frames that frame `index` attends to: sinks, the last `window - sinks` with itself."""
    first = max(index - (window - sinks) + 1, 0)
    return sorted({*range(min(sinks, index + 1)), *range(first, index + 1)})


def key_position(query: int, key: int, window: int, sinks: int, positions: Positions) -> int:
    """Where frame `query`, itself at `query`, sees frame `key`: rolling as it is, sinks moved."""
    if positions == "window" and key < sinks:
        return query - (min(query, window - 1) - key)
    return key


def whole(dit: Dit, video: Video, window: int, sinks: int, positions: Positions) -> Tensor:
    """The oracle: every layer once over all frames, each query rotating raw keys for itself."""
    frames = len(video.noisy)
    x, modulation, head_modulation, _ = dit.dit_in(
        video.noisy, video.timestep, rope_time(dit, torch.arange(frames))
    )

    def ropes(at: list[int]) -> Tensor:
        positions = torch.tensor(at)
        nothing = torch.zeros(len(at), *video.noisy.shape[1:])
        rope: Tensor = dit.dit_in(nothing, positions.float(), rope_time(dit, positions))[3]
        return rope

    for block, kv in zip(dit.block, dit.prompt_kv, strict=True):
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = block.modulations(modulation)
        q, k, v = block.queries_keys_values(modulate(x, shift, scale, block.eps))
        attended = []
        for i in range(frames):
            keys = seen(i, window, sinks)
            at = [key_position(i, j, window, sinks, positions) for j in keys]
            turned = rotate(k[keys], ropes(at))  # [M, N, S, K]
            attended.append(
                F.scaled_dot_product_attention(
                    rotate(q[i : i + 1], ropes([i])),
                    turned.transpose(0, 1).flatten(1, 2)[None],
                    v[keys].transpose(0, 1).flatten(1, 2)[None],
                )
            )
        x = x + block.self_attn.o(join_heads(torch.cat(attended))) * gate
        prompt_k, prompt_v = (t.expand(frames, -1, -1, -1) for t in kv(video.prompt))
        x = x + block.read_prompt(block.norm3(x), prompt_k, prompt_v)
        x = x + block.ffn(modulate(x, ffn_shift, ffn_scale, block.eps)) * ffn_gate
    velocity: Tensor = dit.dit_out(x, head_modulation)
    return velocity


def worst(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def diffusers_of(config: DitConfig, dit: Dit) -> WanTransformer3DModel:
    oracle = WanTransformer3DModel(
        num_attention_heads=config.heads,
        attention_head_dim=config.head_dim,
        text_dim=config.text_width,
        freq_dim=config.frequency_width,
        ffn_dim=config.ffn,
        num_layers=config.blocks,
        rope_max_seq_len=16,
    )
    state = dit.checkpoint()
    named = {name: state[dit_from_diffusers(name)] for name in oracle.state_dict()}
    oracle.load_state_dict(named)
    return oracle.eval().requires_grad_(False)


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("index", [0, 9])
def test_empty_window_equals_diffusers(head_dim: int, index: int) -> None:
    """Also at a later index with a hidden window: only differences of position matter."""
    config = config_of(head_dim)
    dit = dit_of(config)
    g = torch.Generator().manual_seed(head_dim)
    noisy = torch.randn(2, 16, HEIGHT, WIDTH, generator=g)
    timestep = torch.tensor([700.0, 123.0])
    embeddings = torch.randn(1, config.text_length, config.text_width, generator=g)

    expected = diffusers_of(config, dit)(
        noisy[:, :, None], timestep, embeddings.expand(2, -1, -1), return_dict=False
    )[0][:, :, 0]

    x, modulation, head_modulation, rope = dit.dit_in(
        noisy, timestep, rope_time(dit, torch.tensor([index, index]))
    )
    context = dit.prompt_in(embeddings)
    mask = torch.full((2, 1, 1, 3 * TOKENS), -math.inf)
    mask[..., TOKENS : 2 * TOKENS] = 0
    for block, kv in zip(dit.block, dit.prompt_kv, strict=True):
        prompt = [t.expand(2, -1, -1, -1) for t in kv(context)]
        rings = [torch.zeros(2, config.heads, 3 * TOKENS, head_dim) for _ in "kv"]
        write = torch.tensor([TOKENS, TOKENS])
        x, _, _ = block(x, modulation, rope, write, mask, *prompt, *rings)
    assert worst(dit.dit_out(x, head_modulation), expected) <= TOLERANCE
    assert 0.3 < float(expected.std()) < 3


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize(("window", "sinks"), WINDOWS)
def test_stream_equals_one_pass(
    streamed: Dit, window: int, sinks: int, positions: Positions
) -> None:
    video = Video.random(streamed, seed=window * 10 + sinks)
    got = video.stream(Rings.empty(streamed, 1, window, sinks, positions))
    assert worst(got, whole(streamed, video, window, sinks, positions)) <= TOLERANCE


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize(("window", "sinks"), [(6, 3), (5, 4), (3, 1)])
def test_stream_with_the_operator_equals_one_pass(
    streamed: Dit, window: int, sinks: int, positions: Positions
) -> None:
    video = Video.random(streamed, seed=8)
    got = video.stream(RingsOfRuntime.empty(streamed, 1, window, sinks, positions))
    assert worst(got, whole(streamed, video, window, sinks, positions)) <= TOLERANCE


def test_oracle_sees_what_it_should(streamed: Dit) -> None:
    """The two laws differ, and so do windows: the oracle above is not blind to them."""
    video = Video.random(streamed, seed=3, frames=12)
    window = whole(streamed, video, 6, 3, "window")
    assert worst(window[:6], whole(streamed, video, 6, 3, "absolute")[:6]) <= TOLERANCE
    assert worst(window[6:], whole(streamed, video, 6, 3, "absolute")[6:]) > 100 * TOLERANCE
    assert worst(window[6:], whole(streamed, video, 6, 2, "window")[6:]) > 100 * TOLERANCE


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_hidden_slots_may_hold_any_finite_number(streamed: Dit, size: float) -> None:
    """Law 8. NaN and infinity are not promised (0 * NaN is NaN): rings start as zeros."""
    video = Video.random(streamed, seed=4, frames=8)
    clean, dirty = (Rings.empty(streamed, 1, 6, 3, "window") for _ in range(2))
    g = torch.Generator().manual_seed(0)
    for ring in (dirty.k, dirty.v):
        ring.copy_(torch.randn(ring.shape, generator=g) * size)
    assert torch.equal(video.stream(dirty), video.stream(clean))


def test_rows_of_a_batch_are_independent(streamed: Dit) -> None:
    """Two sessions at different frames in one batch equal each alone."""
    videos = [Video.random(streamed, seed=seed, frames=14) for seed in (5, 6)]
    alone = [v.stream(Rings.empty(streamed, 1, 4, 2, "window")) for v in videos]
    lead = 5
    both = Rings.empty(streamed, 2, 4, 2, "window")
    ahead = Rings.empty(streamed, 1, 4, 2, "window")
    for i in range(lead):
        first = videos[0]
        run_pass(ahead, first.noisy[i : i + 1], first.timestep[i : i + 1], first.prompt, [i])
    for batched, single in ((both.k, ahead.k), (both.v, ahead.v), (both.time, ahead.time)):
        batched[:, 0] = single[:, 0]
    for i in range(14 - lead):
        indices = [i + lead, i]
        noisy = torch.stack([v.noisy[j] for v, j in zip(videos, indices, strict=True)])
        timestep = torch.stack([v.timestep[j] for v, j in zip(videos, indices, strict=True)])
        got = run_pass(both, noisy, timestep, videos[0].prompt, indices)
        assert worst(got[0], alone[0][i + lead]) <= 1e-5
    videos[1] = Video(videos[1].noisy, videos[1].timestep, videos[0].prompt)
    expected = videos[1].stream(Rings.empty(streamed, 1, 4, 2, "window"))
    assert worst(got[1], expected[14 - lead - 1]) <= 1e-5


def test_ring_write_replaces_one_slot_per_row() -> None:
    ring = torch.arange(2 * 3 * 6 * 2.0).reshape(2, 3, 6, 2)
    update = -torch.ones(2, 3, 2, 2)
    got = ring_write(ring, update, torch.tensor([4, 0]))
    expected = ring.clone()
    expected[0, :, 4:] = -1
    expected[1, :, :2] = -1
    assert torch.equal(got, expected)


def test_ring_attention_is_softmax_without_scale() -> None:
    q, k, v = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 12, 8), torch.randn(2, 3, 12, 8)
    mask = torch.zeros(2, 1, 1, 12)
    mask[0, ..., 5:] = -math.inf
    expected = torch.softmax(q @ k.transpose(-1, -2) + mask, dim=-1) @ v
    assert worst(ring_attention(q, k, v, mask), expected) <= 1e-5


def test_rope_is_exact_far_into_a_stream() -> None:
    """Angles are those of an exact product reduced modulo 2 pi, also after a month at 16 fps."""
    far = 10_000_019
    turns = [math.fmod(far * float(f), 2 * math.pi) for f in rope_frequencies(22, 10000.0)]
    cos, sin = rope_axis(torch.tensor([far]), 22, 10000.0)[:, 0]
    np.testing.assert_allclose(cos, np.cos(turns), atol=1e-7)
    np.testing.assert_allclose(sin, np.sin(turns), atol=1e-7)


def units(dit: Dit, rows: int) -> Iterator[tuple[nn.Module, dict[str, Tensor], list[str]]]:
    """Units that run on batches, with random inputs by name and the names of their outputs."""
    c, window = dit.config, 3
    g = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(rows, *shape, generator=g)

    enter = {
        "noisy": normal(c.latent_channels, HEIGHT, WIDTH),
        "timestep": torch.tensor([700.0, 500.0, 333.3, 1.0])[:rows],
        "rope_time": normal(2, c.rope_pairs[0]),
    }
    yield dit.dit_in, enter, ["x", "modulation", "head_modulation", "rope"]
    mask = torch.zeros(rows, 1, 1, window * TOKENS)
    mask[0, ..., 2 * TOKENS :] = -math.inf
    ring, prompt = (c.heads, window * TOKENS, c.head_dim), (c.heads, c.text_length, c.head_dim)
    through = {
        "x": normal(TOKENS, c.width),
        "modulation": normal(6, c.width),
        "rope": normal(2, TOKENS, c.head_dim // 2),
        "write_index": torch.tensor([1, 0, 2, 1])[:rows] * TOKENS,
        "mask": mask,
        "prompt_k": normal(*prompt),
        "prompt_v": normal(*prompt),
        "k_ring": normal(*ring),
        "v_ring": normal(*ring),
    }
    yield dit.block[0], through, ["x_next", "k_ring_next", "v_ring_next"]
    leave = {"x": normal(TOKENS, c.width), "head_modulation": normal(c.width)}
    yield dit.dit_out, leave, ["velocity"]


def compiled(
    module: nn.Module, inputs: dict[str, Tensor], outputs: list[str]
) -> Callable[..., list[np.ndarray]]:
    """The exported unit in ONNX Runtime, with its weights as inputs: the harder case for law 4,
    because weights that are not constant are not packed and one row takes another path.
    """
    graph = export_graph(module, tuple(inputs.values()), list(inputs), outputs, batched=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        standard_operators(graph).model.SerializeToString(), options
    )
    state = module.state_dict()
    weights = {PREFIX + name: state[name].numpy() for name in graph.weights}

    def run(rows: slice) -> list[np.ndarray]:
        given = {name: tensor[rows].numpy() for name, tensor in inputs.items()}
        return session.run(outputs, {**weights, **given})

    return run


@pytest.mark.parametrize("kind", [0, 1, 2], ids=["dit_in", "block", "dit_out"])
def test_onnx_rows_do_not_depend_on_the_batch(streamed: Dit, kind: int) -> None:
    """ONNX Runtime equals PyTorch, and a row is bit-identical in any batch of 1 to 4 (law 4)."""
    module, inputs, outputs = list(units(streamed, 4))[kind]
    run = compiled(module, inputs, outputs)
    together = run(slice(0, 4))
    expected = module(*inputs.values())
    expected = expected if isinstance(expected, tuple) else (expected,)
    for got, tensor in zip(together, expected, strict=True):
        assert worst(torch.from_numpy(got), tensor) <= TOLERANCE
    for first in range(4):
        for stop in range(first + 1, 5):
            for part, full in zip(run(slice(first, stop)), together, strict=True):
                np.testing.assert_array_equal(part, full[first:stop])
