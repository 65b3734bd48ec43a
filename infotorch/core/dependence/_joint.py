"""The mean over pairs of a product of many centered distances, by tiles, with a backward pass that recomputes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from infotorch.core._autograd import first_order
from infotorch.core.dependence._tiles import Points, add_product, tiles
from infotorch.core.dependence._variables import Variable


def joint_mean(variables: Sequence[Variable], constants: Sequence[float], weights: Tensor, *, unbiased: bool) -> Tensor:
    r"""Mean of :math:`\prod_m (c_m - A^m_{ij}) - \prod_m c_m` over pairs, ``A`` double- or U-centered distances."""
    return _JointMean.apply(  # pyright: ignore[reportReturnType]
        variables, tuple(constants), weights, unbiased, *(v.leaf for v in variables)
    )


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
        ctx.shapes = [leaf.shape for leaf in leaves]
        mean, others = torch.zeros_like(w), {m: torch.zeros_like(w) for m in ctx.wanted}
        for rows, columns in tiles(n, w.device):
            factors = product.factors(rows, columns)
            for m in ctx.wanted:
                add_product(others[m], product.without(factors, m, rows, columns), rows, columns, w)
            add_product(mean, math.prod(factors[1:], start=factors[0]), rows, columns, w)
        ctx.others = others
        ctx.save_for_backward(w)
        return ctx.scale * (mean @ w - math.prod(constants))

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (w,) = ctx.saved_tensors
        product: _Product = ctx.product
        found = {m: w.new_zeros(ctx.shapes[m]) for m in ctx.wanted}
        twice = -2 * ctx.scale * grad * w
        for rows, columns in tiles(len(w), w.device):
            factors = product.factors(rows, columns)
            for m, total in found.items():
                # Centering is its own adjoint: the gradient of the distances is the centered gradient.
                upstream = product.center(product.without(factors, m, rows, columns), ctx.others[m], rows, columns)
                upstream.mul_(twice[rows].unsqueeze(1)).mul_(w[columns])
                side = product.sides[m]
                assert isinstance(side, Points)
                side.pull(total, rows, columns, upstream)
        return None, None, None, None, *(found.get(m) for m in range(len(ctx.shapes)))


class _Product:
    """Tiles of ``c_m - A^m`` for all variables."""

    def __init__(
        self, variables: Sequence[Variable], constants: tuple[float, ...], weights: Tensor, unbiased: bool
    ) -> None:
        n = len(weights)
        self.constants, self.weights, self.unbiased = constants, weights, unbiased
        self.row, self.grand = (n / (n - 2), n * n / ((n - 1) * (n - 2))) if unbiased else (1.0, 1.0)
        self.sides = [v.side for v in variables]
        with torch.no_grad():
            self.means = [v.means(weights) for v in variables]

    def center(self, tile: Tensor, means: Tensor, rows: slice, columns: slice) -> Tensor:
        """Center a tile in place; ``means`` are the weighted means of the rows of its matrix."""
        shifted = self.row * means - self.grand * (means @ self.weights) / 2
        return tile.sub_(shifted[rows].unsqueeze(1)).sub_(shifted[columns])

    def factors(self, rows: slice, columns: slice) -> list[Tensor]:
        found = []
        for side, means, constant in zip(self.sides, self.means, self.constants, strict=True):
            factor = self.center(side.tile(rows, columns), means, rows, columns).neg_().add_(constant)
            if self.unbiased and rows == columns:
                factor.fill_diagonal_(constant)  # a U-centered matrix has an empty diagonal
            found.append(factor)
        return found

    def without(self, factors: list[Tensor], m: int, rows: slice, columns: slice) -> Tensor:
        """Product of all factors but one, as a new tensor."""
        rest = factors[:m] + factors[m + 1 :]
        product = rest[0].clone() if rest else torch.ones_like(factors[m])
        for factor in rest[1:]:
            product *= factor
        if self.unbiased and rows == columns:
            product.fill_diagonal_(0.0)
        return product
