r"""Distances to nearest neighbors that gradients flow through, and the KoLeo regularizer that spreads points out.

The neighbors are found exactly and held fixed; their distances are then differences of the points themselves, so
that gradients are those of the distances. The Kozachenko-Leonenko entropy on the same footing is
:func:`~infotorch.core.differential.kl_entropy`.

References:
    - A. Sablayrolles et al., "Spreading vectors for similarity search", 2019, arXiv:1806.03198.
    - M. Oquab et al., "DINOv2: learning robust visual features without supervision", 2023, arXiv:2304.07193.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from infotorch.core._checks import check_choice, check_range, check_tensor
from infotorch.core._samples import as_samples
from infotorch.core.neighbors import METRICS, knn


def neighbor_distances(
    x: Tensor, k: int = 1, *, queries: Tensor | None = None, metric: str = "euclidean"
) -> tuple[Tensor, Tensor]:
    """Distances to the k nearest points and which they are; the distances are differentiable.

    Args:
        x: Shape ``(n, d)`` or ``(n,)``.
        k: How many, below n (up to n for queries).
        queries: Shape ``(q, d)``: look for their neighbors in ``x``. By default for those of every point of ``x``
            among the others.
        metric: ``"euclidean"`` or ``"max"`` (largest coordinate difference).

    Returns:
        Distances in float64, ascending, and indices into ``x``, both ``(n, k)`` or ``(q, k)``. The gradient is 0 at
        distance 0.

    Raises:
        ValueError: ``k`` out of range, values that are not finite, dimensions that differ, unknown metric.

    >>> neighbor_distances(torch.tensor([0.0, 1.0, 3.0]))[0].squeeze(1)
    tensor([1., 1., 2.], dtype=torch.float64)
    """
    check_choice("metric", metric, METRICS)
    points = as_samples("x", x, keep_gradient=True)
    asking = None if queries is None else as_samples("queries", queries, keep_gradient=True)
    index = knn(points, k, queries=asking, metric=metric)[1]
    gap = (points if asking is None else asking).unsqueeze(1) - points[index]
    if metric == "max":
        return gap.abs().amax(-1), index
    square = gap.square().sum(-1)
    apart = square > 0
    return torch.where(apart, torch.where(apart, square, 1.0).sqrt(), 0.0), index


def koleo(x: Tensor, *, k: int = 1, normalize: bool = True, eps: float = 1e-8) -> Tensor:
    r"""KoLeo regularizer, :math:`-\frac{1}{n} \sum_i \log(r_i + \epsilon)` with the distance to the k-th neighbor.

    Up to constants and the factor d it is minus the Kozachenko-Leonenko entropy of the points: minimizing it spreads
    them evenly. It couples the batch.

    Args:
        x: Shape ``(n, d)``.
        k: Neighbor whose distance counts, ``1 <= k < n``.
        normalize: Put the points on the unit sphere first.
        eps: Keeps the logarithm finite where points coincide; such pairs get no gradient.

    Returns:
        0-d, in nats; float64 if ``x`` is, else float32.

    Raises:
        TypeError: ``x`` is not a floating tensor.
        ValueError: ``x`` is not a matrix, ``k`` or ``eps`` out of range, values that are not finite.

    Reference: A. Sablayrolles et al., 2019, arXiv:1806.03198.

    Deviation from DINOv2's code: the neighbor is found by distances in float64, not by products of rounded unit
    vectors, and coinciding points are pushed nowhere instead of along a difference of ``eps``.

    >>> koleo(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]))  # minus half of log 2
    tensor(-0.3466)
    """
    if not check_tensor("x", x).is_floating_point():
        raise TypeError(f"x: expected a floating-point tensor, got {x.dtype}")
    if x.ndim != 2:
        raise ValueError(f"x: expected shape (n, d), got {tuple(x.shape)}")
    check_range("eps", eps, 0.0, math.inf, high_open=True)
    points = x.double()
    if normalize:
        points = torch.nn.functional.normalize(points, dim=1)
    radius = neighbor_distances(points, k)[0][:, -1]
    return -(radius + eps).log().mean().to(x.dtype if x.dtype == torch.float64 else torch.float32)
