r"""Diffusion spectral mutual information: how much of a representation's entropy labels or inputs account for.

.. math:: I(X; Y) = \sum_c p_c \Big[ \frac{1}{R} \sum_{r=1}^{R} S(X_r^{(c)}) - S(X \mid Y = c) \Big]

with the diffusion spectral entropy :math:`S` and random subsets :math:`X_r^{(c)}` of all points, as large as class
:math:`c`. The equal size is what makes the two entropies comparable: both grow with the number of points. The paper
subtracts from the entropy of *all* points; its code, followed here, from that of the subsets.

It is not Shannon's mutual information: a variable's information about itself is not its entropy, and a value
slightly below 0 means none.

Also here: the same with a histogram's entropy, which the authors compare with.

Reference:
    D. Liao, C. Liu et al., "Assessing Neural Network Representations During Training Using Noise-Resilient
    Diffusion Spectral Entropy", 2023, arXiv:2312.04823.

Deviations from the authors' code:
    - Nats; ``base=2`` gives its bits.
    - A reference whose values are all equal is one cluster (there: 0/0).
    - A reference of several columns is clustered here by a spectral clustering of our own, without random steps.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor

from infotorch.core._checks import check_choice, check_range, check_tensor
from infotorch.core._kernels import bandwidth, check_finite, check_points, squared_distances
from infotorch.core.diffusion import (
    MAX_N,
    METHODS,
    OperatorOptions,
    diffusion_entropy_estimate,
    exact_entropy,
    rescale,
    warn_if_saturated,
)

__all__ = [
    "EntropyInformation",
    "binned_entropy",
    "binned_information",
    "diffusion_mutual_information",
    "reference_clusters",
    "spectral_clusters",
]

_BATCH_ENTRIES = 1 << 22  # kernels of a class and its subsets computed in one call, up to this many numbers


@dataclass(frozen=True)
class EntropyInformation:
    """An information as a difference of entropies of equally many points.

    Attributes:
        value: ``baseline - conditional``, 0-d.
        baseline: Mean entropy of the random subsets, weighted by class frequency.
        conditional: Mean entropy within classes, weighted likewise.
        clusters: Class of each point, from 0, shape ``(n,)``.
    """

    value: Tensor
    baseline: Tensor
    conditional: Tensor
    clusters: Tensor


def diffusion_mutual_information(
    x: Tensor,
    y: Tensor,
    *,
    t: float = 1.0,
    base: float = math.e,
    num_repetitions: int = 5,
    n_clusters: int = 10,
    max_n: int | None = MAX_N,
    method: str = "exact",
    seed: int = 0,
    **options: Unpack[OperatorOptions],
) -> EntropyInformation:
    r"""Diffusion spectral mutual information (DSMI) between points and a reference.

    Args:
        x: Points, shape ``(n, d)``; differentiable with ``method="exact"``.
        y: Reference, shape ``(n,)`` or ``(n, m)``. One column of integers or booleans: classes. One column of floats:
            ``n_clusters`` bins of equal width. Several columns: :func:`spectral_clusters`. To watch a network train,
            cluster its inputs once and hand the clusters over.
        t: Diffusion time.
        base: Of the logarithm; the authors' code: 2.
        num_repetitions: Random subsets per class.
        n_clusters: Of a reference that is not discrete.
        max_n: Larger subsets and classes are thinned to this size, as in
            :func:`~infotorch.core.diffusion.diffusion_spectral_entropy`.
        method: ``"exact"`` or ``"lanczos"``.
        seed: Of the subsets. Every class starts from it afresh, as in the authors' code, whose draws these are.
        **options: As in :func:`~infotorch.core.diffusion.diffusion_operator`. ``sigma="median"`` and ``normalize`` take
            their scale from all points once, not from each subset.

    Returns:
        An :class:`EntropyInformation`.

    Raises:
        TypeError: ``x`` is not a floating tensor.
        ValueError: Shapes that do not match, values that are not finite, no repetition, an unknown name.

    Warns:
        UserWarning: The subsets' entropy is above 98 % or below 2 % of its maximum; the information is then near 0
            whatever the reference.

    Reference: D. Liao, C. Liu et al., 2023, arXiv:2312.04823; see the deviations at the top of this module.

    >>> x = torch.cat([torch.zeros(8, 2), torch.full((8, 2), 9.0)])  # two tight clusters
    >>> diffusion_mutual_information(x, torch.arange(16) // 8, sigma=1.0, base=2).value  # one bit
    tensor(1.)
    """
    x = check_finite("x", check_points("x", x))
    check_choice("method", method, METHODS)
    if x.ndim != 2:
        raise ValueError(f"x: expected shape (n, d), got {tuple(x.shape)}")
    x = rescale(x, options.pop("normalize", None))
    sigma = options.get("sigma")
    if isinstance(sigma, str):
        options["sigma"] = torch.as_tensor(bandwidth(x, sigma)).reshape(())

    def entropies(rows: list[list[int]]) -> Tensor:
        if method == "lanczos":
            return torch.stack(
                [diffusion_entropy_estimate(x[i], t=t, base=base, seed=seed, **options).value for i in rows]
            ).to(x.dtype)
        size = len(rows[0])
        together = max(1, _BATCH_ENTRIES // size**2)
        parts = [x[torch.tensor(rows[i : i + together])] for i in range(0, len(rows), together)]
        return torch.cat([exact_entropy(part, t, base, max_n, seed, options)[0] for part in parts])

    found = _information(entropies, reference_clusters(y, len(x), n_clusters), num_repetitions, seed)
    sizes = found.clusters.bincount().clamp(max=max_n if method == "exact" else None, min=0).double()
    most = float((sizes * sizes.log()).nan_to_num().sum() / len(x))
    warn_if_saturated("diffusion_mutual_information", found.baseline, most, base)
    return found


def binned_entropy(x: Tensor, *, num_bins_per_dim: int = 2, base: float = math.e) -> Tensor:
    r"""Entropy of a histogram over all dimensions at once, each cut into bins of equal width over its range.

    The baseline that diffusion spectral entropy is set against. In many dimensions every point has a bin of its own and
    the value is :math:`\log n` whatever the data.

    Args:
        x: Points, shape ``(n, d)``.
        num_bins_per_dim: Bins of each column. The last also takes the column's maximum; a constant column is one bin.
        base: Of the logarithm.

    Returns:
        0-d, in ``x``'s precision; no gradient.

    Raises:
        TypeError: ``x`` is not a floating tensor.
        ValueError: Another shape, values that are not finite, fewer than one bin.

    >>> binned_entropy(torch.tensor([[0.0], [0.1], [0.9], [1.0]]), base=2)
    tensor(1.)
    """
    x = check_finite("x", check_points("x", x)).detach()
    check_range("num_bins_per_dim", num_bins_per_dim, 1)
    if x.ndim != 2:
        raise ValueError(f"x: expected shape (n, d), got {tuple(x.shape)}")
    counts = torch.unique(_bins(x, num_bins_per_dim), dim=0, return_counts=True)[1]
    shares = counts.double() / len(x)
    return (-(shares * shares.log()).sum() / math.log(base)).to(x.dtype)


def binned_information(
    x: Tensor,
    y: Tensor,
    *,
    num_bins_per_dim: int = 2,
    base: float = math.e,
    num_repetitions: int = 5,
    n_clusters: int = 10,
    seed: int = 0,
) -> EntropyInformation:
    """:func:`diffusion_mutual_information` with :func:`binned_entropy` in the place of the diffusion spectral entropy.

    Every subset and class is scaled to its own range, so the value may be well below 0.

    Args:
        x: Points, shape ``(n, d)``.
        y: Reference, as there.
        num_bins_per_dim: Bins of each column.
        base: Of the logarithm.
        num_repetitions: Random subsets per class.
        n_clusters: Of a reference that is not discrete.
        seed: Of the subsets.

    Returns:
        An :class:`EntropyInformation`.

    Raises:
        TypeError: ``x`` is not a floating tensor.
        ValueError: Shapes that do not match, values that are not finite, no repetition.

    >>> binned_information(torch.tensor([[0.0], [1.0]]), torch.tensor([0, 0])).value
    tensor(0.)
    """
    x = check_points("x", x)

    def entropies(rows: list[list[int]]) -> Tensor:
        return torch.stack([binned_entropy(x[i], num_bins_per_dim=num_bins_per_dim, base=base) for i in rows])

    return _information(entropies, reference_clusters(y, len(x), n_clusters), num_repetitions, seed)


def _information(
    entropies: Callable[[list[list[int]]], Tensor], clusters: Tensor, num_repetitions: int, seed: int
) -> EntropyInformation:
    """Weighted differences; ``entropies`` maps lists of equally many rows to their entropies."""
    check_range("num_repetitions", num_repetitions, 1)
    n = len(clusters)
    baseline = conditional = torch.zeros(())
    for label in clusters.unique().tolist():
        members = (clusters == label).nonzero().squeeze(1).tolist()
        draw = random.Random(seed)
        subsets = [draw.sample(range(n), len(members)) for _ in range(num_repetitions)]
        found = entropies([members, *subsets])
        weight = len(members) / n
        conditional = conditional + weight * found[0]
        baseline = baseline + weight * found[1:].mean()
    return EntropyInformation(baseline - conditional, baseline, conditional, clusters)


def reference_clusters(y: Tensor, n: int, n_clusters: int = 10) -> Tensor:
    """Classes, from 0, of a reference variable: see :func:`diffusion_mutual_information`.

    Args:
        y: Shape ``(n,)`` or ``(n, m)``.
        n: Expected number of rows.
        n_clusters: Of a reference that is not discrete.

    Returns:
        Integers, shape ``(n,)``.

    Raises:
        ValueError: Another shape, values that are not finite, fewer than one cluster.

    >>> reference_clusters(torch.tensor([0.0, 0.4, 0.6, 1.0]), 4, n_clusters=2)
    tensor([0, 0, 1, 1])
    """
    check_tensor("y", y)
    check_range("n_clusters", n_clusters, 1)
    if y.ndim not in (1, 2) or len(y) != n or y.numel() == 0:
        raise ValueError(f"y: expected shape ({n},) or ({n}, m), got {tuple(y.shape)}")
    y = y.detach().reshape(n, -1)
    if y.shape[1] > 1:
        return spectral_clusters(y if y.is_floating_point() else y.double(), n_clusters)
    if not y.is_floating_point():
        return y.squeeze(1).unique(return_inverse=True)[1]
    return _bins(check_finite("y", y), n_clusters).squeeze(1)


def _bins(x: Tensor, bins: int) -> Tensor:
    """Index, from 0, of each entry's bin between its column's extremes; the last bin takes the maximum."""
    low, high = x.amin(0), x.amax(0)
    width = torch.where(high > low, high - low, 1.0)
    # Multiples of the rounded width, not quotients: at an edge the last bit decides, and data may well lie there.
    edges = torch.arange(bins, dtype=x.dtype, device=x.device) * (1.0 / bins)
    return torch.bucketize((x - low) / width, edges, right=True) - 1


def spectral_clusters(x: Tensor, n_clusters: int = 10, *, k: int = 10) -> Tensor:
    r"""Normalized spectral clustering of a nearest-neighbor graph, without random steps; O(n³).

    Eigenvectors of the normalized adjacency matrix, turned to indicators by a pivoted QR factorization.

    Args:
        x: Points, shape ``(n, d)``.
        n_clusters: Number of clusters.
        k: Neighbors of each point, itself included; an edge that only one end sees weighs half.

    Returns:
        Integers from 0, shape ``(n,)``.

    Raises:
        TypeError: ``x`` is not a floating tensor.
        ValueError: Another shape, values that are not finite, ``n_clusters`` outside ``[1, n]``, ``k`` below 1.

    Reference: A. Damle, V. Minden, L. Ying, "Simple, direct, and efficient multi-way spectral clustering", 2019,
    arXiv:1708.07481.

    >>> spectral_clusters(torch.tensor([[0.0], [0.1], [5.0], [5.1]]), 2, k=2).unique(return_counts=True)[1]
    tensor([2, 2])
    """
    import scipy.linalg  # slow to load, and needed here only

    x = check_finite("x", check_points("x", x)).detach().double()
    if x.ndim != 2:
        raise ValueError(f"x: expected shape (n, d), got {tuple(x.shape)}")
    n = len(x)
    check_range("n_clusters", n_clusters, 1, n)
    check_range("k", k, 1)
    nearest = squared_distances(x).topk(min(k, n), largest=False).indices
    graph = torch.zeros(n, n, dtype=x.dtype, device=x.device).scatter_(1, nearest, 1.0)
    graph = (graph + graph.mT) / 2
    scale = graph.sum(1).rsqrt()
    vectors = torch.linalg.eigh(scale.unsqueeze(1) * graph * scale)[1][:, -n_clusters:]
    _, *pivots = scipy.linalg.qr(vectors.mT.cpu().numpy(), mode="r", pivoting=True)
    left, _, right = torch.linalg.svd(vectors[torch.as_tensor(pivots[-1][:n_clusters], device=x.device).long()].mT)
    return (vectors @ (left @ right)).abs().argmax(1)
