r"""Attention blocks for sets: what they compute does not depend on the order of the points.

Reference: J. Lee et al., "Set Transformer: A framework for attention-based permutation-invariant neural networks",
2019, arXiv:1810.00825. The blocks normalize after each residual sum and put no dropout on the attention weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infotorch.core._checks import check_choice

ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu}


class AttentionBlock(nn.Module):
    r"""Queries attend to points; two normalized residual sums.

    :math:`h = \mathrm{LN}(q + \mathrm{MHA}(q, x, x))`, :math:`\mathrm{LN}(h + W_2\, a(W_1 h))`.

    Args:
        dim: Width of queries and points.
        heads: Attention heads, a divisor of ``dim``.
        feedforward: Width of the hidden layer; None: ``dim``.
        activation: ``"gelu"`` or ``"relu"``.

    Raises:
        ValueError: ``heads`` does not divide ``dim``, an unknown activation.

    >>> import torch
    >>> AttentionBlock(8, 2)(torch.zeros(1, 3, 8), torch.zeros(1, 5, 8)).shape
    torch.Size([1, 3, 8])
    """

    def __init__(self, dim: int, heads: int, feedforward: int | None = None, *, activation: str = "gelu") -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"heads: expected a divisor of dim={dim}, got {heads}")
        self.activation = ACTIVATIONS[check_choice("activation", activation, ACTIVATIONS)]
        self.mha = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.linear1, self.linear2 = nn.Linear(dim, feedforward or dim), nn.Linear(feedforward or dim, dim)

    def forward(self, queries: Tensor, points: Tensor, padding: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            queries: Shape ``(B, q, dim)``.
            points: Shape ``(B, n, dim)``.
            padding: True where there is no point, ``(B, n)``; at least one point in every row.

        Returns:
            Shape ``(B, q, dim)``.
        """
        h = self.norm1(queries + _attend(self.mha, queries, points, padding))
        return self.norm2(h + self.linear2(self.activation(self.linear1(h))))


class SelfAttention(nn.Module):
    """An `AttentionBlock` of a set with itself: ``O(n^2)``.

    >>> import torch
    >>> SelfAttention(8, 2)(torch.zeros(1, 5, 8)).shape
    torch.Size([1, 5, 8])
    """

    def __init__(self, dim: int, heads: int, *, activation: str = "gelu") -> None:
        super().__init__()
        self.mab = AttentionBlock(dim, heads, activation=activation)

    def forward(self, points: Tensor, padding: Tensor | None = None) -> Tensor:
        """Points ``(B, n, dim)`` to as many."""
        return self.mab(points, points, padding)


class InducedSelfAttention(nn.Module):
    """Self-attention by way of a few learned points: ``O(n * inducing)``.

    >>> import torch
    >>> InducedSelfAttention(8, 2, inducing=4)(torch.zeros(1, 5, 8)).shape
    torch.Size([1, 5, 8])
    """

    def __init__(
        self, dim: int, heads: int, *, inducing: int, feedforward: int | None = None, activation: str = "gelu"
    ) -> None:
        super().__init__()
        self.i = _learned_points(inducing, dim)
        self.mab0 = AttentionBlock(dim, heads, feedforward, activation=activation)
        self.mab1 = AttentionBlock(dim, heads, feedforward, activation=activation)

    def forward(self, points: Tensor, padding: Tensor | None = None) -> Tensor:
        """Points ``(B, n, dim)`` to as many."""
        return self.mab1(points, self.mab0(self.i.expand(len(points), -1, -1), points, padding))


class AttentionPooling(nn.Module):
    """A set of any size to ``seeds`` vectors, by learned queries.

    >>> import torch
    >>> AttentionPooling(8, 2, seeds=3)(torch.zeros(1, 5, 8)).shape
    torch.Size([1, 3, 8])
    """

    def __init__(self, dim: int, heads: int, *, seeds: int, activation: str = "gelu") -> None:
        super().__init__()
        self.s = _learned_points(seeds, dim)
        self.mab = AttentionBlock(dim, heads, activation=activation)

    def forward(self, points: Tensor, padding: Tensor | None = None) -> Tensor:
        """Points ``(B, n, dim)`` to ``(B, seeds, dim)``."""
        return self.mab(self.s.expand(len(points), -1, -1), points, padding)


def _attend(mha: nn.MultiheadAttention, queries: Tensor, points: Tensor, padding: Tensor | None) -> Tensor:
    """``mha(queries, points, points)`` without the weights ``(B, q, n)``, which torch's own inference path writes out.

    That path is taken where no gradient is wanted, and needs twice the time and many times the memory on a CPU.
    """
    dim, shape = mha.embed_dim, (mha.num_heads, mha.head_dim)
    weight, bias = mha.in_proj_weight, mha.in_proj_bias
    if queries is points:
        q, k, v = F.linear(points, weight, bias).chunk(3, -1)
    else:
        q = F.linear(queries, weight[:dim], bias[:dim])
        k, v = F.linear(points, weight[dim:], bias[dim:]).chunk(2, -1)
    q, k, v = (z.unflatten(-1, shape).transpose(1, 2) for z in (q, k, v))
    present = None if padding is None else ~padding[:, None, None]
    found = F.scaled_dot_product_attention(q, k, v, attn_mask=present)
    return mha.out_proj(found.transpose(1, 2).flatten(2))


def _learned_points(count: int, dim: int) -> nn.Parameter:
    if count < 1:
        raise ValueError(f"inducing, seeds: expected a positive int, got {count}")
    return nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, count, dim)))
