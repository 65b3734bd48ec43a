r"""Entropy and mutual information of normal variables, and estimates that treat data as such.

The closed forms take covariances; the estimates take samples ``(n, d)``. Everything is float64, in nats and
differentiable (except ranks, which the copula form takes).
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from infotorch.core._checks import check_tensor
from infotorch.core._samples import as_samples, check_paired

_SINGULAR = 1e-12  # smallest eigenvalue of a correlation matrix that is taken at face value


def gaussian_entropy(covariance: Tensor) -> Tensor:
    r"""Differential entropy :math:`\frac12 \log\det(2 \pi e \Sigma)` of a normal vector.

    Args:
        covariance: Shape ``(..., d, d)``, positive definite.

    Returns:
        Shape ``(...)``, float64.

    Raises:
        ValueError: Not square, or not positive definite.

    >>> gaussian_entropy(torch.eye(1))
    tensor(1.4189, dtype=torch.float64)
    """
    covariance = _covariance(covariance)
    return (_log_det(covariance) + covariance.shape[-1] * math.log(2 * math.pi * math.e)) / 2


def gaussian_mi(covariance: Tensor, dim_x: int) -> Tensor:
    r"""Mutual information of two blocks of a normal vector.

    :math:`I = \frac12 (\log\det \Sigma_{xx} + \log\det \Sigma_{yy} - \log\det \Sigma)`.

    Args:
        covariance: Shape ``(..., d, d)``, positive definite; the first ``dim_x`` coordinates are X.
        dim_x: Number of X's coordinates, ``0 < dim_x < d``.

    Returns:
        Shape ``(...)``, float64.

    Raises:
        ValueError: Not square, not positive definite, ``dim_x`` out of range.

    >>> gaussian_mi(torch.tensor([[1.0, 0.6], [0.6, 1.0]]), dim_x=1)  # -log(1 - 0.36) / 2
    tensor(0.2231, dtype=torch.float64)
    """
    s = _covariance(covariance)
    if not 0 < dim_x < s.shape[-1]:
        raise ValueError(f"dim_x: expected 0 < dim_x < {s.shape[-1]}, got {dim_x}")
    return (_log_det(s[..., :dim_x, :dim_x]) + _log_det(s[..., dim_x:, dim_x:]) - _log_det(s)) / 2


def estimate_gaussian_mi(x: Tensor, y: Tensor, *, corrected: bool = True) -> Tensor:
    r"""Mutual information as if ``(x, y)`` were jointly normal, from the sample covariance.

    The finite-sample bias of :math:`\frac12\log\det` of a ``d``-dimensional sample covariance,
    :math:`b_d = \frac12 [\sum_{i=1}^d \psi(\frac{N-i}{2}) + d \log\frac{2}{N-1}]`, is known exactly for normal data and
    taken off.

    Args:
        x: Shape ``(n, dx)`` or ``(n,)``.
        y: Shape ``(n, dy)`` or ``(n,)``.
        corrected: Take the bias off. The result may then be negative.

    Returns:
        0-d, float64. Constant columns carry no information and are left out. Where the blocks share an exact
        linear combination the result is infinite, with a warning.

    Raises:
        ValueError: Different numbers of points, no more points than columns, values that are not finite.

    >>> x = torch.tensor([0.0, 1.0, 2.0, 3.0])
    >>> estimate_gaussian_mi(x, torch.tensor([1.0, 0.0, 3.0, 2.0]), corrected=False)  # correlation 0.6
    tensor(0.2231, dtype=torch.float64)
    """
    x, y = _two_samples(x, y)
    n, dx, dy = len(x), x.shape[1], y.shape[1]
    if dx == 0 or dy == 0:
        return x.new_zeros(())
    if n <= dx + dy:
        raise ValueError(f"x, y: expected more points than columns ({dx} + {dy}), got {n} points")
    rx, ry = orthonormal_columns(x), orthonormal_columns(y)
    value = _from_canonical(rx, ry)
    if corrected:
        # With columns dropped for being redundant, the dimensions are the ranks.
        ranks = (rx.shape[1], ry.shape[1])
        value = value - (_bias(n, ranks[0]) + _bias(n, ranks[1]) - _bias(n, sum(ranks)))
    return value


def canonical_correlations(x: Tensor, y: Tensor) -> Tensor:
    """Canonical correlations of two samples, descending, ``(min(dx, dy),)``.

    Raises:
        ValueError: As :func:`estimate_gaussian_mi`.

    >>> x = torch.tensor([0.0, 1.0, 2.0, 3.0])
    >>> canonical_correlations(x, torch.tensor([1.0, 0.0, 3.0, 2.0]))
    tensor([0.6000], dtype=torch.float64)
    """
    x, y = _two_samples(x, y)
    return torch.linalg.svdvals(orthonormal_columns(x).T @ orthonormal_columns(y)).clamp(max=1)


def normal_scores(x: Tensor) -> Tensor:
    r"""Each column through :math:`\Phi^{-1}(\mathrm{rank} / (n + 1))`; ties share their average rank. No gradient.

    >>> normal_scores(torch.tensor([5.0, 100.0, 7.0])).squeeze(1)
    tensor([-0.6745,  0.6745,  0.0000], dtype=torch.float64)
    """
    return scores_of_rows(as_samples("x", x).T).T


def scores_of_rows(x: Tensor) -> Tensor:
    """Normal scores of every row of ``(..., n)``, float64 and finite: many columns of one length at once."""
    x = x.contiguous()
    ordered, order = x.sort(-1)
    n, place = x.shape[-1], torch.arange(x.shape[-1], device=x.device)
    rises = ordered[..., 1:] != ordered[..., :-1]
    if bool(rises.all()):
        rank = place + 1
    else:
        edge = rises.new_ones(*x.shape[:-1], 1)
        first = torch.where(torch.cat((edge, rises), -1), place, 0).cummax(-1).values
        last = torch.where(torch.cat((rises, edge), -1), place, n).flip(-1).cummin(-1).values.flip(-1)
        rank = (first + last).to(x.dtype) / 2 + 1
    scores = torch.special.ndtri(rank.to(x.dtype) / (n + 1)).expand_as(x)
    return torch.empty_like(x).scatter_(-1, order, scores)


def copula_mi(x: Tensor, y: Tensor, *, corrected: bool = True) -> Tensor:
    """Gaussian mutual information of the normal scores: blind to monotone transforms of single columns.

    A lower bound (up to sampling error) where the marginals are continuous.

    Args:
        x: Shape ``(n, dx)`` or ``(n,)``.
        y: Shape ``(n, dy)`` or ``(n,)``.
        corrected: As :func:`estimate_gaussian_mi`.

    Raises:
        ValueError: As :func:`estimate_gaussian_mi`.

    Reference: R. Ince et al., "A statistical framework for neuroimaging data analysis based on mutual information
    estimated via a Gaussian copula", 2017.

    >>> x = torch.tensor([0.0, 1.0, 2.0, 3.0])
    >>> y = torch.tensor([1.0, 0.0, 3.0, 2.0])
    >>> bool(copula_mi(x, y.exp()) == copula_mi(x, y))
    True
    """
    return estimate_gaussian_mi(normal_scores(x), normal_scores(y), corrected=corrected)


def _two_samples(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Centered samples without constant columns; gradients are kept."""
    x, y = as_samples("x", x, keep_gradient=True), as_samples("y", y, keep_gradient=True)
    check_paired(x=x, y=y)
    return tuple((z - z.mean(0))[:, (z != z[:1]).any(0)] for z in (x, y))  # type: ignore[return-value]


def orthonormal_columns(x: Tensor) -> Tensor:
    """Orthonormal basis of the centered columns; constant and redundant ones give way, the latter with a warning."""
    x = x[:, (x != 0).any(0)]
    q, r = torch.linalg.qr(x / x.norm(dim=0))
    kept = independent(r)
    if not bool(kept.all()):
        warnings.warn(f"x, y: {int((~kept).sum())} columns are combinations of others and are left out", stacklevel=4)
        q = torch.linalg.qr(x[:, kept] / x[:, kept].norm(dim=0)).Q
    return q


def independent(r: Tensor) -> Tensor:
    """Which columns, by the triangular factor of their unit vectors, are no combination of earlier ones."""
    kept = r.diagonal(dim1=-2, dim2=-1).abs() > _SINGULAR**0.5
    return torch.nn.functional.pad(kept, (0, r.shape[-1] - kept.shape[-1]))  # no more of them than points


def _from_canonical(qx: Tensor, qy: Tensor) -> Tensor:
    """``-log det(I - C C^T) / 2`` with C of canonical correlations: the Gaussian value without large determinants."""
    cross = qx.T @ qy
    if cross.shape[0] > cross.shape[1]:
        cross = cross.T
    rest = torch.eye(len(cross), dtype=cross.dtype, device=cross.device) - cross @ cross.T
    factor, info = torch.linalg.cholesky_ex(rest)
    if bool(info) or bool((factor.diagonal() < _SINGULAR**0.5).any()):
        warnings.warn("x, y: the blocks share a linear combination; their mutual information is infinite", stacklevel=3)
        return cross.new_tensor(torch.inf)
    return -factor.diagonal().log().sum()


def _bias(n: int, d: int) -> float:
    """Mean of half the log-determinant of the sample covariance of ``n`` standard normal vectors."""
    i = torch.arange(1, d + 1, dtype=torch.float64)
    return float(torch.digamma((n - i) / 2).sum() + d * math.log(2 / (n - 1))) / 2


def _covariance(covariance: Tensor) -> Tensor:
    s = check_tensor("covariance", covariance).double()
    if s.ndim < 2 or s.shape[-1] != s.shape[-2] or s.shape[-1] == 0:
        raise ValueError(f"covariance: expected shape (..., d, d), got {tuple(s.shape)}")
    return s


def _log_det(s: Tensor) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(s)
    if bool(info.any()):
        raise ValueError("covariance: expected a positive definite matrix, got one that is not")
    return 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
