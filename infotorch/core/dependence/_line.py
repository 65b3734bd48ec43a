r"""Sums over all pairs of points on a line in ``O(n log n)``, with gradients.

Everything is batched over leading dimensions and runs in float64. The workhorse is
:func:`~infotorch.core.dependence._dominance.dominance`, which adds up, for every point, what lies before it in two
orders at once.

On a line all sums of distances are piecewise linear, so values follow from gradients (Euler's theorem):
:math:`\sum_{ij} w_i w_j |x_i - x_j| b_{ij} = 2 \sum_i w_i x_i g_i` with
:math:`g_i = \sum_j w_j \operatorname{sign}(x_i - x_j) b_{ij}`. One pass therefore gives both. Ties are exact:
a tied pair has sign 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infotorch.core._autograd import first_order
from infotorch.core._sort import argsort
from infotorch.core.dependence._dominance import dominance


@dataclass(frozen=True)
class Order:
    """Points of a line in ascending order.

    Attributes:
        index: ``[..., n]``: the point at every position.
        low: ``[..., n]``: how many points lie strictly below the one at a position; None where no two are tied.
        high: ``[..., n]``: how many lie at or below it; None likewise.
    """

    index: Tensor
    low: Tensor | None = None
    high: Tensor | None = None

    def below(self, total: Tensor) -> Tensor:
        """Of running sums ``[..., n + 1]``, those over the points strictly below each position's."""
        return total[..., :-1] if self.low is None else along(total, self.low)

    def reached(self, total: Tensor) -> Tensor:
        """Of running sums ``[..., n + 1]``, those over the points at or below each position's."""
        return total[..., 1:] if self.high is None else along(total, self.high)

    def difference(self, total: Tensor) -> Tensor:
        """Of running sums ``[..., n + 1]``, those below each position's point minus those above."""
        return self.below(total) + self.reached(total) - total[..., -1:]

    def restore(self, at_position: Tensor) -> Tensor:
        """Values ``[..., n]`` at positions in the points' own order."""
        return torch.empty_like(at_position).scatter_(-1, self.index.expand_as(at_position), at_position)

    def signs(self, mass: Tensor) -> Tensor:
        """``sum_j m_j sign(x_i - x_j)`` for masses in the points' own order."""
        return self.restore(
            self.difference(before(along(mass.expand(*mass.shape[:-1], self.index.shape[-1]), self.index)))
        )


def along(x: Tensor, index: Tensor) -> Tensor:
    """``x`` at ``index`` along the last dimension, both ``[..., n]``; leading dimensions are broadcast."""
    if x.ndim == index.ndim == 1:
        return x.index_select(0, index)
    n = x.shape[-1]
    shape = torch.broadcast_shapes(x.shape[:-1], index.shape[:-1])
    start = torch.arange(0, math.prod(shape) * n, n, device=x.device).view(*shape, 1)
    # On a CPU gather takes many times as long.
    return x.expand(*shape, n).flatten().index_select(0, (start + index).flatten()).view(*shape, -1)


def order_of(x: Tensor, ties: Tensor | None = None) -> Order:
    """Sort ``x [..., n]``; tied points keep their order, or that which ``ties`` (a permutation) puts them in."""
    if ties is None:
        index = argsort(x)
        values = along(x.detach(), index)
        if bool((values[..., 1:] != values[..., :-1]).all()):
            return Order(index)
    return order_of_keys(_integers(x), ties)


def order_of_keys(key: Tensor, ties: Tensor | None = None) -> Order:
    if ties is not None:
        key = along(key, ties)
    values, index = key.sort(dim=-1, stable=True)
    if ties is not None:
        index = along(ties, index)
    rises = values[..., 1:] != values[..., :-1]
    if bool(rises.all()):
        return Order(index)
    # Groups of tied points: each row starts one, so counting over the flattened rows keeps rows apart.
    first = torch.nn.functional.pad(rises, (1, 0), value=True).flatten()
    starts = torch.cat((first.nonzero().squeeze(1), index.new_tensor([first.numel()])))
    group = first.cumsum(0).sub_(1)
    low, high = (starts.index_select(0, group + k).view_as(index) for k in (0, 1))
    offset = low[..., :1]  # the first group of a row starts where the row does
    return Order(index, low - offset, high - offset)


def _integers(x: Tensor) -> Tensor:
    """Integers in the order of the floats: torch sorts them several times faster on a CPU."""
    bits = (x.detach() + 0.0).view(torch.int64)  # -0.0 + 0.0 is 0.0: the two zeros tie
    return bits ^ ((bits >> 63) & 0x7FFFFFFFFFFFFFFF)


def before(x: Tensor) -> Tensor:
    """``[..., n + 1]``: sums of the first 0, 1, ..., n entries."""
    found = x.new_zeros(*x.shape[:-1], x.shape[-1] + 1)
    torch.cumsum(x, -1, out=found[..., 1:])
    return found


def centered(x: Tensor) -> Tensor:
    """``x [..., n]`` about its mean; exactly 0 where all points are equal."""
    x = x - x[..., :1].detach()
    return x - x.mean(-1, keepdim=True).detach()


def distance_means(x: Tensor, weights: Tensor) -> Tensor:
    r"""Weighted distances to all points, :math:`\sum_j w_j |x_i - x_j|`, shape and gradient of ``x [..., n]``."""
    return _DistanceMeans.apply(x, weights)  # pyright: ignore[reportReturnType]


class _DistanceMeans(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.order = order = order_of(x)
        ctx.save_for_backward(w)
        x, (counts, scale) = centered(x), as_counts(w)
        return scale * (x * order.signs(counts) - order.signs(counts * x))

    @staticmethod
    @first_order
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (w,) = ctx.saved_tensors
        return g * ctx.order.signs(w) + w * ctx.order.signs(g), None


def as_counts(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weights over the largest, and that: equal weights become ones, whose running sums do not round."""
    scale = weights.max()
    return weights / scale, scale


@dataclass(frozen=True)
class Plane:
    """Pairs of numbers, in the order of x.

    Attributes:
        x: ``[..., n]``, ascending.
        y: ``[..., n]``.
        by_x: From the points' own order to this one. Ties are in the order of y.
        by_y: From this order to that of y. Ties are in this order.
        rank: ``[..., n]``: positions in the order of y.
    """

    x: Tensor
    y: Tensor
    by_x: Order
    by_y: Order
    rank: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> Plane:
        by_x = order_of(x)
        if by_x.low is not None:
            by_x = order_of(x, ties=order_of(y).index)
        x, y = along(x, by_x.index), along(y, by_x.index)
        by_y = order_of(y)
        position = torch.arange(y.shape[-1], device=y.device).expand(y.shape)
        return cls(x, y, by_x, by_y, by_y.restore(position))

    def sums(
        self, mass: Tensor, *, of_x: bool, of_y: bool
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor | None, Tensor | None]]:
        """Sums over all pairs for masses ``[..., n]``, in the order of x.

        Args:
            mass: Shape ``(..., n)``, of all variables or of more leading dimensions.
            of_x: Whether the first product is wanted.
            of_y: Whether the second is.

        Returns:
            ``sum_j m_j |x_i - x_j|`` and ``sum_j m_j |y_i - y_j|``; then ``sum_j m_j sign(x_i - x_j) |y_i - y_j|`` and
            the same with x and y exchanged.
        """
        by_x, by_y = self.by_x, self.by_y
        rows = torch.stack([mass, mass * self.x] + [mass * self.y] * of_x)
        wanted = rows if of_x and of_y else rows[:2] if of_y else rows[::2]
        common, *moments = dominance(self.rank, wanted.reshape(-1, *self.rank.shape)).view_as(wanted)
        total = before(rows)
        x_signs, x_moments = by_x.difference(total[:2])
        x_mean = self.x * x_signs - x_moments
        # The same in the order of y, which goes back to that of x.
        y, y_mass = along(self.y, by_y.index), along(mass, by_y.index)
        y_total = before(torch.stack((y_mass, y_mass * y)))
        y_signs, y_moments = by_y.difference(y_total)
        y_mean = by_y.restore(y * y_signs - y_moments)
        first = second = None
        # Of all points before, those with a lower y count y_i - y_j, the others y_j - y_i; those after are the rest.
        if of_x:
            ahead = self.y * (2 * common - total[0, ..., :-1]) - 2 * moments[-1] + total[2, ..., :-1]
            first = 2 * ahead - y_mean + _tied(self.y, total[0], total[2], by_x)
        if of_y:
            x = along(self.x, by_y.index)
            crossed = before(y_mass * x)
            rest = 2 * (crossed[..., :-1] - x * y_total[0, ..., :-1]) + _tied(x, y_total[0], crossed, by_y)
            second = 4 * (self.x * common - moments[0]) - x_mean + by_y.restore(rest)
        return (x_mean, y_mean), (first, second)


def _tied(other: Tensor, mass: Tensor, moment: Tensor, order: Order) -> Tensor | float:
    """Take off the points tied with each: counted as +1 before and -1 after, they make a sum over the group.

    ``mass`` and ``moment`` are running sums of masses and of masses times the other variable.
    """
    if order.low is None:
        return 0.0
    return order.reached(moment) - order.below(moment) - other * (order.reached(mass) - order.below(mass))


def pair_means(x: Tensor, y: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Mean product of distances :math:`\sum_{ij} w_i w_j |x_i - x_j| |y_i - y_j|`, and the distance means of both.

    Args:
        x: Shape ``(..., n)``, float64.
        y: Shape of ``x``.
        weights: Broadcastable to it; they sum to one.

    Returns:
        Shapes ``(...)``, ``(..., n)`` and ``(..., n)``.
    """
    return _PairMeans.apply(x, y, weights.expand_as(x))  # pyright: ignore[reportReturnType]


class _PairMeans(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        plane = Plane.of(centered(x), centered(y))
        by_x = plane.by_x
        counts, scale = as_counts(w)
        counts = along(counts, by_x.index)
        of_y = ctx.needs_input_grad[1]
        of_x = ctx.needs_input_grad[0] or not of_y  # the value needs one of the two
        means, signed = plane.sums(counts, of_x=of_x, of_y=of_y)
        twice = 2 * scale**2 * counts
        slopes = [None if found is None else twice * found for found in signed]
        product = next((s * z).sum(-1) for s, z in zip(slopes, (plane.x, plane.y), strict=True) if s is not None)
        if any(ctx.needs_input_grad):
            ctx.orders = by_x, Order(along(by_x.index, plane.by_y.index), plane.by_y.low, plane.by_y.high)
            ctx.save_for_backward(w, *(None if s is None else by_x.restore(s) for s in slopes))
        return product, by_x.restore(scale * means[0]), by_x.restore(scale * means[1])

    @staticmethod
    @first_order
    def backward(ctx: Any, of_product: Tensor, *of_means: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        w, *slopes = ctx.saved_tensors
        grads = [
            of_product.unsqueeze(-1) * slope + g * order.signs(w) + w * order.signs(g) if wanted else None
            for slope, g, order, wanted in zip(slopes, of_means, ctx.orders, ctx.needs_input_grad, strict=False)
        ]
        return *grads, None
