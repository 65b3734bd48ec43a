r"""Sums over all pairs of points on a line in ``O(n log n)``, with gradients.

Everything is batched over leading dimensions and runs in float64. The workhorse is :func:`dominance`, which adds
up, for every point, what lies before it in two orders at once.

On a line all sums of distances are piecewise linear, so values follow from gradients (Euler's theorem):
:math:`\sum_{ij} w_i w_j |x_i - x_j| b_{ij} = 2 \sum_i w_i x_i g_i` with
:math:`g_i = \sum_j w_j \operatorname{sign}(x_i - x_j) b_{ij}`. One pass therefore gives both. Ties are exact:
a tied pair has sign 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infotorch.core._autograd import first_order

_DENSE = 32  # nodes of at most this many points are compared pair by pair
_CHUNK = 1 << 9  # such nodes at a time, for the comparisons to stay in the cache


@dataclass(frozen=True)
class Order:
    """Points of a line in ascending order.

    Attributes:
        index: ``[..., n]``: the point at every position.
        low: ``[..., n]``: how many points lie strictly below the one at a position.
        high: ``[..., n]``: how many lie at or below it.
    """

    index: Tensor
    low: Tensor
    high: Tensor

    def signs(self, mass: Tensor) -> Tensor:
        """``sum_j m_j sign(x_i - x_j)`` for masses in the points' own order."""
        total = _before(mass.expand_as(self.index).gather(-1, self.index))
        at_position = total.gather(-1, self.low) + total.gather(-1, self.high) - total[..., -1:]
        return torch.empty_like(at_position).scatter_(-1, self.index, at_position)


def order_of(x: Tensor, ties: Tensor | None = None) -> Order:
    """Sort ``x [..., n]``; tied points keep the order that ``ties`` (a permutation) puts them in."""
    return _order_of_keys(_integers(x), ties)


def _order_of_keys(key: Tensor, ties: Tensor | None = None) -> Order:
    if ties is not None:
        key = key.gather(-1, ties)
    values, index = key.sort(dim=-1, stable=True)
    if ties is not None:
        index = ties.gather(-1, index)
    position = torch.arange(key.shape[-1], device=key.device).expand(key.shape)
    first = torch.ones_like(values, dtype=torch.bool)
    first[..., 1:] = values[..., 1:] != values[..., :-1]
    if bool(first.all()):
        return Order(index, position, position + 1)
    # Groups of tied points: each row starts one, so counting over the flattened rows keeps rows apart.
    starts = torch.cat((first.flatten().nonzero().squeeze(1), position.new_tensor([first.numel()])))
    group = first.flatten().cumsum(0).sub_(1)
    low = starts[group].view_as(position)
    high = starts[group + 1].view_as(position)
    offset = low[..., :1]  # the first group of a row starts where the row does
    return Order(index, low - offset, high - offset)


def _integers(x: Tensor) -> Tensor:
    """Integers in the order of the floats: torch sorts them several times faster on a CPU."""
    bits = (x.detach() + 0.0).view(torch.int64)  # -0.0 + 0.0 is 0.0: the two zeros tie
    return bits ^ ((bits >> 63) & 0x7FFFFFFFFFFFFFFF)


def _before(x: Tensor) -> Tensor:
    """``[..., n + 1]``: sums of the first 0, 1, ..., n entries."""
    return torch.nn.functional.pad(x.cumsum(-1), (1, 0))


def centered(x: Tensor) -> Tensor:
    """``x [..., n]`` about its mean; exactly 0 where all points are equal."""
    x = x - x[..., :1].detach()
    return x - x.mean(-1, keepdim=True).detach()


def distance_means(x: Tensor, weights: Tensor, order: Order | None = None) -> Tensor:
    r"""Weighted distances to all points, :math:`\sum_j w_j |x_i - x_j|`, shape and gradient of ``x [..., n]``."""
    order = order or order_of(x)
    x = centered(x)
    weights, scale = _counts(weights)
    total = _before((weights * x).gather(-1, order.index))
    below = total.gather(-1, order.low) + total.gather(-1, order.high) - total[..., -1:]
    return scale * (x * order.signs(weights) - torch.empty_like(x).scatter(-1, order.index, below))


def _counts(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weights over the largest, and that: equal weights become ones, whose running sums do not round."""
    scale = weights.max()
    return weights / scale, scale


def pair_means(x: Tensor, y: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Mean product of distances :math:`\sum_{ij} w_i w_j |x_i - x_j| |y_i - y_j|`, and the distance means of both.

    Args:
        x: Shape ``(..., n)``, float64.
        y: Shape of ``x``.
        weights: Broadcastable to it; they sum to one.

    Returns:
        Shapes ``(...)``, ``(..., n)`` and ``(..., n)``.
    """
    by_x = order_of(x, ties=order_of(y).index)
    by_y = order_of(y, ties=by_x.index)
    means = distance_means(x, weights, by_x), distance_means(y, weights, by_y)
    product = _Product.apply(x, y, weights.expand_as(x), (by_x, by_y), tuple(m.detach() for m in means))
    return product, *means  # pyright: ignore[reportReturnType]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, w: Tensor, orders: tuple[Order, Order], means: tuple[Tensor, Tensor]
    ) -> Tensor:
        x, y = centered(x), centered(y)
        w, scale = _counts(w)
        means = means[0] / scale, means[1] / scale
        want_y = ctx.needs_input_grad[1]
        want_x = ctx.needs_input_grad[0] or not want_y  # the value needs one of the two
        mass, *moments = _common(w, [w * y] * want_x + [w * x] * want_y, *orders)
        x_slope = _slope(y, w, orders[0], mass, moments[0], means[1]) if want_x else None
        y_slope = _slope(x, w, orders[1], mass, moments[-1], means[0]) if want_y else None
        x_slope, y_slope = (None if slope is None else scale**2 * slope for slope in (x_slope, y_slope))
        ctx.save_for_backward(x_slope, y_slope)
        slope, z = (y_slope, y) if x_slope is None else (x_slope, x)
        assert slope is not None
        return (slope * z).sum(-1)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x_grad, y_grad = (None if slope is None else grad.unsqueeze(-1) * slope for slope in ctx.saved_tensors)
        return x_grad, y_grad, None, None, None


def _common(w: Tensor, moments: list[Tensor], by_x: Order, by_y: Order) -> list[Tensor]:
    """Sums of ``w`` and of every moment over the points that come before each point in both orders."""
    position = torch.arange(w.shape[-1], device=w.device).expand(w.shape)
    rank = torch.empty_like(by_y.index).scatter_(-1, by_y.index, position).gather(-1, by_x.index)
    masses = torch.stack([mass.gather(-1, by_x.index) for mass in (w, *moments)])
    return [torch.empty_like(found).scatter_(-1, by_y.index, found) for found in dominance(rank, masses)]


def _slope(other: Tensor, w: Tensor, order: Order, mass: Tensor, moment: Tensor, means: Tensor) -> Tensor:
    """``2 w_i sum_j w_j sign(z_i - z_j) |o_i - o_j|`` where ``order`` sorts z, and ties of z by o.

    ``mass`` and ``moment`` sum ``w`` and ``w o`` over the points before ``i`` in both orders; ``means`` are the
    distance means of o.
    """
    mass_before, moment_before = (_before(m.gather(-1, order.index)) for m in (w, w * other))

    def scatter(at_position: Tensor) -> Tensor:
        return torch.empty_like(other).scatter_(-1, order.index, at_position)

    before = other * (2 * mass - scatter(mass_before[..., :-1])) - 2 * moment + scatter(moment_before[..., :-1])
    # Points tied in z were counted as +1 before and -1 after; together they make a sum over the group.
    tied_mass = mass_before.gather(-1, order.high) - mass_before.gather(-1, order.low)
    tied_moment = moment_before.gather(-1, order.high) - moment_before.gather(-1, order.low)
    return 2 * w * (2 * before - means - other * scatter(tied_mass) + scatter(tied_moment))


def dominance(rank: Tensor, masses: Tensor) -> Tensor:
    """Sum, for every entry, the masses of the entries before it that have a lower rank.

    Halves the range of ranks level by level, each time a stable partition: an entry of the upper half gets the
    running sum of the lower half's masses up to its own place.

    Args:
        rank: Shape ``(..., n)``, a permutation of ``0 .. n - 1`` in every row.
        masses: Shape ``(k, ..., n)``.

    Returns:
        Shape ``(k, ..., n)``, in the order of ranks.

    References: X. Huo and G. J. Székely, 2016, arXiv:1410.1503 (the statistic in ``O(n log n)``);
    A. Chaudhuri and W. Hu, 2019, arXiv:1810.11332 (level by level).

    >>> dominance(torch.tensor([1, 0, 2]), torch.tensor([[1.0, 2.0, 4.0]]))
    tensor([[0., 0., 3.]])
    """
    shape, n = rank.shape, rank.shape[-1]
    depth = max(0, (max(n, 1) - 1) // _DENSE).bit_length()
    leaf = -(-n // (1 << depth))
    size = leaf << depth
    # Padding comes last in both orders and weighs nothing, so that every split is even.
    place = torch.arange(n, size, device=rank.device).expand(*shape[:-1], size - n)
    rank = torch.cat((rank, place), -1).flatten().to(torch.int32)
    rows = list(torch.nn.functional.pad(masses, (0, size - n)).flatten(1))
    sums = [torch.zeros_like(row) for row in rows]
    upper_count = torch.arange(rank.numel() // 2, device=rank.device)
    running = rows[0].new_zeros(rank.numel() // 2 + 1)
    while size > leaf:
        half = size // 2
        is_upper = rank >= half
        upper, lower = is_upper.nonzero().squeeze(1), is_upper.logical_not_().nonzero().squeeze(1)
        source = torch.stack((lower.view(-1, half), upper.view(-1, half)), 1).flatten()
        # How many entries of lower halves precede each entry of an upper half, all nodes taken together.
        ahead = upper.sub_(upper_count)
        rank = rank.index_select(0, source)
        rank.view(-1, 2, half)[:, 1] -= half
        rows = [row.index_select(0, source) for row in rows]
        sums = [total.index_select(0, source) for total in sums]
        for row, total in zip(rows, sums, strict=True):
            torch.cumsum(row.view(-1, 2, half)[:, 0].flatten(), 0, out=running[1:])
            gained = running.index_select(0, ahead).view(-1, half)
            total.view(-1, 2, half)[:, 1] += gained.sub_(running[:-1].view(-1, half)[:, :1])
        size = half
    _add_leaves(rank.view(-1, leaf), rows, sums)
    start = torch.arange(0, rank.numel(), leaf, device=rank.device).unsqueeze(1)
    target = (start + rank.view(-1, leaf)).flatten()
    in_order = [torch.empty_like(total).index_copy_(0, target, total) for total in sums]
    return torch.stack([total.view(*shape[:-1], -1)[..., :n] for total in in_order])


def _add_leaves(rank: Tensor, rows: list[Tensor], sums: list[Tensor]) -> None:
    """Add what the entries of one leaf contribute to each other."""
    leaf = rank.shape[1]
    for first in range(0, len(rank), _CHUNK):
        part = slice(first, first + _CHUNK)
        flat = slice(first * leaf, (first + _CHUNK) * leaf)
        below = (rank[part].unsqueeze(1) < rank[part].unsqueeze(2)).to(rows[0].dtype).tril_(-1)
        mass = torch.stack([row[flat].view(-1, leaf) for row in rows], -1)
        for total, gained in zip(sums, torch.bmm(below, mass).unbind(-1), strict=True):
            total[flat] += gained.flatten()


def cell_product(x: Tensor, cell: Tensor, between: Tensor | None, weights: Tensor) -> Tensor:
    r"""Mean product :math:`\sum_{ij} w_i w_j |x_i - x_j| D_{c_i c_j}` of distances on a line and between cells.

    ``O(n log n)`` where all cells are at distance 1 of each other, else ``O(n log n + n G)`` for ``G`` cells.

    Args:
        x: Shape ``(n,)``; the result is differentiable in it.
        cell: Shape ``(n,)``, numbers from 0.
        between: Shape ``(G, G)``, symmetric with zero diagonal; None for 1 between any two cells.
        weights: Shape ``(n,)``.
    """
    weights, scale = _counts(weights)
    with torch.no_grad():
        order = order_of(x)
        if between is None:
            slope = order.signs(weights) - _signs_within(order, cell, weights)
        else:
            slope = torch.zeros_like(x)
            for h, distances in enumerate(between):
                slope += distances[cell] * order.signs(weights * (cell == h))
    return 2 * scale**2 * (weights * slope * centered(x)).sum()


def _signs_within(order: Order, cell: Tensor, weights: Tensor) -> Tensor:
    """``sum_j w_j sign(x_i - x_j)`` over the points of the same cell."""
    n = len(cell)
    level = torch.empty_like(order.index).scatter_(0, order.index, order.low)  # equal where x is
    grouped = _order_of_keys(cell * n + level)
    total = _before(weights[grouped.index])
    sizes = torch.bincount(cell)
    end = sizes.cumsum(0)[cell[grouped.index]]
    start = end - sizes[cell[grouped.index]]
    signs = total[grouped.low] + total[grouped.high] - total[start] - total[end]
    return torch.empty_like(signs).scatter_(0, grouped.index, signs)
