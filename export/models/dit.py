"""The causal Wan DiT, cut into the units of the chain (docs/interfaces.md).

Weights only, state passed in and out. A unit holds exactly the parameters that it reads, under the
names of the original Wan checkpoint: `DitIn`, `PromptIn` and `DitOut` at its root, `Block` and
`PromptKV` below `blocks.N.`. Symbols in shapes: B rows, S tokens per latent frame, D width,
N heads, K head_dim, W window, L text length, E text width, P time pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .presets import DitConfig
from .ring import ring_attention, ring_write

PATCH = 2


def rope_frequencies(pairs: int, theta: float) -> Tensor:
    """Angle per position of each complex pair of one axis, float64 [pairs]: theta**(-p/pairs)."""
    return theta ** (-torch.arange(pairs, dtype=torch.float64) / pairs)


def rope_axis(positions: Tensor, pairs: int, theta: float) -> Tensor:
    """cos and sin of one axis at `positions` [M]: float32 [2, M, pairs], angles in float64."""
    angles = positions.double()[:, None] * rope_frequencies(pairs, theta)
    angles = torch.remainder(angles, 2 * math.pi)
    return torch.stack([angles.cos(), angles.sin()]).float()


def rope_spatial(config: DitConfig, rows: int, columns: int) -> Tensor:
    """Rotary table of a grid of tokens, height pairs then width pairs: [2, S, K/2 - P]."""
    _, height_pairs, width_pairs = config.rope_pairs
    vertical = rope_axis(torch.arange(rows), height_pairs, config.rope_theta)
    horizontal = rope_axis(torch.arange(columns), width_pairs, config.rope_theta)
    return torch.cat(
        [
            vertical[:, :, None].expand(2, rows, columns, height_pairs),
            horizontal[:, None].expand(2, rows, columns, width_pairs),
        ],
        dim=-1,
    ).flatten(1, 2)


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Turn the complex pairs (2p, 2p+1) of x [B, N, S, K] by rope [B, 2, S, K/2] (cos, sin)."""
    cos, sin = rope[:, 0], rope[:, 1]
    if torch.onnx.is_in_onnx_export():
        return torch.onnx.ops.rotary_embedding(x, cos, sin, interleaved=True)
    cos, sin = cos[:, None], sin[:, None]  # [B, 1, S, K/2]
    real, imaginary = torch.unflatten(x, -1, (-1, 2)).unbind(-1)
    turned = torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1)
    return turned.flatten(-2)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, S, N*K] -> [B, N, S, K]."""
    return torch.unflatten(x, -1, (heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """[B, N, S, K] -> [B, S, N*K]."""
    return x.transpose(1, 2).flatten(2)


def modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """LayerNorm without affine of x [B, S, D], then scale and shift [B, 1, D]."""
    return F.layer_norm(x, x.shape[-1:], eps=eps) * (1 + scale) + shift


class SelfAttention(nn.Module):
    """Projections of self-attention; q and k are RMS-normalised over the whole width."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        width = config.width
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.o = nn.Linear(width, width)
        self.norm_q = nn.RMSNorm(width, config.eps)
        self.norm_k = nn.RMSNorm(width, config.eps)


class CrossQuery(nn.Module):
    """The half of cross-attention that reads the picture."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        width = config.width
        self.q = nn.Linear(width, width)
        self.o = nn.Linear(width, width)
        self.norm_q = nn.RMSNorm(width, config.eps)


class CrossKeys(nn.Module):
    """The half of cross-attention that reads the prompt."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        width = config.width
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.norm_k = nn.RMSNorm(width, config.eps)


class PromptIn(nn.Module):
    """Unit `prompt_in`: embeddings [1, L, E] -> context [1, L, D]."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_width, config.width),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.width, config.width),
        )

    def forward(self, embeddings: Tensor) -> Tensor:
        context: Tensor = self.text_embedding(embeddings)
        return context


class PromptKV(nn.Module):
    """Unit `prompt_kv` of one block: context [1, L, D] -> prompt_k, prompt_v [1, N, L, K]."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.cross_attn = CrossKeys(config)

    def forward(self, context: Tensor) -> tuple[Tensor, Tensor]:
        cross = self.cross_attn
        prompt_k = split_heads(cross.norm_k(cross.k(context)), self.heads)
        return prompt_k, split_heads(cross.v(context), self.heads)


class DitIn(nn.Module):
    """Unit `dit_in` for a latent of `latent_height` x `latent_width` cells.

    noisy [B, C, h, w], timestep [B] in 0..1000, rope_time [B, 2, P] (cos, sin) ->
    x [B, S, D], modulation [B, 6, D], head_modulation [B, D], rope [B, 2, S, K/2].
    """

    frequencies: Tensor
    spatial: Tensor

    def __init__(self, config: DitConfig, latent_height: int, latent_width: int) -> None:
        super().__init__()
        assert latent_height % PATCH == 0
        assert latent_width % PATCH == 0
        width = config.width
        patch = (1, PATCH, PATCH)
        self.patch_embedding = nn.Conv3d(config.latent_channels, width, patch, stride=patch)
        self.time_embedding = nn.Sequential(
            nn.Linear(config.frequency_width, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        frequencies = rope_frequencies(config.frequency_width // 2, 10000.0).float()
        spatial = rope_spatial(config, latent_height // PATCH, latent_width // PATCH)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.register_buffer("spatial", spatial, persistent=False)

    def forward(
        self, noisy: Tensor, timestep: Tensor, rope_time: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = self.patch_embedding(noisy.unsqueeze(2)).flatten(2).transpose(1, 2)
        # Every row goes through the small matrix products twice: on a CPU a product of one row
        # takes another path, whose last bits differ, and a row must not depend on its batch.
        angles = timestep[:, None, None] * self.frequencies.expand(2, -1)  # [B, 2, F/2]
        embedding = self.time_embedding(torch.cat([angles.cos(), angles.sin()], dim=-1))
        modulation = self.time_projection(embedding)[:, 0].unflatten(-1, (6, -1))
        time = rope_time.unsqueeze(2).expand(-1, -1, self.spatial.shape[1], -1)
        spatial = self.spatial.expand(noisy.shape[0], -1, -1, -1)
        return x, modulation, embedding[:, 0], torch.cat([time, spatial], dim=-1)


class Block(nn.Module):
    """Unit `block`: writes this frame's keys and values into the rings, attends to all of them.

    x [B, S, D], modulation [B, 6, D], rope [B, 2, S, K/2], write_index int64 [B],
    mask [B, 1, 1, W*S], prompt_k, prompt_v [B, N, L, K], k_ring, v_ring [B, N, W*S, K]
    -> x, k_ring, v_ring.
    """

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.eps = config.eps
        self.scale = config.head_dim**-0.5
        self.modulation = nn.Parameter(torch.zeros(1, 6, width))
        self.self_attn = SelfAttention(config)
        self.norm3 = nn.LayerNorm(width, config.eps)
        self.cross_attn = CrossQuery(config)
        self.ffn = nn.Sequential(
            nn.Linear(width, config.ffn),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.ffn, width),
        )

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        rope: Tensor,
        write_index: Tensor,
        mask: Tensor,
        prompt_k: Tensor,
        prompt_v: Tensor,
        k_ring: Tensor,
        v_ring: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = self.modulations(modulation)
        q, k, v = self.queries_keys_values(modulate(x, shift, scale, self.eps))
        k_ring = ring_write(k_ring, rotate(k, rope), write_index)
        v_ring = ring_write(v_ring, v, write_index)
        attended = ring_attention(rotate(q, rope) * self.scale, k_ring, v_ring, mask)
        x = x + self.self_attn.o(join_heads(attended)) * gate
        x = x + self.read_prompt(self.norm3(x), prompt_k, prompt_v)
        x = x + self.ffn(modulate(x, ffn_shift, ffn_scale, self.eps)) * ffn_gate
        return x, k_ring, v_ring

    def modulations(self, modulation: Tensor) -> tuple[Tensor, ...]:
        """Six tensors [B, 1, D]: shift, scale, gate of self-attention, then of feed-forward."""
        return (self.modulation + modulation).chunk(6, dim=1)

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, S, D], modulated -> q, k (not rotated), v [B, N, S, K]."""
        attn = self.self_attn
        q = split_heads(attn.norm_q(attn.q(x)), self.heads)
        k = split_heads(attn.norm_k(attn.k(x)), self.heads)
        return q, k, split_heads(attn.v(x), self.heads)

    def read_prompt(self, x: Tensor, prompt_k: Tensor, prompt_v: Tensor) -> Tensor:
        """Cross-attention without rotation: x [B, S, D], prompt [B, N, L, K] -> [B, S, D]."""
        cross = self.cross_attn
        q = split_heads(cross.norm_q(cross.q(x)), self.heads) * self.scale
        attended = F.scaled_dot_product_attention(q, prompt_k, prompt_v, scale=1.0)
        result: Tensor = cross.o(join_heads(attended))
        return result


class Head(nn.Module):
    """Parameters of the output: a modulation [1, 2, D] (shift, scale), a linear to one patch."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.head = nn.Linear(config.width, config.latent_channels * PATCH * PATCH)
        self.modulation = nn.Parameter(torch.zeros(1, 2, config.width))


class DitOut(nn.Module):
    """Unit `dit_out`: x [B, S, D], head_modulation [B, D] -> velocity [B, C, h, w]."""

    def __init__(self, config: DitConfig, latent_height: int, latent_width: int) -> None:
        super().__init__()
        self.grid = (latent_height // PATCH, latent_width // PATCH)
        self.channels = config.latent_channels
        self.eps = config.eps
        self.head = Head(config)

    def forward(self, x: Tensor, head_modulation: Tensor) -> Tensor:
        shift, scale = (self.head.modulation + head_modulation.unsqueeze(1)).chunk(2, dim=1)
        patches: Tensor = self.head.head(modulate(x, shift, scale, self.eps))
        patches = torch.unflatten(patches, -1, (PATCH, PATCH, self.channels))
        patches = torch.unflatten(patches, 1, self.grid)
        # [B, rows, columns, 2, 2, C] -> [B, C, rows, 2, columns, 2]
        return patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


class Dit(nn.Module):
    """All units of one model for one grid. Exists for loading, training and tests."""

    def __init__(self, config: DitConfig, latent_height: int, latent_width: int) -> None:
        super().__init__()
        self.config = config
        self.prompt_in = PromptIn(config)
        self.prompt_kv = nn.ModuleList(PromptKV(config) for _ in range(config.blocks))
        self.dit_in = DitIn(config, latent_height, latent_width)
        self.block = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.dit_out = DitOut(config, latent_height, latent_width)

    def units(self) -> Iterator[tuple[str, nn.Module]]:
        """Every unit with the prefix of its parameters in the checkpoint."""
        yield "", self.dit_in
        yield "", self.prompt_in
        for index, unit in enumerate(self.prompt_kv):
            yield f"blocks.{index}.", unit
        for index, unit in enumerate(self.block):
            yield f"blocks.{index}.", unit
        yield "", self.dit_out

    def checkpoint(self) -> dict[str, Tensor]:
        """Every parameter under its name in the original Wan checkpoint; storage is shared."""
        return {
            prefix + name: tensor
            for prefix, unit in self.units()
            for name, tensor in unit.state_dict().items()
        }


def checkpoint_shapes(config: DitConfig) -> dict[str, torch.Size]:
    """Every tensor of the original checkpoint of such a DiT."""
    with torch.device("meta"):
        dit = Dit(config, PATCH, PATCH)
    return {name: tensor.shape for name, tensor in dit.checkpoint().items()}
