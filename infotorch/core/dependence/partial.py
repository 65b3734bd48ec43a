r"""Partial distance covariance: what is left between x and y once z is taken off both.

With the inner product of U-centered distance matrices, :math:`\langle x, y \rangle =`
:func:`~infotorch.core.dependence.u_distance_covariance_sqr`, it is that of the projections of x and y on what is
orthogonal to z. 0 does not mean conditional independence, nor the other way round; it is 0 where the projections are
orthogonal, as partial correlation is.

Reference:
    G. Székely and M. Rizzo, "Partial distance correlation with methods for dissimilarities", 2014, arXiv:1310.2926.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from infotorch.core.dependence._variables import PairMeans, as_variable, as_weights, check_lengths, pair_means
from infotorch.core.dependence.distance import check_enough, result_dtype, safe_sqrt, u_statistic


def partial_distance_covariance(x: Tensor, y: Tensor, z: Tensor, *, exponent: float = 1.0) -> Tensor:
    r"""Partial distance covariance of x and y given z.

    :math:`\langle x, y \rangle - \langle x, z \rangle \langle y, z \rangle / \langle z, z \rangle`.

    Args:
        x: Shape ``(n,)`` or ``(n, d)``, ``n >= 4``; integers and booleans of shape ``(n,)`` are categories.
        y: Likewise.
        z: Likewise. A constant takes nothing off.
        exponent: Power of the distances, in (0, 2).

    Returns:
        0-d, may be negative; float64 if an input is, else float32. Differentiable.

    Raises:
        TypeError: An argument is not a tensor.
        ValueError: Shapes that do not agree, fewer than 4 points, values that are not finite, ``exponent`` out of
            range.

    Reference: G. Székely and M. Rizzo, 2014, arXiv:1310.2926.

    >>> x = torch.tensor([0.0, 0.0, 1.0, 1.0])
    >>> partial_distance_covariance(x, x, torch.zeros(4)), partial_distance_covariance(x, x, x)
    (tensor(0.6667), tensor(0.))
    """
    product = _products(x, y, z, exponent)
    taken = _ratio(product["xz"] * product["yz"], product["zz"])
    return (product["xy"] - taken).to(result_dtype(x, y, z))


def partial_distance_correlation(x: Tensor, y: Tensor, z: Tensor, *, exponent: float = 1.0) -> Tensor:
    r"""Partial distance correlation: the cosine of the projections' angle, in [-1, 1].

    :math:`(R_{xy} - R_{xz} R_{yz}) / \sqrt{(1 - R_{xz}^2)(1 - R_{yz}^2)}` with the bias-corrected squared correlations
    R of :func:`~infotorch.core.dependence.u_distance_correlation_sqr`; 0 where z leaves nothing of x or of y.
    Arguments, result and errors are those of :func:`partial_distance_covariance`.

    Reference: G. Székely and M. Rizzo, 2014, arXiv:1310.2926.

    >>> x, y = torch.tensor([0.0, 0.0, 1.0, 1.0, 2.0]), torch.tensor([0.0, 1.0, 0.0, 1.0, 2.0])
    >>> partial_distance_correlation(x, x + y, x)
    tensor(0.)
    """
    product = _products(x, y, z, exponent)
    r = {pair: _ratio(product[pair], _root(product[pair[0] * 2], product[pair[1] * 2])) for pair in ("xy", "xz", "yz")}
    rest = safe_sqrt((1 - r["xz"].square()).clamp(min=0)) * safe_sqrt((1 - r["yz"].square()).clamp(min=0))
    # What rounding leaves of a variable that z explains is no direction.
    rest = torch.where(rest > 1e-7, rest, 0.0)
    return _ratio(r["xy"] - r["xz"] * r["yz"], rest).to(result_dtype(x, y, z))


def _products(x: Tensor, y: Tensor, z: Tensor, exponent: float) -> dict[str, Tensor]:
    """Inner products of U-centered distances of all pairs, by their names."""
    found = {name: as_variable(name, v, exponent) for name, v in (("x", x), ("y", y), ("z", z))}
    check_enough(check_lengths(**found))
    w = as_weights(None, found["x"])
    product, means = {}, {}
    for one, other in itertools.combinations("xyz", 2):
        both = pair_means(found[one], found[other], w)
        product[one + other] = u_statistic(both)
        means |= {one: both.x, other: both.y}
    for name, v in found.items():
        product[name * 2] = u_statistic(PairMeans(v.own_product(w), means[name], means[name]))
    return product


def _root(a: Tensor, b: Tensor) -> Tensor:
    return safe_sqrt(a.clamp(min=0) * b.clamp(min=0))


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    positive = b > 0
    return torch.where(positive, a / torch.where(positive, b, 1.0), 0.0)
