"""Squared distances and the bandwidth of a Gaussian kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from infotorch.core._checks import all_finite, check_range, check_tensor

MEDIAN_ROWS = 2000  # two million pairs fix a median well enough


def check_points(name: str, x: object) -> Tensor:
    """``x`` in at least float32, if it is a floating tensor of shape ``(..., n, d)``."""
    x = check_tensor(name, x)
    if not x.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got {x.dtype} (write {name}.float())")
    if x.ndim < 2 or x.shape[-2] == 0 or x.shape[-1] == 0:
        raise ValueError(f"{name}: expected shape (..., n, d) with n, d >= 1, got {tuple(x.shape)}")
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def check_finite(name: str, x: Tensor) -> Tensor:
    """``x``, if it holds neither NaN nor infinity."""
    if not all_finite(x):
        bad = int((~x.isfinite()).sum())
        raise ValueError(f"{name}: expected finite values, got {bad} NaN or infinite entries of {x.numel()}")
    return x


def squared_distances(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Squared Euclidean distances between the rows of ``x`` and ``y`` (``x`` itself by default).

    One matrix product. The common mean is taken off first: it is what would cancel worst.

    Args:
        x: Shape ``(..., n, d)``.
        y: Shape ``(..., m, d)``.

    Returns:
        Shape ``(..., n, m)``, non-negative; without ``y`` the diagonal is exactly 0.

    >>> squared_distances(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
    tensor([[ 0., 25.],
            [25.,  0.]])
    """
    center = x.mean(-2, keepdim=True).detach()
    x = x - center
    squares = x.square().sum(-1)
    if y is None:
        result = _cross(x, x, squares, squares)
        result.diagonal(dim1=-2, dim2=-1).zero_()
    else:
        y = y - center
        result = _cross(x, y, squares, y.square().sum(-1))
    return result.clamp_(min=0)


def _cross(x: Tensor, y: Tensor, x_squares: Tensor, y_squares: Tensor) -> Tensor:
    product = torch.matmul(x, y.mT)
    return product.mul_(-2).add_(x_squares.unsqueeze(-1)).add_(y_squares.unsqueeze(-2))


def median_distance(x: Tensor, *, max_n: int = MEDIAN_ROWS) -> Tensor:
    """Median Euclidean distance over the pairs of distinct rows, without gradient: a scale for kernels.

    Where more than half of the pairs coincide, the median of the others; 1 where all do.

    Args:
        x: Shape ``(..., n, d)``.
        max_n: Above this many rows, that many evenly spaced ones stand for all.

    Returns:
        Shape ``(...)``.

    Raises:
        TypeError: ``x`` is not a floating tensor.
        ValueError: ``x`` has no rows or columns, or values that are not finite.

    >>> median_distance(torch.tensor([[0.0], [1.0], [3.0]]))
    tensor(2.)
    """
    x = check_finite("x", check_points("x", x)).detach()
    n = x.shape[-2]
    if n > max_n:
        x = x[..., torch.linspace(0, n - 1, max_n, device=x.device).round().long(), :]
        n = max_n
    if n == 1:
        return x.new_ones(x.shape[:-2])
    upper = torch.ones(n, n, dtype=torch.bool, device=x.device).triu_(1)
    pairs = squared_distances(x)[..., upper]
    median = pairs.median(-1).values
    of_others = torch.where(pairs > 0, pairs, torch.nan).nanmedian(-1).values
    return torch.where(median > 0, median, of_others.nan_to_num(1.0)).sqrt()


def bandwidth(x: Tensor, sigma: float | Tensor | str) -> float | Tensor:
    """``sigma`` as a number, or as a tensor that broadcasts against ``(..., n, d)``.

    Raises:
        ValueError: Neither positive finite numbers nor ``"median"``.
    """
    if isinstance(sigma, Tensor):
        if not bool(((sigma > 0) & (sigma < torch.inf)).all()):
            raise ValueError("sigma: expected positive finite numbers, got a tensor with another")
        return sigma[..., None, None] if sigma.ndim else sigma
    if sigma == "median":
        return median_distance(x)[..., None, None]
    if isinstance(sigma, (str, bool)):
        raise ValueError(f"sigma: expected a positive float or 'median', got {sigma!r}")
    return check_range("sigma", sigma, 0.0, low_open=True, high_open=True)
