"""Sums over all pairs of points by tiles: ``O(n)`` memory, and a backward pass that computes the tiles again.

Everything runs in float64, and only tiles on and above the diagonal are visited: entries are symmetric.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from infotorch.core._autograd import first_order

_CPU_SIDE, _GPU_SIDE = 256, 4096  # a tile of doubles should stay in a CPU's second-level cache
_ROUNDING = 64 * torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Power:
    """Distance to a power; 0 at distance 0."""

    exponent: float = 1.0

    def entry(self, square: Tensor) -> Tensor:
        return square.sqrt() if self.exponent == 1 else square.pow(self.exponent / 2)

    def slope(self, square: Tensor) -> Tensor:
        """``s`` such that the entry's gradient in ``x_i`` is ``s (x_i - x_j)``; 0 at distance 0."""
        positive = square > 0
        return torch.where(positive, square, 1.0).pow_(self.exponent / 2 - 1).mul_(self.exponent).mul_(positive)


@dataclass(frozen=True)
class Gaussian:
    """Kernel ``exp(-distance^2 / (2 sigma^2))``."""

    sigma: float

    def entry(self, square: Tensor) -> Tensor:
        return square.mul(-0.5 / self.sigma**2).exp_()

    def slope(self, square: Tensor) -> Tensor:
        return self.entry(square).mul_(-1 / self.sigma**2)


Metric = Power | Gaussian


class Side(Protocol):
    """One variable of a sum over pairs.

    Attributes:
        diagonal: What every point has with itself.
    """

    @property
    def diagonal(self) -> float: ...

    def tile(self, rows: slice, columns: slice) -> Tensor:
        """A new tensor with the entries of a tile."""
        ...

    def take(self, index: Tensor) -> Side:
        """The variable with its points in another order."""
        ...


class Points:
    """Points ``[n, d]`` with a metric."""

    def __init__(self, x: Tensor, metric: Metric) -> None:
        x = x.detach()
        x = x - x[:1]  # before the mean, so that a constant column is exactly 0
        self.x = (x - x.mean(0)).contiguous()
        self.squares = self.x.square().sum(1)
        self.metric = metric
        self.diagonal = float(isinstance(metric, Gaussian))

    def take(self, index: Tensor) -> Points:
        return Points(self.x[index], self.metric)

    def square(self, rows: slice, columns: slice) -> Tensor:
        """Squared distances of a tile."""
        if self.x.shape[1] == 1:
            return (self.x[rows] - self.x[columns].T).square_()
        bound = self.squares[rows].unsqueeze(1) + self.squares[columns]
        found = torch.addmm(bound, self.x[rows], self.x[columns].T, alpha=-2.0)
        # What the expanded square cannot tell from 0 is 0: duplicates, which categories are made of.
        return found.masked_fill_(found <= bound.mul_(_ROUNDING), 0.0)

    def tile(self, rows: slice, columns: slice) -> Tensor:
        square = self.square(rows, columns)
        if rows == columns:
            square.fill_diagonal_(0.0)
        return self.metric.entry(square)

    def pull(self, grad: Tensor, rows: slice, columns: slice, upstream: Tensor) -> None:
        """Add to ``grad [n, d]`` what ``upstream``, the gradient of the tile, does to the points.

        ``upstream`` counts an entry and its mirror image. It is overwritten.
        """
        square = self.square(rows, columns)
        if rows == columns:
            square.fill_diagonal_(0.0)
            upstream.fill_diagonal_(0.0)
        h = upstream.mul_(self.metric.slope(square))
        grad[rows] += h.sum(1, keepdim=True) * self.x[rows] - h @ self.x[columns]
        if rows != columns:
            grad[columns] += h.sum(0).unsqueeze(1) * self.x[columns] - h.T @ self.x[rows]


class Cells:
    """Cell numbers ``[n]`` with the distances ``[G, G]`` between cells; 1 between all by default."""

    diagonal = 0.0

    def __init__(self, cell: Tensor, between: Tensor | None = None) -> None:
        self.cell, self.between = cell, between

    def take(self, index: Tensor) -> Cells:
        return Cells(self.cell[index], self.between)

    def tile(self, rows: slice, columns: slice) -> Tensor:
        if self.between is None:
            return (self.cell[rows].unsqueeze(1) != self.cell[columns]).double()
        return self.between[self.cell[rows]][:, self.cell[columns]]


def tiles(n: int, device: torch.device) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the tiles on and above the diagonal."""
    side = _CPU_SIDE if device.type == "cpu" else _GPU_SIDE
    parts = [slice(start, min(start + side, n)) for start in range(0, n, side)]
    for i, rows in enumerate(parts):
        for columns in parts[i:]:
            yield rows, columns


def add_product(out: Tensor, tile: Tensor, rows: slice, columns: slice, vectors: Tensor) -> None:
    """Add a tile's (and its mirror image's) part of ``K @ vectors`` to ``out``; both ``[n]`` or ``[n, k]``."""
    out[rows] += tile @ vectors[columns]
    if rows != columns:
        out[columns] += tile.T @ vectors[rows]


def pair_means(x: Tensor, y: Tensor, x_side: Side, y_side: Side, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``(sum_ij w_i w_j a_ij b_ij, sum_j w_j a_ij, sum_j w_j b_ij)``, differentiable in ``x`` and ``y [n, d]``."""
    return _PairMeans.apply(x, y, x_side, y_side, weights)  # pyright: ignore[reportReturnType]


class _PairMeans(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, x_side: Side, y_side: Side, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.sides, ctx.shapes = (x_side, y_side), (x.shape, y.shape)
        ctx.save_for_backward(w)
        means = torch.zeros_like(w), torch.zeros_like(w)
        product = torch.zeros_like(w)
        for rows, columns in tiles(len(w), w.device):
            a, b = x_side.tile(rows, columns), y_side.tile(rows, columns)
            add_product(means[0], a, rows, columns, w)
            add_product(means[1], b, rows, columns, w)
            add_product(product, a.mul_(b), rows, columns, w)
        return product @ w, *means

    @staticmethod
    @first_order
    def backward(ctx: Any, of_product: Tensor, *of_means: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (w,) = ctx.saved_tensors
        grads = [
            w.new_zeros(shape) if wanted else None
            for shape, wanted in zip(ctx.shapes, ctx.needs_input_grad, strict=False)
        ]
        twice = 2 * of_product * w
        for rows, columns in tiles(len(w), w.device):
            for grad, own, other, g in zip(grads, ctx.sides, reversed(ctx.sides), of_means, strict=True):
                if grad is None:
                    continue
                upstream = other.tile(rows, columns).mul_(twice[rows].unsqueeze(1)).mul_(w[columns])
                upstream.addr_(g[rows], w[columns]).addr_(w[rows], g[columns])
                own.pull(grad, rows, columns, upstream)
        return *grads, None, None, None


def kernel_sums(x: Tensor, side: Points, vectors: Tensor) -> Tensor:
    """``K @ vectors`` for the matrix ``K`` of all entries; ``vectors [n, k]``; differentiable in ``x [n, d]``."""
    return _KernelSums.apply(x, side, vectors)  # pyright: ignore[reportReturnType]


class _KernelSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, side: Points, vectors: Tensor) -> Tensor:
        ctx.side = side
        ctx.save_for_backward(vectors)
        out = torch.zeros_like(vectors)
        for rows, columns in tiles(len(x), x.device):
            add_product(out, side.tile(rows, columns), rows, columns, vectors)
        return out

    @staticmethod
    @first_order
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (v,) = ctx.saved_tensors
        grad = torch.zeros_like(ctx.side.x)
        for rows, columns in tiles(len(v), v.device):
            upstream = g[rows] @ v[columns].T
            ctx.side.pull(grad, rows, columns, upstream.addmm_(v[rows], g[columns].T))
        return grad, None, None
