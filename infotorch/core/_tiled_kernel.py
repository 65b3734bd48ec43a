"""The diffusion operator ``diag(s) G diag(s)`` as something to multiply with: held in memory, or in tiles."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_ROWS = 256  # rows at a time whose squares are summed in float64


class DenseOperator:
    """A symmetric matrix in memory."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    def apply(self, block: Tensor) -> Tensor:
        """``A @ block``."""
        return self.matrix @ block

    def trace(self) -> float:
        """Sum of the diagonal."""
        return float(self.matrix.diagonal().sum(dtype=torch.float64))

    def square_norm(self) -> float:
        """Sum of all squared entries."""
        return float(torch.stack([(rows.double() ** 2).sum() for rows in self.matrix.split(_ROWS)]).sum())


class TiledOperator:
    """The Gaussian diffusion operator of ``points`` (already divided by sigma), recomputed tile by tile.

    Tiles below the diagonal are the transposes of those above and are never computed.
    """

    def __init__(self, points: Tensor, tile: int, *, anisotropic: bool) -> None:
        points = points - points.mean(0)
        self.points = points
        self.squares = points.square().sum(1)
        self.tile = min(tile, len(points))
        self._buffer = points.new_empty(self.tile, self.tile)
        ones = torch.ones_like(points[:, :1])
        self.scale = self._kernel_times(ones).rsqrt()
        if anisotropic:
            self.scale = self.scale * (self.scale * self._kernel_times(self.scale)).rsqrt()

    def apply(self, block: Tensor) -> Tensor:
        """``A @ block``."""
        return self.scale * self._kernel_times(self.scale * block)

    def trace(self) -> float:
        """Sum of the diagonal, where the kernel is 1."""
        return float(self.scale.double().square().sum())

    def square_norm(self) -> float:
        """Sum of all squared entries."""
        weights = self.scale.square()
        total = 0.0
        for rows, columns, kernel in self._tiles():
            part = float((weights[rows] * (kernel.square_() @ weights[columns])).sum(dtype=torch.float64))
            total += part if rows == columns else 2 * part
        return total

    def _kernel_times(self, block: Tensor) -> Tensor:
        result = torch.zeros_like(block)
        for rows, columns, kernel in self._tiles():
            result[rows].addmm_(kernel, block[columns])
            if rows != columns:
                result[columns].addmm_(kernel.mT, block[rows])
        return result

    def _tiles(self) -> Iterator[tuple[slice, slice, Tensor]]:
        n = len(self.points)
        spans = [slice(start, min(start + self.tile, n)) for start in range(0, n, self.tile)]
        for i, rows in enumerate(spans):
            for columns in spans[i:]:
                kernel = self._buffer[: rows.stop - rows.start, : columns.stop - columns.start]
                torch.mm(self.points[rows], self.points[columns].mT, out=kernel)
                kernel.sub_(self.squares[rows].unsqueeze(1), alpha=0.5).sub_(self.squares[columns], alpha=0.5)
                kernel.clamp_(max=0)
                if rows == columns:
                    kernel.diagonal().zero_()
                yield rows, columns, kernel.exp_()
