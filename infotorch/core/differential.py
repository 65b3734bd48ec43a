r"""Entropy and mutual information of continuous and mixed samples, by nearest neighbors.

Samples are ``(n, d)`` or ``(n,)``; all is computed in float64 and given in nats. ``pointwise=True`` returns each
point's part instead of the mean. Nothing is clipped and nothing is standardized here: scale the columns to
comparable spread first (mutual information is invariant to it, the estimators are not).

All of these fall short of the truth where the information is large or the dimensions many, and give no sign of
it: at 16 + 16 dimensions with 8 nats between them, 10,000 points show fewer than 3.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from infotorch.core._checks import check_choice
from infotorch.core._samples import as_samples, check_neighbors, check_paired, warn_few
from infotorch.core.discrete import encode
from infotorch.core.neighbors import count_within, joint_counts, knn

_TIES = ("mixture", "raise")
_DEPENDENT = 1e-12  # eigenvalue of the correlation matrix below which a column follows from the others


def kl_entropy(
    x: Tensor, k: int = 3, *, metric: str = "max", degenerate: str = "raise", pointwise: bool = False
) -> Tensor:
    r"""Kozachenko-Leonenko differential entropy :math:`\psi(n) - \psi(k) + \log c_d + \frac dn \sum_i \log r_i`.

    ``r_i`` is the distance to the k-th neighbor, ``c_d`` the volume of the unit ball.

    Args:
        x: Shape ``(n, d)`` or ``(n,)``. Differentiable through the distances; who is whose neighbor is held fixed.
        k: Neighbor, ``1 <= k < n``.
        metric: ``"max"`` or ``"euclidean"``.
        degenerate: What to do where the sample has no density and the entropy is minus infinity: a column is constant
            or a linear combination of others (looked for where ``n > d``), or more than k points coincide.
            ``"raise"`` raises; ``"minus_inf"`` warns and returns minus infinity (gradients stay finite). Or drop the
            column, raise ``k``, or add :func:`jitter`.
        pointwise: Return ``(n,)`` terms, whose mean is the estimate.

    Returns:
        0-d or ``(n,)``.

    Raises:
        ValueError: ``k >= n``, values that are not finite, unknown option, a degenerate sample.

    Reference: L. Kozachenko and N. Leonenko, "Sample estimate of the entropy of a random vector", 1987.

    >>> kl_entropy(torch.tensor([0.0, 1.0, 2.0, 3.0]), k=1)  # log 2 + 1 + 1/2 + 1/3
    tensor(2.5265, dtype=torch.float64)
    """
    x = as_samples("x", x, keep_gradient=True)
    n, d = x.shape
    check_neighbors(k, n)
    warn_few(k, n)
    check_choice("degenerate", degenerate, ("raise", "minus_inf"))
    distances, indices = knn(x, k, metric=metric)
    apart = distances[:, -1] > 0
    trouble = _degeneracy(x.detach())
    flat = trouble is not None
    if not flat and not bool(apart.all()):
        trouble = f"more than k={k} points coincide"
    if trouble is not None:
        message = f"x: {trouble}, so its differential entropy is minus infinity"
        if degenerate == "raise":
            raise ValueError(f"{message} (drop it, raise k, add jitter, or ask for degenerate='minus_inf')")
        warnings.warn(message, stacklevel=2)
    radius = distances[:, -1]
    if x.requires_grad:
        gap = x - x[indices[:, -1]]
        radius = gap.abs().amax(1) if metric == "max" else torch.where(apart, gap.square().sum(1), 1.0).sqrt()
    unit_ball = d * math.log(2) if metric == "max" else d / 2 * math.log(math.pi) - math.lgamma(d / 2 + 1)
    log_radius = torch.where(apart, torch.where(apart, radius, 1.0).log(), -torch.inf) - (torch.inf if flat else 0)
    terms = _psi(n) - _psi(k) + unit_ball + d * log_radius
    return terms if pointwise else terms.mean()


def _degeneracy(x: Tensor) -> str | None:
    """What keeps ``x`` in a space of fewer dimensions; None where there are too few points to tell."""
    n, d = x.shape
    if bool((x == x[:1]).all(0).any()):
        return "a column is constant"
    if d == 1 or n <= d:
        return None
    scaled = x - x.mean(0)
    scaled = scaled / torch.linalg.vector_norm(scaled, dim=0)
    dependent = bool(torch.linalg.eigvalsh(scaled.T @ scaled)[0] < _DEPENDENT)
    return "a column is a linear combination of others" if dependent else None


def ksg_mi(
    x: Tensor,
    y: Tensor,
    *more: Tensor,
    k: int = 3,
    variant: int = 1,
    metric: str = "max",
    ties: str = "mixture",
    pointwise: bool = False,
) -> Tensor:
    r"""Kraskov-Stögbauer-Grassberger mutual information of continuous samples.

    Variant 1: :math:`\psi(k) + (m-1)\psi(n) - \overline{\sum_v \psi(n_v + 1)}`, ``n_v`` the points whose distance
    in variable v is strictly below the joint k-th distance. Variant 2:
    :math:`\psi(k) - \frac{m-1}{k} + (m-1)\psi(n) - \overline{\sum_v \psi(n_v)}`, ``n_v`` the points within the k
    neighbors' reach in v, inclusive. Joint distances are the largest of the variables' distances.

    Args:
        x: Shape ``(n, dx)`` or ``(n,)``.
        y: Likewise.
        more: Further variables: with ``m`` of them the result is their multi-information.
        k: Neighbor.
        variant: 1 (less variance) or 2 (less bias in high dimension).
        metric: Distance inside a variable, ``"max"`` or ``"euclidean"``.
        ties: What to do where k points coincide and the estimator is undefined: ``"mixture"`` warns and returns
            :func:`mixture_mi` (two variables), ``"raise"`` raises. Or add :func:`jitter` beforehand.
        pointwise: Return ``(n,)`` terms, whose mean is the estimate.

    Returns:
        0-d or ``(n,)``, without gradient. Negative values are possible and mean "near 0".

    Raises:
        ValueError: ``k >= n``, different numbers of points, values that are not finite, unknown option, ties.

    Reference: A. Kraskov, H. Stögbauer and P. Grassberger, "Estimating mutual information", 2004,
    arXiv:cond-mat/0305641.

    >>> x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    >>> noise = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    >>> bool((ksg_mi(x, 0.75 * x + (1 - 0.75**2) ** 0.5 * noise) - 0.4133).abs() < 0.05)
    True
    """
    if variant not in (1, 2):
        raise ValueError(f"variant: expected 1 or 2, got {variant!r}")
    check_choice("ties", ties, _TIES)
    blocks = [as_samples(name, z) for name, z in zip(_names(more), (x, y, *more), strict=True)]
    n = check_paired(**dict(zip(_names(more), blocks, strict=True)))
    check_neighbors(k, n)
    warn_few(k, n)
    rule = "joint" if variant == 1 else "projected"
    found = joint_counts(blocks, k, [(i,) for i in range(len(blocks))], rule=rule, metric=metric)
    tied = int((found.radius == 0).sum())
    if tied and any(not bool((z == z[:1]).all()) for z in blocks):
        message = f"x, y: {tied} of {n} points coincide with k={k} or more others; nearest neighbors are undefined"
        if ties == "raise" or more:
            raise ValueError(f"{message} (add jitter, or use discrete estimators)")
        remedy = "falling back to the mixture estimator, which is too high for rounded numbers (add jitter to those)"
        warnings.warn(f"{message}; {remedy}", stacklevel=2)
        return mixture_mi(x, y, k=k, pointwise=pointwise)
    coincident = int((found.nearest == 0).sum())
    if coincident and not tied:
        message = f"x, y: {coincident} of {n} points coincide with another, so the samples are not continuous"
        warnings.warn(f"{message}; add jitter to rounded numbers, or use atomic_mi", stacklevel=2)
    m = len(blocks) - 1
    if tied:  # all columns are constant: nothing can be learned from them
        terms = torch.zeros_like(found.radius)
    elif variant == 1:
        terms = _psi(k) + m * _psi(n) - sum(_psi(c + 1) for c in found.counts)
    else:
        terms = _psi(k) - m / k + m * _psi(n) - sum(_psi(c) for c in found.counts)
    return terms if pointwise else terms.mean()


def ross_mi(x: Tensor, labels: Tensor, *, k: int = 3, metric: str = "max", pointwise: bool = False) -> Tensor:
    r"""Ross's mutual information of a continuous sample and a discrete label.

    :math:`\psi(n) + \overline{\psi(k_i) - \psi(n_c) - \psi(m_i)}`: ``m_i`` the points of any class closer than the
    point's k-th neighbor within its class (or its last, in a class of at most k), ``k_i`` those of its own class, the
    point itself included in both. Classes of a single point are left out.

    Without ties ``k_i`` is ``min(k, n_c - 1)``, as published. With ties fewer points may be closer than the k-th, and
    where more than k coincide, ``k_i`` and ``m_i`` count the coinciding ones, as Gao et al. do for mixtures. For values
    that all repeat often this is the plug-in estimate with digammas for logarithms, and where ties come from rounding
    it is what small noise gives (scikit-learn's treatment) without its randomness; the published numbers of neighbors
    lose nats there.

    Args:
        x: Continuous, ``(n, d)`` or ``(n,)``.
        labels: Integers or booleans, ``(n,)`` (several columns are read as one joint label).
        k: Neighbor.
        metric: ``"max"`` or ``"euclidean"``.
        pointwise: Return ``(n,)`` terms, whose mean over the points that were kept is the estimate; points left
            out hold NaN.

    Raises:
        TypeError: Floating-point labels.
        ValueError: ``k >= n``, different numbers of points, no class of two points, values that are not finite.

    Reference: B. Ross, "Mutual information between discrete and continuous data sets", 2014; for ties W. Gao et al.,
    2017, arXiv:1709.06212.

    >>> ross_mi(torch.tensor([0.0, 1.0, 10.0, 11.0]), torch.tensor([0, 0, 1, 1]), k=1)
    tensor(0.8333, dtype=torch.float64)
    """
    x, codes = as_samples("x", x), encode(labels=labels)
    check_neighbors(k, check_paired(x=x, labels=codes))
    sizes = torch.bincount(codes)
    kept = (sizes[codes] > 1).nonzero().squeeze(1)
    if len(kept) == 0:
        raise ValueError("labels: expected a class of at least 2 points, got singletons only")
    points, codes, sizes = x[kept], codes[kept], sizes.to(x.device)
    radius, own = x.new_empty(len(kept)), torch.empty_like(codes)
    for label in codes.unique():
        members = (codes == label).nonzero().squeeze(1)
        radius[members], own[members] = _closer(points[members], min(k, len(members) - 1), metric)
    # One unit in the last place less: the neighbor that set the radius is outside, exact duplicates are not.
    radius = torch.nextafter(radius, radius.new_zeros(()))
    within = count_within(points, radius, strict=False, metric=metric) + 1
    terms = _psi(len(kept)) + _psi(own) - _psi(sizes[codes]) - _psi(within)
    if not pointwise:
        return terms.mean()
    return x.new_full((len(x),), torch.nan).index_copy_(0, kept, terms)


def _closer(x: Tensor, k: int, metric: str) -> tuple[Tensor, Tensor]:
    """Distance to the k-th neighbor, and how many points are closer, the point itself included; coincide, where 0."""
    distances = knn(x, k, metric=metric)[0]
    radius = distances[:, -1]
    closer = (distances < radius.unsqueeze(1)).sum(1) + 1
    coincident = radius == 0
    if bool(coincident.any()):
        closer = torch.where(coincident, count_within(x, torch.zeros_like(radius), strict=False) + 1, closer)
    return radius, closer


def mixture_mi(
    x: Tensor, y: Tensor, *, k: int = 3, form: str = "code", metric: str = "max", pointwise: bool = False
) -> Tensor:
    r"""Gao's mutual information of discrete, continuous and mixed samples.

    With ``rho_i`` the joint k-th distance and ``k_i`` the number of coinciding points where it is 0, else ``k``:
    ``form="paper"`` is :math:`\overline{\psi(k_i) + \log n - \log(n_x + 1) - \log(n_y + 1)}` with points within
    ``rho_i``, inclusive; ``form="code"``, the authors' script, is
    :math:`\overline{\psi(k_i) + \log n - \psi(n_x) - \psi(n_y)}` with points strictly closer than ``rho_i``
    (coinciding, where it is 0), the point itself counted in ``n_x``, ``n_y`` and ``k_i``. The paper's form needs a
    growing ``k``: at a fixed one it stays low by up to ``log(k + 1) - psi(k)`` (0.46 at k = 3), however many the
    points.

    Args:
        x: Shape ``(n, dx)`` or ``(n,)``; integers are read as numbers.
        y: Likewise.
        k: Neighbor.
        form: ``"code"`` or ``"paper"``.
        metric: Distance inside a variable, ``"max"`` or ``"euclidean"``.
        pointwise: Return ``(n,)`` terms, whose mean is the estimate.

    Raises:
        ValueError: ``k >= n``, different numbers of points, values that are not finite, unknown option.

    Reference: W. Gao, S. Kannan, S. Oh and P. Viswanath, "Estimating mutual information for discrete-continuous
    mixtures", 2017, arXiv:1709.06212.

    >>> x = torch.tensor([0, 1]).repeat(50)
    >>> mixture_mi(x, x)  # log 2 + 0.01
    tensor(0.7032, dtype=torch.float64)
    """
    check_choice("form", form, ("code", "paper"))
    x, y = as_samples("x", x), as_samples("y", y)
    n = check_paired(x=x, y=y)
    check_neighbors(k, n)
    warn_few(k, n)
    if metric == "max":
        radius = knn(torch.cat((x, y), 1), k)[0][:, -1]
    else:
        radius = joint_counts([x, y], k, [(0,), (1,)], metric=metric).radius
    coincide = count_within(torch.cat((x, y), 1), torch.zeros_like(radius), strict=False)
    reach = radius if form == "paper" else torch.nextafter(radius, radius.new_zeros(()))
    nx, ny = (count_within(z, reach, strict=False, metric=metric) + 1 for z in (x, y))
    if form == "paper":
        terms = _psi(torch.where(radius == 0, coincide, k)) + math.log(n) - (nx.double() * ny).log()
    else:
        terms = _psi(torch.where(radius == 0, coincide + 1, k)) + math.log(n) - _psi(nx) - _psi(ny)
    return terms if pointwise else terms.mean()


def ksg_cmi(x: Tensor, y: Tensor, z: Tensor, *, k: int = 3, metric: str = "max", pointwise: bool = False) -> Tensor:
    r"""Frenzel-Pompe conditional mutual information of continuous samples.

    :math:`\psi(k) + \overline{\psi(n_z + 1) - \psi(n_{xz} + 1) - \psi(n_{yz} + 1)}`, points strictly closer than
    the joint k-th distance.

    Args:
        x: Shape ``(n, dx)`` or ``(n,)``.
        y: Likewise.
        z: Likewise: the condition.
        k: Neighbor.
        metric: Distance inside a variable, ``"max"`` or ``"euclidean"``.
        pointwise: Return ``(n,)`` terms, whose mean is the estimate.

    Raises:
        ValueError: ``k >= n``, different numbers of points, values that are not finite, unknown metric, or points
            that coincide with ``k`` others, where the estimator is undefined.

    Reference: S. Frenzel and B. Pompe, "Partial mutual information for coupling analysis of multivariate time
    series", 2007.

    >>> x, y, z = torch.randn(3, 500, generator=torch.Generator().manual_seed(0))
    >>> bool(ksg_cmi(x + z, y + z, z).abs() < 0.1)  # z explains all that they share
    True
    """
    blocks = [as_samples(name, v) for name, v in (("x", x), ("y", y), ("z", z))]
    n = check_paired(x=blocks[0], y=blocks[1], z=blocks[2])
    check_neighbors(k, n)
    warn_few(k, n)
    found = joint_counts(blocks, k, [(2,), (0, 2), (1, 2)], metric=metric)
    tied = int((found.radius == 0).sum())
    if tied:
        raise ValueError(
            f"x, y, z: {tied} of {n} points coincide with k={k} or more others; nearest neighbors are undefined "
            "(add jitter, or use discrete estimators)"
        )
    nz, nxz, nyz = found.counts
    terms = _psi(k) + _psi(nz + 1) - _psi(nxz + 1) - _psi(nyz + 1)
    return terms if pointwise else terms.mean()


def jitter(x: Tensor, *, scale: float = 1e-10, generator: torch.Generator | None = None) -> Tensor:
    r"""Break ties: add normal noise of standard deviation ``scale * max(1, mean |x|)`` per column, in float64.

    >>> jitter(torch.zeros(3), generator=torch.Generator().manual_seed(0)).unique().numel()
    3
    """
    x = as_samples("x", x)
    noise = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
    return x + noise * scale * x.abs().mean(0).clamp(min=1)


def _names(more: Sequence[Tensor]) -> list[str]:
    return ["x", "y", *(f"more[{i}]" for i in range(len(more)))]


def _psi(x: Tensor | float) -> Tensor:
    return torch.digamma(torch.as_tensor(x, dtype=torch.float64))
