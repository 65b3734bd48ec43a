"""The mean over pairs of a product of many centered distances: by cells where it can be, else by tiles.

Tiles are computed again in the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infotorch.core._autograd import first_order
from infotorch.core.dependence import _line_cells
from infotorch.core.dependence._tiles import Buffers, Points, add_product, tiles
from infotorch.core.dependence._variables import Variable, pair_means
from infotorch.core.dependence.distance import u_statistic, v_statistic


def joint_mean(variables: Sequence[Variable], constants: Sequence[float], weights: Tensor, *, unbiased: bool) -> Tensor:
    r"""Mean of :math:`\prod_m (c_m - A^m_{ij}) - \prod_m c_m` over pairs, ``A`` double- or U-centered distances."""
    if len(variables) == 2:  # whatever the constants
        first, second = variables
        means = pair_means(first, second, weights)
        return u_statistic(means) if unbiased else v_statistic(means, weights)
    points = [m for m, v in enumerate(variables) if v.cell is None]
    if len(points) <= 2 and all(variables[m].line is not None for m in points):
        cells = _JointCells.of([v for v in variables if v.cell is not None], pairs=len(points) == 2)
        if cells is not None:
            return cells.mean(variables, constants, points, weights, unbiased=unbiased)
    return _JointMean.apply(  # pyright: ignore[reportReturnType]
        variables, tuple(constants), weights, unbiased, *(v.leaf for v in variables)
    )


MAX_CELLS = 2048  # above this a table of distances between cells costs more than it saves
# Points per cell from which cells are quicker than tiles, beside one variable on a line and beside two.
_POINTS, _POINTS_OF_TWO = 8, 64


@dataclass(frozen=True)
class _JointCells:
    """Cells in which all of several categories agree.

    Attributes:
        cell: ``[n]``, numbers from 0.
        kinds: ``[G, k]``: the categories of every cell.
    """

    cell: Tensor
    kinds: Tensor

    @classmethod
    def of(cls, categories: Sequence[Variable], *, pairs: bool) -> _JointCells | None:
        """None where there are no categories, or tiles are as quick; ``pairs``: two variables are on a line."""
        cells = [v.cell for v in categories if v.cell is not None]
        if not cells:
            return None
        kinds, cell = torch.unique(torch.stack(cells, 1), dim=0, return_inverse=True)
        return (
            cls(cell, kinds)
            if len(kinds) <= min(MAX_CELLS, len(cell) // (_POINTS_OF_TWO if pairs else _POINTS))
            else None
        )

    def mean(
        self, variables: Sequence[Variable], constants: Sequence[float], lines: list[int], w: Tensor, *, unbiased: bool
    ) -> Tensor:
        """As :func:`joint_mean`: every factor but those of ``lines``, two at most, is a table over cells.

        ``O(n log n + n G)`` for one line, ``O(G n log n)`` for two.
        """
        n = len(w)
        table, kinds = w.new_ones(len(self.kinds), len(self.kinds)), iter(self.kinds.T)
        for m, (variable, constant) in enumerate(zip(variables, constants, strict=True)):
            if m in lines:
                continue
            kind, masses = next(kinds), variable.masses(w)
            apart = kind.unsqueeze(1) != kind if variable.between is None else variable.between[kind][:, kind]
            shift = _shift(variable.across(masses), masses, n, unbiased)[kind]
            table *= constant - apart.to(w) + shift.unsqueeze(1) + shift
        sums = (table @ self._sums(w))[self.cell]
        own = table.diagonal()[self.cell]
        # On a line c - A is p_i + p_j - a_ij.
        ends = [constants[m] / 2 + _shift(variables[m].means(w), w, n, unbiased) for m in lines]
        points = [line for m in lines if (line := variables[m].line) is not None]
        if len(lines) == 2:
            (p, q), (x, y) = ends, points
            product, of_x, of_y = _line_cells.cell_pair_means(x, y, self.cell, table, w)
            crossed = (table @ self._sums(w * q))[self.cell]
            mean = 2 * w @ (p * q * sums + p * crossed - p * of_y - q * of_x) + product
            diagonal = 4 * p * q * own
        elif lines:
            mean = 2 * w @ (ends[0] * sums) - _line_cells.cell_product(points[0], self.cell, table, w)
            diagonal = 2 * ends[0] * own
        else:
            mean, diagonal = w @ sums, own
        total = math.prod(constants)
        if unbiased:  # a U-centered matrix has an empty diagonal
            mean = mean - w @ diagonal / n + total / n
        return (n / (n - 3) if unbiased else 1.0) * (mean - total)

    def _sums(self, values: Tensor) -> Tensor:
        return values.new_zeros(len(self.kinds)).index_add(0, self.cell, values)


def _shift(means: Tensor, weights: Tensor, n: int, unbiased: bool) -> Tensor:
    """What centering takes off rows and columns, from the weighted means of the rows."""
    row, grand = (n / (n - 2), n * n / ((n - 1) * (n - 2))) if unbiased else (1.0, 1.0)
    return row * means - grand * (means @ weights) / 2


class _JointMean(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        variables: Sequence[Variable],
        constants: tuple[float, ...],
        w: Tensor,
        unbiased: bool,
        *leaves: Tensor,
    ) -> Tensor:
        n = len(w)
        ctx.product = product = _Product(variables, constants, w, unbiased)
        ctx.wanted = [m for m, needed in enumerate(ctx.needs_input_grad[4:]) if needed]
        ctx.scale = n / (n - 3) if unbiased else 1.0
        del leaves
        mean, others = w.new_zeros(()), {m: torch.zeros_like(w) for m in ctx.wanted}
        buffers = Buffers(len(variables) + 1, n, w.device)
        for rows, columns in tiles(n, w.device):
            *rooms, spare = buffers.of(rows, columns)
            factors = product.factors(rows, columns, rooms)
            for m in ctx.wanted:
                add_product(others[m], product.without(factors, m, rows, columns, spare), rows, columns, w)
            for factor in factors[1:]:
                factors[0] *= factor
            mean += (1 + (rows != columns)) * (w[rows] @ (factors[0] @ w[columns]))
        ctx.others = others
        ctx.save_for_backward(w)
        return ctx.scale * (mean - math.prod(constants))

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (w,) = ctx.saved_tensors
        product: _Product = ctx.product
        found = {m: torch.zeros_like(product.points(m).transposed) for m in ctx.wanted}
        twice = -2 * ctx.scale * grad * w
        buffers = Buffers(len(product.sides) + 2, len(w), w.device)
        for rows, columns in tiles(len(w), w.device):
            *rooms, spare, room = buffers.of(rows, columns)
            factors = product.factors(rows, columns, rooms)
            for m, total in found.items():
                # Centering is its own adjoint: the gradient of the distances is the centered gradient.
                upstream = product.without(factors, m, rows, columns, spare)
                shift = _shift(ctx.others[m], w, len(w), product.unbiased)
                upstream.sub_(shift[rows].unsqueeze(1)).sub_(shift[columns])
                upstream.mul_(twice[rows].unsqueeze(1)).mul_(w[columns])
                product.points(m).pull(total, rows, columns, upstream, room)
        grads = {m: product.points(m).gradient(total) for m, total in found.items()}
        return None, None, None, None, *(grads.get(m) for m in range(len(product.sides)))


class _Product:
    """Tiles of ``c_m - A^m`` for all variables."""

    def __init__(
        self, variables: Sequence[Variable], constants: tuple[float, ...], weights: Tensor, unbiased: bool
    ) -> None:
        self.constants, self.unbiased = constants, unbiased
        self.sides = [v.side for v in variables]
        # c - A is p_i + p_j - a_ij.
        with torch.no_grad():
            self.ends = [
                c / 2 + _shift(v.means(weights), weights, len(weights), unbiased)
                for v, c in zip(variables, constants, strict=True)
            ]

    def points(self, m: int) -> Points:
        """The variable m, which has a gradient."""
        side = self.sides[m]
        assert isinstance(side, Points)
        return side

    def factors(self, rows: slice, columns: slice, rooms: Sequence[Tensor]) -> list[Tensor]:
        """All factors of a tile, in the given memory."""
        found = []
        for side, ends, constant, room in zip(self.sides, self.ends, self.constants, rooms, strict=True):
            tile = side.tile(rows, columns, room)
            factor = torch.sub(ends[columns], tile, out=tile).add_(ends[rows].unsqueeze(1))
            if self.unbiased and rows == columns:
                factor.fill_diagonal_(constant)  # a U-centered matrix has an empty diagonal
            found.append(factor)
        return found

    def without(self, factors: list[Tensor], m: int, rows: slice, columns: slice, out: Tensor) -> Tensor:
        """Product of all factors but one, in ``out``."""
        rest = factors[:m] + factors[m + 1 :]
        out.copy_(rest[0])
        for factor in rest[1:]:
            out *= factor
        if self.unbiased and rows == columns:
            out.fill_diagonal_(0.0)
        return out
