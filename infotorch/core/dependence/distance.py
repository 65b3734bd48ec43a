r"""Distance covariance and correlation of two samples, exact and differentiable.

With distances :math:`a_{ij} = |x_i - x_j|^\alpha` and :math:`b_{ij} = |y_i - y_j|^\alpha`, each centered to
:math:`A` and :math:`B`, the squared distance covariance is the mean of :math:`A_{ij} B_{ij}`. Its population value
is 0 exactly where x and y are independent.

A variable is a tensor of shape ``(n,)`` or ``(n, d)`` of floats, or of shape ``(n,)`` of integers or booleans, which
are categories at distance 1 of each other (write ``x.double()`` if they are numbers). Everything is summed in
float64, and gradients come back in the type of the input.

======================================  =====================  ==================
variables (``exponent=1``)              time                   memory
======================================  =====================  ==================
both on a line                          ``n log n``            ``n``
a line and categories                   ``n log n``            ``n``
categories                              ``n``                  number of cells
all others, and other exponents         ``n^2 d`` in tiles     ``n d``
======================================  =====================  ==================

The names are those of the package ``dcor``: ``_sqr`` is the square, ``u_`` the unbiased estimator.

References:
    - G. Székely, M. Rizzo and N. Bakirov, "Measuring and testing dependence by correlation of distances", 2007,
      arXiv:0803.4101.
    - G. Székely and M. Rizzo, "Partial distance correlation with methods for dissimilarities", 2014,
      arXiv:1310.2926 (the unbiased estimator).
    - X. Huo and G. Székely, "Fast computing for distance covariance", 2016, arXiv:1410.1503.
    - A. Chaudhuri and W. Hu, "A fast algorithm for computing distance correlation", 2019, arXiv:1810.11332.

Deviations from ``dcor``:
    - Integers are categories, not numbers.
    - A correlation without variance (a constant variable) is 0 with gradient 0.
    - The unbiased estimators refuse fewer than 4 points.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from infotorch.core.dependence._variables import (
    PairMeans,
    Variable,
    as_variable,
    as_weights,
    check_lengths,
    pair_means,
)


def distance_covariance_sqr(x: Tensor, y: Tensor, *, exponent: float = 1.0, weights: Tensor | None = None) -> Tensor:
    r"""Squared distance covariance (V-statistic): the mean of :math:`A_{ij} B_{ij}`, non-negative.

    :math:`A_{ij} = a_{ij} - \bar a_{i} - \bar a_{j} + \bar a`. Biased upwards by order 1/n.

    Args:
        x: Shape ``(n,)`` or ``(n, d)``.
        y: Shape ``(n,)`` or ``(n, e)``.
        exponent: Power of the distances, in (0, 2).
        weights: Shape ``(n,)``, non-negative; all means become weighted means.

    Returns:
        0-d, in the unit of x times that of y (to the exponent); float64 if an input is, else float32.

    Raises:
        TypeError: An argument is not a tensor.
        ValueError: Shapes that do not agree, values that are not finite, ``exponent`` out of range.

    Reference: G. Székely et al., 2007, arXiv:0803.4101.

    >>> distance_covariance_sqr(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 2.0]))
    tensor(0.5000)
    """
    a, b, w = _prepare(x, y, exponent, weights)
    return v_statistic(pair_means(a, b, w), w).to(result_dtype(x, y))


def u_distance_covariance_sqr(x: Tensor, y: Tensor, *, exponent: float = 1.0) -> Tensor:
    r"""Unbiased squared distance covariance (U-statistic); negative about half the time under independence.

    :math:`\frac{1}{n(n-3)} \sum_{i \ne j} A_{ij} B_{ij}` with
    :math:`A_{ij} = a_{ij} - \frac{a_{i\cdot} + a_{\cdot j}}{n-2} + \frac{a_{\cdot\cdot}}{(n-1)(n-2)}`.

    Args:
        x: Shape ``(n,)`` or ``(n, d)``, ``n >= 4``.
        y: Shape ``(n,)`` or ``(n, e)``.
        exponent: Power of the distances, in (0, 2).

    Returns:
        0-d; float64 if an input is, else float32.

    Raises:
        TypeError: An argument is not a tensor.
        ValueError: As :func:`distance_covariance_sqr`, or fewer than 4 points.

    Reference: G. Székely and M. Rizzo, 2014, arXiv:1310.2926.

    >>> x = torch.tensor([0.0, 0.0, 1.0, 1.0])
    >>> u_distance_covariance_sqr(x, x)
    tensor(0.6667)
    """
    a, b, w = _prepare(x, y, exponent, None)
    check_enough(len(a))
    return u_statistic(pair_means(a, b, w)).to(result_dtype(x, y))


def distance_covariance(x: Tensor, y: Tensor, *, exponent: float = 1.0, weights: Tensor | None = None) -> Tensor:
    """Distance covariance: the root of :func:`distance_covariance_sqr`. At 0 its gradient is set to 0.

    >>> distance_covariance(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 2.0]))
    tensor(0.7071)
    """
    return safe_sqrt(distance_covariance_sqr(x, y, exponent=exponent, weights=weights))


def distance_correlation_sqr(x: Tensor, y: Tensor, *, exponent: float = 1.0, weights: Tensor | None = None) -> Tensor:
    r"""Squared distance correlation (V-statistic), in [0, 1].

    :math:`\mathrm{dCov}^2(x, y) / \sqrt{\mathrm{dCov}^2(x, x) \, \mathrm{dCov}^2(y, y)}`: invariant to shifts,
    rotations and scale of either variable; 0 where one of them is constant. Arguments, result and errors are those of
    :func:`distance_covariance_sqr`.

    Warns:
        UserWarning: The variables have more columns together than there are points. With the number of points held, the
            value tends to 1 as columns are added, dependent or not; :func:`u_distance_correlation_sqr` does not.

    Reference: G. Székely et al., 2007, arXiv:0803.4101; G. Székely and M. Rizzo, "The distance correlation t-test of
    independence in high dimension", 2013.

    >>> distance_correlation_sqr(torch.tensor([0.0, 1.0, 3.0]), torch.tensor([5.0, 3.0, -1.0]))
    tensor(1.)
    """
    a, b, w = _prepare(x, y, exponent, weights)
    _warn_of_width(a, b)
    both = pair_means(a, b, w)
    own = [v_statistic(PairMeans(v.own_product(w), m, m), w) for v, m in ((a, both.x), (b, both.y))]
    return correlation(v_statistic(both, w), *own).to(result_dtype(x, y))


def u_distance_correlation_sqr(x: Tensor, y: Tensor, *, exponent: float = 1.0) -> Tensor:
    """Bias-corrected squared distance correlation, from :func:`u_distance_covariance_sqr`; may be negative.

    Arguments, result and errors are those of :func:`u_distance_covariance_sqr`.

    Reference: G. Székely and M. Rizzo, 2014, arXiv:1310.2926.

    >>> u_distance_correlation_sqr(torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([0.0, 1.0, 0.0, 1.0]))
    tensor(-0.5000)
    """
    a, b, w = _prepare(x, y, exponent, None)
    check_enough(len(a))
    both = pair_means(a, b, w)
    own = [u_statistic(PairMeans(v.own_product(w), m, m)) for v, m in ((a, both.x), (b, both.y))]
    return correlation(u_statistic(both), *own).to(result_dtype(x, y))


def distance_correlation(x: Tensor, y: Tensor, *, exponent: float = 1.0, weights: Tensor | None = None) -> Tensor:
    """Distance correlation: the root of :func:`distance_correlation_sqr`. At 0 its gradient is set to 0.

    >>> distance_correlation(torch.tensor([0.0, 1.0, 3.0]), torch.tensor([1.0, 1.0, 1.0]))
    tensor(0.)
    """
    return safe_sqrt(distance_correlation_sqr(x, y, exponent=exponent, weights=weights))


def v_statistic(means: PairMeans, weights: Tensor) -> Tensor:
    """Weighted mean of the product of the double-centered matrices."""
    return means.product - 2 * weights @ (means.x * means.y) + (weights @ means.x) * (weights @ means.y)


def u_statistic(means: PairMeans) -> Tensor:
    """Unbiased mean of the product of the U-centered matrices, from uniform means with empty diagonals."""
    n = means.x.shape[-1]
    rows = (means.x * means.y).sum(-1) / (n - 2)
    grand = means.x.sum(-1) * means.y.sum(-1) / ((n - 1) * (n - 2))
    return n / (n - 3) * (means.product - 2 * rows + grand)


def safe_sqrt(square: Tensor) -> Tensor:
    """Root with value and gradient 0 where there is nothing to take a root of."""
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1.0).sqrt(), 0.0)


def result_dtype(*variables: Tensor) -> torch.dtype:
    """float64 if a variable is float64, else float32."""
    return torch.float64 if any(v.dtype == torch.float64 for v in variables) else torch.float32


def check_enough(n: int) -> None:
    """At least the 4 points that an unbiased estimator needs."""
    if n < 4:
        raise ValueError(f"x: expected at least 4 points for an unbiased estimator, got {n}")


def _prepare(x: Tensor, y: Tensor, exponent: float, weights: Tensor | None) -> tuple[Variable, Variable, Tensor]:
    a, b = as_variable("x", x, exponent), as_variable("y", y, exponent)
    check_lengths(x=a, y=b)
    return a, b, as_weights(weights, a)


def _warn_of_width(x: Variable, y: Variable) -> None:
    columns = [0 if v.points is None else v.points.shape[1] for v in (x, y)]
    if max(columns) > 1 and sum(columns) > len(x):
        warnings.warn(
            f"distance_correlation: {len(x)} points of {columns[0]} + {columns[1]} columns; the biased correlation "
            "tends to 1 with the number of columns (u_distance_correlation_sqr does not)",
            stacklevel=3,
        )


def correlation(covariance: Tensor, x_variance: Tensor, y_variance: Tensor) -> Tensor:
    """Covariance over the root of both variances; 0 where one of them is."""
    scale = safe_sqrt(x_variance.clamp(min=0) * y_variance.clamp(min=0))
    return torch.where(scale > 0, covariance / torch.where(scale > 0, scale, 1.0), 0.0)
