r"""Kernel measures: dependence of two samples (HSIC) and distance of two distributions (MMD).

The kernel is Gaussian, :math:`k(x, x') = \exp(-|x - x'|^2 / (2 \sigma^2))`, linear, or, for integers and booleans,
1 for equal categories and 0 for different ones. ``sigma="median"`` is the median distance between points (no
gradient flows through it). Gaussian kernels take ``O(n^2 d)`` time and ``O(n d)`` memory, also backwards; linear
kernels and categories take ``O(n)`` time. Everything is summed in float64.

References:
    - A. Gretton et al., "Measuring statistical dependence with Hilbert-Schmidt norms", 2005 (HSIC).
    - L. Song et al., "Feature selection via dependence maximization", 2012, arXiv:0704.2668 (its unbiased estimator).
    - A. Gretton et al., "A kernel two-sample test", 2012, arXiv:0805.2368 (MMD).

Deviation: the biased HSIC is divided by :math:`n^2`, the V-statistic, as distance covariance is; Gretton et al. (2005)
divide by :math:`(n - 1)^2`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from infotorch.core._checks import check_choice, check_range
from infotorch.core._kernels import median_distance
from infotorch.core.dependence import _tiles
from infotorch.core.dependence._variables import PairMeans, Variable, as_variable, as_weights, check_lengths
from infotorch.core.dependence._variables import pair_means as variable_means
from infotorch.core.dependence.distance import check_enough, result_dtype, u_statistic, v_statistic

KERNELS = ("gaussian", "linear")
Sigma = float | str


def hsic(
    x: Tensor,
    y: Tensor,
    *,
    kernel: str = "gaussian",
    sigma: Sigma | tuple[Sigma, Sigma] = "median",
    weights: Tensor | None = None,
) -> Tensor:
    r"""Hilbert-Schmidt independence criterion (V-statistic), :math:`\mathrm{tr}(K H L H) / n^2`, non-negative.

    Args:
        x: Shape ``(n,)`` or ``(n, d)``; integers and booleans of shape ``(n,)`` are categories.
        y: Likewise.
        kernel: ``"gaussian"`` (0 in the population exactly under independence), or ``"linear"``, which sees
            correlations only: the squared norm of the covariance matrix.
        sigma: Width of the Gaussian kernels, or one for each variable.
        weights: Shape ``(n,)``, non-negative; all means become weighted means.

    Returns:
        0-d; float64 if an input is, else float32.

    Raises:
        TypeError: An argument is not a tensor.
        ValueError: Shapes that do not agree, values that are not finite, ``kernel`` or ``sigma`` out of range.

    Reference: A. Gretton et al., 2005.

    >>> x = torch.tensor([0.0, 1.0])
    >>> hsic(x, x, kernel="linear"), hsic(x, torch.tensor([0, 1]), kernel="linear")
    (tensor(0.0625), tensor(0.1250))
    """
    a, b, w = *_two(x, y), as_weights(weights, as_variable("x", x))
    if check_choice("kernel", kernel, KERNELS) == "linear":
        left, right = (features - w @ features for features in (_features(a), _features(b)))
        return (left.T @ (w.unsqueeze(1) * right)).square().sum().to(result_dtype(x, y))
    means, sign, _ = _kernel_means(a, b, sigma, w)
    return (sign * v_statistic(means, w)).to(result_dtype(x, y))


def u_hsic(x: Tensor, y: Tensor, *, kernel: str = "gaussian", sigma: Sigma | tuple[Sigma, Sigma] = "median") -> Tensor:
    r"""Unbiased Hilbert-Schmidt independence criterion; may be negative.

    :math:`\frac{1}{n(n-3)} \left[ \mathrm{tr}(\tilde K \tilde L)
    + \frac{1^\top \tilde K 1 \, 1^\top \tilde L 1}{(n-1)(n-2)} - \frac{2}{n-2} 1^\top \tilde K \tilde L 1 \right]`,
    where the tilde empties the diagonals. Arguments and result are those of :func:`hsic`.

    Raises:
        TypeError: An argument is not a tensor.
        ValueError: As :func:`hsic`, or fewer than 4 points.

    Reference: L. Song et al., 2012, arXiv:0704.2668.

    >>> u_hsic(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 1]))  # as distance covariance on categories
    tensor(0.6667)
    """
    a, b = _two(x, y)
    w = as_weights(None, a)
    check_enough(n := len(w))
    if check_choice("kernel", kernel, KERNELS) == "linear":
        left, right = (features - features.mean(0) for features in (_features(a), _features(b)))
        own = left.square().sum(1), right.square().sum(1)
        product = ((left.T @ right).square().sum() - own[0] @ own[1]) / n**2
        return u_statistic(PairMeans(product, -own[0] / n, -own[1] / n)).to(result_dtype(x, y))
    means, sign, sides = _kernel_means(a, b, sigma, w)
    return (sign * u_statistic(without_diagonal(means, *sides))).to(result_dtype(x, y))


def mmd_sqr(x: Tensor, y: Tensor, *, sigma: Sigma = "median") -> Tensor:
    r"""Squared maximum mean discrepancy (V-statistic) of two samples under a Gaussian kernel, non-negative.

    :math:`\overline{k(x, x')} + \overline{k(y, y')} - 2\,\overline{k(x, y)}`, means over all pairs. 0 in the population
    exactly where the distributions are equal; biased upwards by order 1/n.

    Args:
        x: Shape ``(n,)`` or ``(n, d)``, floats.
        y: Shape ``(m,)`` or ``(m, d)``.
        sigma: Width of the kernel; ``"median"`` over the pooled sample.

    Returns:
        0-d; float64 if an input is, else float32.

    Raises:
        TypeError: An argument is not a tensor.
        ValueError: Dimensions that differ, values that are not finite, ``sigma`` out of range.

    Reference: A. Gretton et al., 2012, arXiv:0805.2368.

    >>> x = torch.tensor([0.0, 1.0])
    >>> mmd_sqr(x, x), mmd_sqr(x, x + 100, sigma=1.0)
    (tensor(0.), tensor(1.6065))
    """
    z, n = pooled(x, y)
    sign = torch.cat((z.new_full((n,), 1 / n), z.new_full((len(z) - n,), -1 / (len(z) - n))))
    sums = _tiles.kernel_sums(z, gaussian(z, sigma), sign.unsqueeze(1)).squeeze(1)
    return (sign @ sums).to(result_dtype(x, y))


def u_mmd_sqr(x: Tensor, y: Tensor, *, sigma: Sigma = "median") -> Tensor:
    """Unbiased squared maximum mean discrepancy: means over pairs of different points; may be negative.

    Arguments and result are those of :func:`mmd_sqr`.

    Raises:
        TypeError: An argument is not a tensor.
        ValueError: As :func:`mmd_sqr`, or a sample of fewer than 2 points.

    Reference: A. Gretton et al., 2012, arXiv:0805.2368.

    >>> u_mmd_sqr(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]), sigma=1.0)
    tensor(-0.3935)
    """
    z, n = pooled(x, y)
    first = torch.zeros_like(z[:, :1])
    first[:n] = 1.0
    if min(n, len(z) - n) < 2:
        raise ValueError(f"x, y: expected at least 2 points in each sample, got {n} and {len(z) - n}")
    sums = _tiles.kernel_sums(z, gaussian(z, sigma), torch.cat((first, torch.ones_like(first)), 1))
    return u_mmd_of_sums(first, sums[:, :1], sums[:, 1]).squeeze(0).to(result_dtype(x, y))


def u_mmd_of_sums(first: Tensor, sums: Tensor, totals: Tensor) -> Tensor:
    """Unbiased MMD of every column of ``first [n + m, k]``, which marks the first sample's points.

    ``sums`` is ``K @ first`` and ``totals`` is ``K @ 1``, for a kernel that is 1 on its diagonal.
    """
    n = first[:, 0].sum()
    m = len(first) - n
    within = (first * sums).sum(0)
    across = totals @ first - within
    rest = totals.sum() - within - 2 * across
    return (within - n) / (n * (n - 1)) + (rest - m) / (m * (m - 1)) - 2 * across / (n * m)


def pooled(x: Tensor, y: Tensor) -> tuple[Tensor, int]:
    """Both samples in one ``[n + m, d]``, and n."""
    a, b = (as_variable(name, sample).points for name, sample in (("x", x), ("y", y)))
    if a is None or b is None or a.shape[1] != b.shape[1]:
        raise ValueError(
            f"x, y: expected floats of shapes (n, d) and (m, d), got {x.dtype} {tuple(x.shape)} and "
            f"{y.dtype} {tuple(y.shape)}"
        )
    return torch.cat((a, b)), len(a)


def gaussian(points: Tensor, sigma: Sigma) -> _tiles.Points:
    """Points under a Gaussian kernel of the given width."""
    if isinstance(sigma, str):
        check_choice("sigma", sigma, ("median",))
        sigma = float(median_distance(points.detach()))
    return _tiles.Points(points, _tiles.Gaussian(check_range("sigma", sigma, 0.0, math.inf, low_open=True)))


def kernel_sides(
    x: Variable, y: Variable, sigma: Sigma | tuple[Sigma, Sigma]
) -> tuple[list[_tiles.Points | _tiles.Cells], float]:
    """Both variables under their kernels, and a sign.

    Categories are left with their distance: their kernel is 1 minus that, and of a centered constant nothing is
    left, so only the sign differs.
    """
    widths = sigma if isinstance(sigma, tuple) else (sigma, sigma)
    sides = [v.side if v.points is None else gaussian(v.points, s) for v, s in zip((x, y), widths, strict=True)]
    return sides, (-1.0) ** sum(v.points is None for v in (x, y))


def without_diagonal(means: PairMeans, x: _tiles.Side, y: _tiles.Side) -> PairMeans:
    """Uniform means over all pairs, made means with empty diagonals."""
    n = len(means.x)
    product = means.product - x.diagonal * y.diagonal / n
    return PairMeans(product, means.x - x.diagonal / n, means.y - y.diagonal / n)


def _kernel_means(
    x: Variable, y: Variable, sigma: Sigma | tuple[Sigma, Sigma], weights: Tensor
) -> tuple[PairMeans, float, list[_tiles.Points | _tiles.Cells]]:
    """Means over pairs, with the sign and the variables of :func:`kernel_sides`."""
    sides, sign = kernel_sides(x, y, sigma)
    if x.points is None and y.points is None:  # counting cells is quicker than tiles
        return variable_means(x, y, weights), sign, sides
    return PairMeans(*_tiles.pair_means(x.leaf, y.leaf, sides[0], sides[1], weights)), sign, sides


def _two(x: Tensor, y: Tensor) -> tuple[Variable, Variable]:
    a, b = as_variable("x", x), as_variable("y", y)
    check_lengths(x=a, y=b)
    return a, b


def _features(variable: Variable) -> Tensor:
    """Vectors whose inner products are the linear kernel."""
    if variable.points is not None:
        return variable.points
    assert variable.cell is not None
    return torch.nn.functional.one_hot(variable.cell).double()
