"""Sums over pairs of points on a line that a table over categories weighs: on one line, and on two at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from infotorch.core._autograd import first_order
from infotorch.core.dependence._line import Order, Plane, as_counts, before, centered, order_of, order_of_keys

_CELLS = 4  # cells whose masses are summed at once


def cell_product(x: Tensor, cell: Tensor, between: Tensor | None, weights: Tensor) -> Tensor:
    r"""Mean product :math:`\sum_{ij} w_i w_j |x_i - x_j| D_{c_i c_j}` of distances on a line and between cells.

    ``O(n log n)`` where all cells are at distance 1 of each other, else ``O(n log n + n G)`` for ``G`` cells.

    Args:
        x: Shape ``(n,)``; the result is differentiable in it.
        cell: Shape ``(n,)``, numbers from 0.
        between: Shape ``(G, G)``, symmetric with zero diagonal; None for 1 between any two cells.
        weights: Shape ``(n,)``.
    """
    weights, scale = as_counts(weights)
    with torch.no_grad():
        order = order_of(x)
        here, mass = cell.index_select(0, order.index), weights.index_select(0, order.index)
        if between is None:
            slope = order.difference(before(mass)) - _signs_within(order, here, mass)
        else:
            slope = torch.zeros_like(mass)
            for h, distances in enumerate(between):
                slope += (here == h) * order.difference(before(mass * distances.index_select(0, here)))
        slope = order.restore(slope)
    return 2 * scale**2 * (weights * slope * centered(x)).sum()


def _signs_within(order: Order, cell: Tensor, weights: Tensor) -> Tensor:
    """``sum_j w_j sign(x_i - x_j)`` over the points of the same cell, all in the order of x."""
    n = len(cell)
    # Equal where cell and x are; the sort is stable.
    grouped = order_of_keys(cell if order.low is None else cell * n + order.low)
    if order.low is None:
        grouped = Order(grouped.index)
    total = before(weights.index_select(0, grouped.index))
    sizes = torch.bincount(cell)
    ends = total.index_select(0, sizes.cumsum(0))
    span = ends + torch.nn.functional.pad(ends[:-1], (1, 0))
    signs = grouped.below(total) + grouped.reached(total) - span.index_select(0, cell.index_select(0, grouped.index))
    return grouped.restore(signs)


def cell_pair_means(
    x: Tensor, y: Tensor, cell: Tensor, table: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Means over pairs that a symmetric table ``T [G, G]`` over cells weighs, in ``O(G n log n)``.

    Args:
        x: Shape ``(n,)``, float64.
        y: Shape ``(n,)``.
        cell: Shape ``(n,)``, numbers from 0.
        table: Shape ``(G, G)``; without gradient.
        weights: Shape ``(n,)``.

    Returns:
        :math:`\sum_{ij} w_i w_j T_{c_i c_j} |x_i - x_j| |y_i - y_j|`, and for every point
        :math:`\sum_j w_j T_{c_i c_j} |x_i - x_j|` and :math:`\sum_j w_j T_{c_i c_j} |y_i - y_j|`.
    """
    return _CellPairMeans.apply(x, y, cell, table, weights)  # pyright: ignore[reportReturnType]


class _CellPairMeans(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, cell: Tensor, table: Tensor, w: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        plane = Plane.of(centered(x), centered(y))
        index = plane.by_x.index
        here, mass = cell.index_select(0, index), w.index_select(0, index)
        of_y = ctx.needs_input_grad[1]
        of_x = ctx.needs_input_grad[0] or not of_y
        means, slopes = [torch.zeros_like(w) for _ in "xy"], [torch.zeros_like(w) for _ in "xy"]
        for start in range(0, len(table), _CELLS):
            # Sums over the points of each of a few cells, for all points.
            cells = torch.arange(start, min(start + _CELLS, len(table)), device=cell.device)
            masses = mass * (here == cells.unsqueeze(1))
            part, signed = plane.sums(masses, of_x=of_x, of_y=of_y)
            shares = table.index_select(0, cells).index_select(1, here)
            for total, found in zip((*means, *slopes), (*part, *signed), strict=True):
                if found is not None:
                    total += (shares * found).sum(0)
        slopes = [2 * mass * slope for slope in slopes]
        product = (slopes[0] * plane.x if of_x else slopes[1] * plane.y).sum()
        restore = plane.by_x.restore
        ctx.orders = plane.by_x, Order(index.index_select(0, plane.by_y.index), plane.by_y.low, plane.by_y.high)
        ctx.save_for_backward(cell, table, w, *map(restore, slopes))
        return product, restore(means[0]), restore(means[1])

    @staticmethod
    @first_order
    def backward(ctx: Any, of_product: Tensor, *of_means: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        cell, table, w, *slopes = ctx.saved_tensors
        grads = []
        for slope, g, order, wanted in zip(slopes, of_means, ctx.orders, ctx.needs_input_grad, strict=False):
            grad = of_product * slope if wanted else None
            if grad is not None:
                for h, distances in enumerate(table):
                    shares = distances.index_select(0, cell)
                    inside = cell == h
                    grad += shares * (g * order.signs(w * inside) + w * order.signs(g * inside))
            grads.append(grad)
        return *grads, None, None, None
