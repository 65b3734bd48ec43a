"""Sums over all pairs of points by tiles: ``O(n)`` memory, and a backward pass that computes the tiles again.

Everything runs in float64, and only tiles on and above the diagonal are visited: entries are symmetric.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from infotorch.core._autograd import first_order

_CPU_SIDE, _GPU_SIDE = 384, 4096  # a tile of doubles should stay in a CPU's second-level cache
_ROUNDING = 64 * torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Power:
    """Distance to a power; 0 at distance 0."""

    exponent: float = 1.0

    def entry(self, square: Tensor) -> Tensor:
        """Entries in place of squared distances."""
        if self.exponent != 1:
            return square.pow_(self.exponent / 2)
        # On a CPU torch takes three times as long for square roots of doubles.
        return square.pow_(-0.5).reciprocal_() if square.device.type == "cpu" else square.sqrt_()

    def slope(self, square: Tensor) -> Tensor:
        """``s`` in place of squared distances: the entry's gradient in ``x_i`` is ``s (x_i - x_j)``."""
        found = square.pow_(self.exponent / 2 - 1)
        return found if self.exponent == 1 else found.mul_(self.exponent)

    @property
    def flat(self) -> float:
        """A squared distance at which the slope is 0 (at 0 it may be infinite)."""
        return math.inf if self.exponent < 2 else 0.0


@dataclass(frozen=True)
class Gaussian:
    """Kernel ``exp(-distance^2 / (2 sigma^2))``."""

    sigma: float

    def entry(self, square: Tensor) -> Tensor:
        """As `Power.entry`."""
        return square.mul_(-0.5 / self.sigma**2).exp_()

    def slope(self, square: Tensor) -> Tensor:
        """As `Power.slope`."""
        return self.entry(square).mul_(-1 / self.sigma**2)

    flat = math.inf


Metric = Power | Gaussian


class Side(Protocol):
    """One variable of a sum over pairs.

    Attributes:
        diagonal: What every point has with itself.
    """

    @property
    def diagonal(self) -> float: ...

    def tile(self, rows: slice, columns: slice, out: Tensor | None = None) -> Tensor:
        """The entries of a tile, in a new tensor or in ``out``."""
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
        self.squares = self.x.square().sum(1, keepdim=True)
        ones = torch.ones_like(self.squares)
        # Products of the rows of these two are squared distances.
        self.left = torch.cat((self.x, self.squares, ones), 1)
        self.right = torch.cat((-2 * self.x, ones, self.squares), 1)
        self.transposed = torch.cat((self.x, ones), 1).T.contiguous()
        self.metric = metric
        self.diagonal = float(isinstance(metric, Gaussian))

    def take(self, index: Tensor) -> Points:
        """As `Side.take`."""
        return Points(self.x[index], self.metric)

    def square(self, rows: slice, columns: slice, out: Tensor | None, *, nowhere: float = 0.0) -> Tensor:
        """Squared distances of a tile; ``nowhere`` in place of 0.

        What the expanded square cannot tell from 0 is 0: duplicates, which categories are made of.
        """
        if self.x.shape[1] == 1:
            found = torch.sub(self.x[rows], self.x[columns].T, out=out).square_()
            if nowhere:
                found.masked_fill_(found == 0, nowhere)
            return found
        found = torch.mm(self.left[rows], self.right[columns].T, out=out)
        if rows == columns:
            found.fill_diagonal_(nowhere)
        elif found.device.type == "cpu":  # to look first is cheaper, and without delay
            largest = self.squares[rows].max() + self.squares[columns].max()
            if bool(found.amin() > _ROUNDING * largest):
                return found
        bound = torch.add(self.squares[rows], self.squares[columns].T).mul_(_ROUNDING)
        return found.masked_fill_(found <= bound, nowhere)

    def tile(self, rows: slice, columns: slice, out: Tensor | None = None) -> Tensor:
        """As `Side.tile`."""
        if self.x.shape[1] == 1 and self.metric == Power():
            return torch.sub(self.x[rows], self.x[columns].T, out=out).abs_()
        return self.metric.entry(self.square(rows, columns, out))

    def pull(self, total: Tensor, rows: slice, columns: slice, upstream: Tensor, out: Tensor) -> None:
        """Add to ``total [d + 1, n]`` what ``upstream``, the gradient of the tile, does to the points.

        ``upstream`` counts an entry and its mirror image. It and ``out`` are overwritten. :meth:`gradient` makes of the
        total of all tiles what it is.
        """
        h = upstream.mul_(self.metric.slope(self.square(rows, columns, out, nowhere=self.metric.flat)))
        total[:, rows] += self.transposed[:, columns] @ h.T
        if rows != columns:
            total[:, columns] += self.transposed[:, rows] @ h

    def gradient(self, total: Tensor) -> Tensor:
        """``[n, d]``: ``sum_j h_ij (x_i - x_j)``."""
        return total[-1].unsqueeze(1) * self.x - total[:-1].T


class Cells:
    """Cell numbers ``[n]`` with the distances ``[G, G]`` between cells; 1 between all by default."""

    diagonal = 0.0

    def __init__(self, cell: Tensor, between: Tensor | None = None) -> None:
        self.cell, self.between = cell, between
        self.number = cell.double()  # torch compares and stores in one type much faster

    def take(self, index: Tensor) -> Cells:
        """As `Side.take`."""
        return Cells(self.cell[index], self.between)

    def tile(self, rows: slice, columns: slice, out: Tensor | None = None) -> Tensor:
        """As `Side.tile`."""
        if self.between is None:
            out = self.number.new_empty(*_shape(rows, columns, len(self.cell))) if out is None else out
            return torch.ne(self.number[rows].unsqueeze(1), self.number[columns], out=out)
        found = self.between.index_select(0, self.cell[rows]).index_select(1, self.cell[columns])
        return found if out is None else out.copy_(found)


def _shape(rows: slice, columns: slice, n: int) -> tuple[int, int]:
    return len(range(*rows.indices(n))), len(range(*columns.indices(n)))


def tiles(n: int, device: torch.device) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the tiles on and above the diagonal."""
    side = _CPU_SIDE if device.type == "cpu" else _GPU_SIDE
    parts = [slice(start, min(start + side, n)) for start in range(0, n, side)]
    for i, rows in enumerate(parts):
        for columns in parts[i:]:
            yield rows, columns


class Buffers:
    """Room for a few tiles, used again for each: fresh memory costs a CPU more than most of what fills it."""

    def __init__(self, count: int, n: int, device: torch.device) -> None:
        side = min(n, _CPU_SIDE if device.type == "cpu" else _GPU_SIDE)
        self.memory = torch.empty(count, side * side, dtype=torch.float64, device=device)

    def of(self, rows: slice, columns: slice) -> Iterator[Tensor]:
        """Tensors of a tile's shape."""
        shape = rows.stop - rows.start, columns.stop - columns.start
        return (row[: shape[0] * shape[1]].view(shape) for row in self.memory)


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
        del x, y
        ctx.sides = x_side, y_side
        ctx.save_for_backward(w)
        means = torch.zeros_like(w), torch.zeros_like(w)
        product = w.new_zeros(())
        buffers = Buffers(2, len(w), w.device)
        for rows, columns in tiles(len(w), w.device):
            a, b = (
                side.tile(rows, columns, out)
                for side, out in zip((x_side, y_side), buffers.of(rows, columns), strict=True)
            )
            add_product(means[0], a, rows, columns, w)
            add_product(means[1], b, rows, columns, w)
            product += (1 + (rows != columns)) * (w[rows] @ (a.mul_(b) @ w[columns]))
        return product, *means

    @staticmethod
    @first_order
    def backward(ctx: Any, of_product: Tensor, *of_means: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (w,) = ctx.saved_tensors
        x, y = ctx.sides
        found = [
            (own, other, torch.zeros_like(own.transposed), g) if wanted else None
            for own, other, g, wanted in zip((x, y), (y, x), of_means, ctx.needs_input_grad, strict=False)
        ]
        twice = 2 * of_product * w
        buffers = Buffers(2, len(w), w.device)
        for rows, columns in tiles(len(w), w.device):
            first, second = buffers.of(rows, columns)
            for own, other, total, g in filter(None, found):
                upstream = other.tile(rows, columns, first).mul_(twice[rows].unsqueeze(1)).mul_(w[columns])
                upstream.addr_(g[rows], w[columns]).addr_(w[rows], g[columns])
                own.pull(total, rows, columns, upstream, second)
        return *(None if f is None else f[0].gradient(f[2]) for f in found), None, None, None


def kernel_sums(x: Tensor, side: Points, vectors: Tensor) -> Tensor:
    """``K @ vectors`` for the matrix ``K`` of all entries; ``vectors [n, k]``; differentiable in ``x [n, d]``."""
    return _KernelSums.apply(x, side, vectors)  # pyright: ignore[reportReturnType]


class _KernelSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, side: Points, vectors: Tensor) -> Tensor:
        ctx.side = side
        ctx.save_for_backward(vectors)
        out = torch.zeros_like(vectors)
        buffers = Buffers(1, len(x), x.device)
        for rows, columns in tiles(len(x), x.device):
            (room,) = buffers.of(rows, columns)
            add_product(out, side.tile(rows, columns, room), rows, columns, vectors)
        return out

    @staticmethod
    @first_order
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (v,) = ctx.saved_tensors
        side: Points = ctx.side
        total = torch.zeros_like(side.transposed)
        buffers = Buffers(2, len(v), v.device)
        for rows, columns in tiles(len(v), v.device):
            upstream, room = buffers.of(rows, columns)
            torch.mm(g[rows], v[columns].T, out=upstream).addmm_(v[rows], g[columns].T)
            side.pull(total, rows, columns, upstream, room)
        return side.gradient(total), None, None
