"""The two operators of the KV ring: write one latent frame, attend to the whole ring.

In PyTorch they are functions without side effects. While a graph is exported to ONNX they become
nodes of our own domain `sdrt`, without attributes, which `export/onnx.py` lowers per backend:

    RingWrite(ring [B, N, W*S, K], update [B, N, S, K], write_index int64 [B]) -> ring
    RingAttention(q [B, N, S, K], k, v [B, N, W*S, K], mask [B, 1, 1, W*S]) -> [B, N, S, K]
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

RING_WRITE = "sdrt::RingWrite"
RING_ATTENTION = "sdrt::RingAttention"


def ring_write(ring: Tensor, update: Tensor, write_index: Tensor) -> Tensor:
    """The ring with tokens `[write_index[b], write_index[b] + S)` of row b replaced by `update[b]`.

    ring [B, N, W*S, K], update [B, N, S, K], write_index int64 [B], a multiple of S and at most
    (W-1)*S, so that no write wraps. Returns a new tensor; a backend may update in place.
    """
    if torch.onnx.is_in_onnx_export():
        inputs = (ring, update, write_index)
        return torch.onnx.ops.symbolic(RING_WRITE, inputs, dtype=ring.dtype, shape=ring.shape)
    tokens = write_index[:, None] + torch.arange(update.shape[2], device=ring.device)  # [B, S]
    rows = torch.arange(ring.shape[0], device=ring.device)[:, None]
    # index_put is what inductor turns into a write in place; it would copy the ring for a scatter.
    update = update.transpose(1, 2).to(ring.dtype)  # [B, S, N, K]
    written: Tensor = torch.ops.aten.index_put(ring, [rows, None, tokens], update)
    return written


def ring_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """softmax(q k^T + mask) v without a scale: the caller has multiplied q by 1/sqrt(K).

    q [B, N, S, K], k and v [B, N, W*S, K], mask [B, 1, 1, W*S]: 0 for visible and -inf for hidden
    tokens; every row sees at least one. Hidden tokens may hold any garbage that is finite and has a
    finite product with q. NaN or infinity would survive, because 0 * NaN is NaN; rings start as
    zeros, so neither gets in.
    """
    if torch.onnx.is_in_onnx_export():
        return torch.onnx.ops.symbolic(
            RING_ATTENTION, (q, k, v, mask), dtype=q.dtype, shape=q.shape
        )
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
