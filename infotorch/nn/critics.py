r"""Critics :math:`f(x, y)` for the bounds of :mod:`infotorch.core.bounds`, and a Gaussian :math:`q(y|x)`.

``critic(x, y)`` scores all pairs: ``(B, d_x)`` and ``(C, d_y)`` give ``(B, C)``. ``critic.shifted(x, y, shifts)``
scores :math:`x_i` with :math:`y_{(i + s) \bmod B}` for each shift s: the joint pairs (shift 0) and a few product ones.

How to choose: the separable critic costs B evaluations of its networks and a matrix product; the joint one costs
:math:`B^2` evaluations and can represent more per parameter; the bilinear one suits inputs that are learned
features already.

Reference: B. Poole et al., "On variational bounds of mutual information", 2019, arXiv:1905.06922.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor, nn

from infotorch.nn._chunks import by_rows, rows_per_chunk
from infotorch.nn.mlp import mlp

_LOG_VARIANCE_LIMIT = 12.0


class Critic(nn.Module, ABC):
    """Scores of pairs.

    Attributes:
        dim_x: Columns of x.
        dim_y: Columns of y.
    """

    def __init__(self, dim_x: int, dim_y: int) -> None:
        super().__init__()
        self.dim_x, self.dim_y = dim_x, dim_y

    @abstractmethod
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Scores ``(B, C)`` of every x ``(B, dim_x)`` with every y ``(C, dim_y)``."""

    @abstractmethod
    def shifted(self, x: Tensor, y: Tensor, shifts: Sequence[int]) -> Tensor:
        """Scores ``(B, len(shifts))`` of x with y moved up by each shift."""

    def _check(self, x: Tensor, y: Tensor) -> None:
        for name, value, dim in (("x", x, self.dim_x), ("y", y, self.dim_y)):
            if value.ndim != 2 or value.shape[1] != dim:
                raise ValueError(f"{name}: expected shape (B, {dim}), got {tuple(value.shape)}")


class SeparableCritic(Critic):
    r"""Inner product of two networks: :math:`f(x, y) = g(x)^\top h(y)`.

    Args:
        dim_x: Columns of x.
        dim_y: Columns of y.
        hidden: Widths of both networks' hidden layers.
        embedding: Length of the vectors whose product is taken.

    Raises:
        ValueError: Sizes that are no positive ints.

    >>> SeparableCritic(3, 2)(torch.zeros(4, 3), torch.zeros(5, 2)).shape
    torch.Size([4, 5])
    """

    def __init__(self, dim_x: int, dim_y: int, *, hidden: Sequence[int] = (128, 128), embedding: int = 32) -> None:
        super().__init__(dim_x, dim_y)
        self.g, self.h = mlp((dim_x, *hidden, embedding)), mlp((dim_y, *hidden, embedding))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Scores of all pairs."""
        self._check(x, y)
        return self.g(x) @ self.h(y).T

    def shifted(self, x: Tensor, y: Tensor, shifts: Sequence[int]) -> Tensor:
        """Scores of some pairs; the networks see every point once."""
        self._check(x, y)
        return _shifted_products(self.g(x), self.h(y), shifts)


class BilinearCritic(Critic):
    r"""Bilinear form :math:`f(x, y) = x^\top W y + b`, which starts at 0.

    Args:
        dim_x: Columns of x.
        dim_y: Columns of y.

    >>> BilinearCritic(3, 2)(torch.zeros(4, 3), torch.zeros(5, 2)).shape
    torch.Size([4, 5])
    """

    def __init__(self, dim_x: int, dim_y: int) -> None:
        super().__init__(dim_x, dim_y)
        self.form = nn.Linear(dim_y, dim_x, bias=False)
        nn.init.zeros_(self.form.weight)  # its gradient is not 0 there, and a wrong sign takes many steps to turn
        self.offset = nn.Parameter(torch.zeros(()))  # InfoNCE and DV do not see it, NWJ and its kin do

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Scores of all pairs."""
        self._check(x, y)
        return x @ self.form(y).T + self.offset

    def shifted(self, x: Tensor, y: Tensor, shifts: Sequence[int]) -> Tensor:
        """Scores of some pairs."""
        self._check(x, y)
        return _shifted_products(x, self.form(y), shifts) + self.offset


class JointCritic(Critic):
    """A network of the concatenated pair.

    All pairs are scored a few rows at a time, and a chunk is computed again in the backward pass, so that memory is
    that of the scores and of one chunk, not of all hidden layers of all pairs. The first layer, linear in x and y,
    is applied to each point once.

    Args:
        dim_x: Columns of x.
        dim_y: Columns of y.
        hidden: Widths of the hidden layers, at least one.
        chunk: Rows of x scored together; None suits it to the device.

    Raises:
        ValueError: Sizes that are no positive ints, no hidden layer.

    >>> JointCritic(3, 2, chunk=2)(torch.zeros(4, 3), torch.zeros(5, 2)).shape
    torch.Size([4, 5])
    """

    def __init__(self, dim_x: int, dim_y: int, *, hidden: Sequence[int] = (128, 128), chunk: int | None = None) -> None:
        super().__init__(dim_x, dim_y)
        if not hidden:
            raise ValueError("hidden: expected at least one layer, got none")
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk: expected at least 1 or None, got {chunk}")
        self.net, self.width, self.chunk = mlp((dim_x + dim_y, *hidden, 1)), max(hidden), chunk

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Scores of all pairs."""
        of_x, of_y = self._first(x, y)
        size = rows_per_chunk(self.chunk, len(y) * self.width, x.device)
        return by_rows(self._pairs, (of_x,), of_y, size=size)

    def shifted(self, x: Tensor, y: Tensor, shifts: Sequence[int]) -> Tensor:
        """Scores of some pairs: ``len(shifts)`` evaluations for each x."""
        of_x, of_y = self._first(x, y)
        moved = torch.stack([of_y.roll(-s, 0) if s else of_y for s in shifts])
        return self._rest(of_x + moved).T

    def _first(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The first layer's parts, before its nonlinearity."""
        self._check(x, y)
        first = self.net[0]
        assert isinstance(first, nn.Linear)
        of_x, of_y = first.weight.split((self.dim_x, self.dim_y), 1)
        return nn.functional.linear(x, of_x, first.bias), nn.functional.linear(y, of_y)

    def _pairs(self, of_x: Tensor, of_y: Tensor) -> Tensor:
        return self._rest(of_x.unsqueeze(1) + of_y)

    def _rest(self, hidden: Tensor) -> Tensor:
        rows = hidden.flatten(0, 1)
        for layer in islice(self.net, 1, None):  # a slice of the network would be a new module every time
            rows = layer(rows)
        return rows.view(hidden.shape[:2])


class GaussianConditional(Critic):
    r"""Normal distribution :math:`q(y|x) = \prod_d \mathcal N(y_d; \mu_d(x), \sigma^2_d(x))` by one network.

    ``q(x, y)`` is the matrix :math:`\log q(y_j | x_i)` that CLUB and the leave-one-out bound read. Log-variances are
    kept within ±12 by a hyperbolic tangent (the CLUB authors' own lie within ±1, which a strong dependence leaves).

    Args:
        dim_x: Columns of x.
        dim_y: Columns of y.
        hidden: Widths of the hidden layers.
        chunk: Rows of x worked on together; None suits it to the device.

    Raises:
        ValueError: Sizes that are no positive ints.

    Reference: P. Cheng et al., 2020, arXiv:2006.12013.

    >>> GaussianConditional(3, 2)(torch.zeros(4, 3), torch.zeros(5, 2)).shape
    torch.Size([4, 5])
    """

    def __init__(self, dim_x: int, dim_y: int, *, hidden: Sequence[int] = (128, 128), chunk: int | None = None) -> None:
        super().__init__(dim_x, dim_y)
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk: expected at least 1 or None, got {chunk}")
        self.net, self.chunk = mlp((dim_x, *hidden, 2 * dim_y)), chunk

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log-variances of y given x, both ``(B, dim_y)``."""
        mean, raw = self.net(x).chunk(2, -1)
        return mean, _LOG_VARIANCE_LIMIT * torch.tanh(raw / _LOG_VARIANCE_LIMIT)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Log-densities ``(B, C)`` of every y given every x."""
        self._check(x, y)
        size = rows_per_chunk(self.chunk, len(y) * self.dim_y, x.device)
        return by_rows(_log_normal_pairs, self.moments(x), y, size=size)

    def shifted(self, x: Tensor, y: Tensor, shifts: Sequence[int]) -> Tensor:
        """Log-densities of some pairs."""
        self._check(x, y)
        mean, log_variance = self.moments(x)
        return torch.stack([_log_normal(y.roll(-s, 0) if s else y, mean, log_variance) for s in shifts], 1)


def _shifted_products(g: Tensor, h: Tensor, shifts: Sequence[int]) -> Tensor:
    return torch.stack([(g * (h.roll(-s, 0) if s else h)).sum(-1) for s in shifts], 1)


def _log_normal(y: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    square = (y - mean).square() * (-log_variance).exp()
    return -(square + log_variance + math.log(2 * math.pi)).sum(-1) / 2


def _log_normal_pairs(mean: Tensor, log_variance: Tensor, y: Tensor) -> Tensor:
    # Differences, not expanded squares: a sharp q would lose all its digits in float32.
    return _log_normal(y, mean.unsqueeze(1), log_variance.unsqueeze(1))
