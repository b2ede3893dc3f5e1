"""The UMT5 encoder, unit `text`, with the parameter names of the original Wan text checkpoint.

Weights only, one prompt at a time; tokenising is the runtime's business. Symbols in shapes: L text
length, E width, N heads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .presets import TextConfig

EPS = 1e-6


def relative_buckets(length: int, buckets: int, max_distance: int) -> Tensor:
    """Bucket of the distance key - query for every pair of positions: int64 [L (query), L (key)].

    Keys after the query use the upper half. In each half the first buckets hold one distance each,
    the rest grow logarithmically up to `max_distance` (T5, section 2.1).
    """
    position = torch.arange(length)
    distance = position[None, :] - position[:, None]
    half = buckets // 2
    exact = half // 2
    near = distance.abs()
    # float32 and this order of operations decide on which side of a bucket's edge a distance falls
    growth = torch.log(near.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (growth * (half - exact)).long()).clamp(max=half - 1)
    return torch.where(near < exact, near, far) + half * (distance > 0)


class TextAttention(nn.Module):
    """Self-attention without biases and without a scale, plus a position bias."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        inner = config.heads * config.head_dim
        self.heads = config.heads
        self.q = nn.Linear(config.width, inner, bias=False)
        self.k = nn.Linear(config.width, inner, bias=False)
        self.v = nn.Linear(config.width, inner, bias=False)
        self.o = nn.Linear(inner, config.width, bias=False)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        result: Tensor = self.o(attended.transpose(1, 2).flatten(2))
        return result


class TextFeedForward(nn.Module):
    """fc2(fc1(x) * GELU(gate(x))), no biases."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        gate = nn.Linear(config.width, config.ffn, bias=False)
        self.gate = nn.Sequential(gate, nn.GELU(approximate="tanh"))
        self.fc1 = nn.Linear(config.width, config.ffn, bias=False)
        self.fc2 = nn.Linear(config.ffn, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc2(self.fc1(x) * self.gate(x))
        return result


class PositionBias(nn.Module):
    """Learned bias per bucket and head, read with a constant table of buckets."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.buckets, config.heads)

    def forward(self, buckets: Tensor) -> Tensor:
        """buckets int64 [L, L] -> [1, N, L, L]."""
        bias: Tensor = self.embedding(buckets)
        return bias.permute(2, 0, 1).unsqueeze(0)


class TextBlock(nn.Module):
    """Pre-normalised attention and feed-forward: x [1, L, E] -> [1, L, E]."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(config.width, EPS)
        self.attn = TextAttention(config)
        self.norm2 = nn.RMSNorm(config.width, EPS)
        self.ffn = TextFeedForward(config)
        self.pos_embedding = PositionBias(config)

    def forward(self, x: Tensor, buckets: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), self.pos_embedding(buckets) + mask)
        result: Tensor = x + self.ffn(self.norm2(x))
        return result


class TextEncoder(nn.Module):
    """Unit `text`: token_ids int64 [1, L], token_mask float [1, L] -> embeddings [1, L, E].

    The mask is 1 for a token and 0 for padding, whose rows come out as 0, as Wan's DiT expects.
    """

    buckets: Tensor

    def __init__(self, config: TextConfig, length: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocabulary, config.width)
        self.blocks = nn.ModuleList(TextBlock(config) for _ in range(config.blocks))
        self.norm = nn.RMSNorm(config.width, EPS)
        buckets = relative_buckets(length, config.buckets, config.max_distance)
        self.register_buffer("buckets", buckets, persistent=False)

    def forward(self, token_ids: Tensor, token_mask: Tensor) -> Tensor:
        x = self.token_embedding(token_ids)
        # finite, so that a prompt without a token gives zeros and not NaN
        mask = (1 - token_mask)[:, None, None, :] * torch.finfo(x.dtype).min
        for block in self.blocks:
            x = block(x, self.buckets, mask)
        result: Tensor = self.norm(x) * token_mask.unsqueeze(-1)
        return result
