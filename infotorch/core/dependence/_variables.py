"""What a variable may be, and the quickest way to sum over its pairs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from infotorch.core._checks import all_finite, check_range, check_tensor
from infotorch.core.dependence import _line, _line_cells, _tiles


@dataclass(frozen=True)
class PairMeans:
    """Weighted means over pairs.

    Attributes:
        product: ``sum_ij w_i w_j a_ij b_ij``.
        x: ``sum_j w_j a_ij``, shape ``(n,)``.
        y: ``sum_j w_j b_ij``, shape ``(n,)``.
    """

    product: Tensor
    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Variable:
    """One variable in float64: points with a Euclidean distance, or cells with distances between them.

    Attributes:
        points: ``[n, d]``, None for cells.
        cell: ``[n]``, numbers from 0; None for points.
        between: ``[G, G]`` distances between cells; None: 1 between any two.
        exponent: Power of the distance.
    """

    points: Tensor | None = None
    cell: Tensor | None = None
    between: Tensor | None = None
    exponent: float = 1.0

    def __len__(self) -> int:
        return len(self._any)

    @property
    def device(self) -> torch.device:
        return self._any.device

    @property
    def _any(self) -> Tensor:
        found = self.cell if self.points is None else self.points
        assert found is not None
        return found

    @property
    def line(self) -> Tensor | None:
        """``[n]`` where sorting is enough."""
        if self.points is None or self.points.shape[1] > 1 or self.exponent != 1:
            return None
        return self.points.squeeze(1)

    @property
    def is_categories(self) -> bool:
        """Whether it has cells, all at distance 1 of each other."""
        return self.cell is not None and self.between is None

    @property
    def few_cells(self) -> bool:
        """Whether a pass over the points for every cell is cheaper than all pairs."""
        return self.between is None or 8 * len(self.between) <= len(self)

    @cached_property
    def leaf(self) -> Tensor:
        """What gradients go to; a constant for cells."""
        return torch.empty(0, device=self.device) if self.points is None else self.points

    @cached_property
    def side(self) -> _tiles.Points | _tiles.Cells:
        """The variable as tiles see it."""
        if self.points is not None:
            return _tiles.Points(self.points, _tiles.Power(self.exponent))
        assert self.cell is not None
        return _tiles.Cells(self.cell, self.between)

    def across(self, table: Tensor) -> Tensor:
        """``D @ table`` for the distances ``D`` between cells; ``table [G]`` or ``[G, k]``."""
        return table.sum(0) - table if self.between is None else self.between @ table

    def masses(self, weights: Tensor) -> Tensor:
        """Weight of every cell, ``[G]``."""
        assert self.cell is not None
        size = int(self.cell.max()) + 1 if self.between is None else len(self.between)
        return weights.new_zeros(size).index_add_(0, self.cell, weights)

    def means(self, weights: Tensor) -> Tensor:
        """``sum_j w_j a_ij``, shape ``(n,)``."""
        if self.cell is not None:
            return self.across(self.masses(weights))[self.cell]
        if self.line is not None:
            return _line.distance_means(self.line, weights)
        assert isinstance(self.side, _tiles.Points)
        return _tiles.kernel_sums(self.leaf, self.side, weights.unsqueeze(1)).squeeze(1)

    def own_product(self, weights: Tensor) -> Tensor:
        """``sum_ij w_i w_j a_ij^2``."""
        if self.cell is not None:
            masses = self.masses(weights)
            squared = masses.sum() - masses if self.between is None else self.between.square() @ masses
            return squared @ masses
        if self.exponent == 1:
            x = self.leaf - self.leaf.mean(0).detach()
            return 2 * (weights @ x.square().sum(1) - (weights @ x).square().sum())
        side = _tiles.Points(self.leaf, _tiles.Power(2 * self.exponent))
        return _tiles.kernel_sums(self.leaf, side, weights.unsqueeze(1)).squeeze(1) @ weights


def as_variable(name: str, x: object, exponent: float = 1.0) -> Variable:
    """Check one variable: floats are numbers, integers and booleans are categories."""
    x = check_tensor(name, x)
    check_range("exponent", exponent, 0.0, 2.0, low_open=True, high_open=True)
    if x.is_complex() or x.ndim not in (1, 2) or 0 in x.shape:
        raise ValueError(f"{name}: expected real numbers of shape (n,) or (n, d), got {x.dtype} {tuple(x.shape)}")
    if not x.is_floating_point():
        if x.ndim == 2:
            raise ValueError(
                f"{name}: expected floats or categories of shape (n,), got {x.dtype} of shape {tuple(x.shape)} "
                f"(write {name}.double() if these are numbers)"
            )
        return Variable(cell=torch.unique(x, return_inverse=True)[1], exponent=exponent)
    if not all_finite(x):
        raise ValueError(f"{name}: expected finite values, got NaN or infinity")
    return Variable(points=(x.unsqueeze(1) if x.ndim == 1 else x).double(), exponent=exponent)


def as_weights(weights: Tensor | None, like: Variable) -> Tensor:
    """Weights that sum to one, in float64."""
    n = len(like)
    if weights is None:
        return torch.full((n,), 1 / n, dtype=torch.float64, device=like.device)
    weights = check_tensor("weights", weights).detach().double()
    if tuple(weights.shape) != (n,):
        raise ValueError(f"weights: expected shape ({n},), got {tuple(weights.shape)}")
    total = weights.sum()
    if not bool((weights >= 0).all() & total.isfinite() & (total > 0)):
        raise ValueError("weights: expected non-negative finite numbers with a positive sum")
    return weights / total


def check_lengths(**variables: Variable) -> int:
    """Number of points that all variables share."""
    lengths = {name: len(v) for name, v in variables.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{', '.join(lengths)}: expected equal numbers of points, got {list(lengths.values())}")
    return next(iter(lengths.values()))


def pair_means(x: Variable, y: Variable, weights: Tensor) -> PairMeans:
    """Means over pairs by sorting, by counting cells, or by tiles."""
    if x.line is not None and y.line is not None:
        return PairMeans(*_line.pair_means(x.line, y.line, weights))
    if x.cell is not None and y.cell is not None:
        size = y.masses(weights)
        joint = (x.cell * len(size) + y.cell).long()
        table = weights.new_zeros(len(x.masses(weights)) * len(size)).index_add_(0, joint, weights)
        table = table.view(-1, len(size))
        return PairMeans((x.across(y.across(table.T).T) * table).sum(), x.means(weights), y.means(weights))
    for one, other, swap in ((x, y, False), (y, x, True)):
        if one.line is not None and other.cell is not None and other.few_cells:
            product = _line_cells.cell_product(one.line, other.cell, other.between, weights)
            means = one.means(weights), other.means(weights)
            return PairMeans(product, *(means[::-1] if swap else means))
    return PairMeans(*_tiles.pair_means(x.leaf, y.leaf, x.side, y.side, weights))
