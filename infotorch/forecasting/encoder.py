"""Tokens to patches and back: attention blocks, the pooling of steps into patches, and who may attend to whom."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infotorch.core._checks import check_choice

__all__ = ["Block", "CrossAttention", "patch_mask", "pool_patches", "rotate", "step_mask"]


def patch_mask(ids: Tensor, patches: int, window: int | None = None) -> Tensor:
    """Which steps a patch sees: those of patch j for ``j <= p < j + window``.

    Args:
        ids: Patch of every step, ``(N, L)``.
        patches: Number of patches P.
        window: 1 or None: its own steps only. A large one: all steps up to the patch's end.

    Returns:
        Boolean, ``(N, P, L)``.

    Raises:
        ValueError: ``window`` is not positive.

    >>> patch_mask(torch.tensor([[0, 0, 1]]), 2, window=2).int()
    tensor([[[1, 1, 0],
             [1, 1, 1]]], dtype=torch.int32)
    """
    if window is not None and window < 1:
        raise ValueError(f"window: expected a positive integer or None, got {window}")
    back = torch.arange(patches, device=ids.device).view(1, -1, 1) - ids.unsqueeze(1)
    return (back >= 0) & (back < (window or 1))


def step_mask(ids: Tensor, patches: int, window: int | None = None) -> Tensor:
    """Which patches a step sees, ``(N, L, P)``: patch j where its own, i, has ``j <= i < j + window``.

    Arguments are those of :func:`patch_mask`.

    >>> step_mask(torch.tensor([[0, 0, 1]]), 2, window=2).int()
    tensor([[[1, 0],
             [1, 0],
             [1, 1]]], dtype=torch.int32)
    """
    back = ids.unsqueeze(2) - torch.arange(patches, device=ids.device)
    return (back >= 0) & (back < (window or 1))


def pool_patches(h: Tensor, ids: Tensor, patches: int, mode: str = "max") -> Tensor:
    """Maximum or mean of the steps of every patch, ``(N, L, D)`` to ``(N, P, D)``; 0 for a patch without steps.

    Raises:
        ValueError: Unknown ``mode``.

    >>> pool_patches(torch.tensor([[[-2.0], [-1.0], [-4.0]]]), torch.tensor([[0, 0, 2]]), 3).squeeze()
    tensor([-1.,  0., -4.])
    """
    check_choice("mode", mode, ("max", "mean"))
    index = ids.unsqueeze(2).expand_as(h)
    empty = h.new_zeros(h.shape[0], patches, h.shape[2])
    return empty.scatter_reduce(1, index, h, {"max": "amax", "mean": "mean"}[mode], include_self=False)


def rotate(x: Tensor, heads: int = 1, theta: float = 1e4) -> Tensor:
    """Rotary positions: neighboring pairs of features are turned by an angle that grows with the position.

    Args:
        x: Shape ``(..., L, heads * d)`` with even d; all heads are turned alike.
        heads: Number of heads.
        theta: Base of the frequencies.

    Reference: J. Su et al., "RoFormer", 2021, arXiv:2104.09864.

    >>> rotate(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    tensor([[1.0000, 0.0000],
            [0.5403, 0.8415]])
    """
    length, width = x.shape[-2:]
    feature = torch.arange(width // heads, device=x.device)
    rates = theta ** -(feature // 2 * 2 / len(feature))
    angle = torch.arange(length, device=x.device, dtype=torch.float32).unsqueeze(1) * rates
    cos, sin = angle.cos(), torch.where(feature % 2 == 0, -angle.sin(), angle.sin())
    # Partners change places, over all heads at once: strided products of the halves would take thrice as long.
    partner = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return x * cos.repeat(1, heads).to(x.dtype) + partner * sin.repeat(1, heads).to(x.dtype)


class _Attention(nn.Module):
    """Multi-head attention without biases."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads or dim // heads % 2:
            raise ValueError(f"dim, heads: expected an even dim / heads, got {dim} and {heads}")
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim, bias=False) for _ in range(4))

    def forward(self, q: Tensor, kv: Tensor, mask: Tensor | None, *, causal: bool = False, rotary: bool) -> Tensor:
        query, key, value = self.query(q), self.key(kv), self.value(kv)
        if rotary:
            query, key = rotate(query, self.heads), rotate(key, self.heads)
        attended = F.scaled_dot_product_attention(
            *(x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (query, key, value)),
            attn_mask=None if mask is None else mask.unsqueeze(1),
            is_causal=causal,
        )
        return self.out(attended.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Transformer block: RMSNorm, self-attention with rotary positions, RMSNorm, SwiGLU; no biases.

    Args:
        dim: Width.
        heads: Attention heads; ``dim / heads`` must be even.
        multiple_of: The hidden width is ``8 dim / 3`` rounded up to a multiple of this.

    Raises:
        ValueError: Sizes that do not fit each other.

    >>> Block(8, 2, multiple_of=16)(torch.zeros(1, 5, 8), causal=True).shape
    torch.Size([1, 5, 8])
    """

    def __init__(self, dim: int, heads: int, multiple_of: int = 256) -> None:
        super().__init__()
        hidden = -(int(8 * dim / 3) // -multiple_of) * multiple_of
        self.attention_norm, self.mlp_norm = nn.RMSNorm(dim, eps=1e-5), nn.RMSNorm(dim, eps=1e-5)
        self.attention = _Attention(dim, heads)
        self.gate, self.up = nn.Linear(dim, hidden, bias=False), nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, causal: bool = False) -> Tensor:
        """``(N, L, dim)`` to the same; ``mask (N, 1 or L, L)`` is true where a row may look."""
        z = self.attention_norm(x)
        x = x + self.attention(z, z, mask, causal=causal, rotary=True)
        z = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(z)) * self.up(z))


class CrossAttention(nn.Module):
    """Queries that gather from other states: ``q + RMSNorm(q) + attention(RMSNorm(q), RMSNorm(kv))``.

    That the normalized query is added to the raw one is the authors' code. A query that may see nothing gathers
    nothing.

    >>> layer = CrossAttention(8, 2)
    >>> q = torch.zeros(1, 3, 8)
    >>> layer(q, torch.ones(1, 5, 8), torch.zeros(1, 3, 5, dtype=torch.bool)).abs().max().item()
    0.0
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.query_norm, self.state_norm = nn.RMSNorm(dim, eps=1e-5), nn.RMSNorm(dim, eps=1e-5)
        self.attention = _Attention(dim, heads)

    def forward(self, q: Tensor, kv: Tensor, mask: Tensor) -> Tensor:
        """``q (N, P, dim)``, ``kv (N, L, dim)``, boolean ``mask (N, P, L)``."""
        z = self.query_norm(q)
        sees = mask.any(-1, keepdim=True)
        # A row without keys has no softmax; it attends to all of them, and the result is dropped.
        gathered = self.attention(z, self.state_norm(kv), mask | ~sees, rotary=False)
        return q + z + gathered * sees
