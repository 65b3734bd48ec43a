r"""What `MIST` makes of raw numbers before its network sees them: views that leave the mutual information as it is."""

from __future__ import annotations

import torch
from torch import Tensor

from infotorch.core._checks import check_choice
from infotorch.core.gaussian import normal_scores, orthonormal_columns

VIEWS = ("canonical", "rank", "zscore", "raw")


def view_pair(x: Tensor, y: Tensor, view: str) -> tuple[Tensor, Tensor]:
    r"""Both sides of a sample as the network takes them.

    ``raw``
        As they are (the authors' way).
    ``zscore``
        Every column centered and divided by its standard deviation.
    ``rank``
        Normal scores of every column, :func:`infotorch.core.gaussian.normal_scores`: blind to monotone maps.
    ``canonical``
        Normal scores, then each side turned and scaled to uncorrelated columns of unit variance that are sorted into
        canonical pairs: column i of X correlates with column i of Y alone, most first. The order of the columns and
        linear maps of the scores make no difference then.

    Args:
        x: Shape ``(n, dx)``, finite, float64.
        y: Shape ``(n, dy)``.
        view: One of the above.

    Returns:
        Both sides; constant columns are zero, and in the canonical view columns that others determine are left out.

    Raises:
        ValueError: An unknown view.

    >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0]], dtype=torch.float64)
    >>> y = torch.tensor([[1.0], [0.0], [3.0], [2.0]], dtype=torch.float64)
    >>> a, b = view_pair(x, y, "canonical")
    >>> float((a * b).mean())  # the correlation of normal scores
    0.5...
    """
    check_choice("view", view, VIEWS)
    if view == "raw":
        return x, y
    if view == "zscore":
        return _zscore(x), _zscore(y)
    x, y = normal_scores(x), normal_scores(y)
    return (x, y) if view == "rank" else _canonical(x, y)


def _zscore(x: Tensor) -> Tensor:
    centered = x - x.mean(0)
    deviation = centered.square().mean(0).sqrt()
    return centered / torch.where(deviation > 0, deviation, 1.0)


def _canonical(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    x, y = (orthonormal_columns(v - v.mean(0)) * len(v) ** 0.5 for v in (x, y))
    if not (x.shape[1] and y.shape[1]):
        return x, y
    u, _, vh = torch.linalg.svd(x.mT @ y)
    x, y = x @ u, y @ vh.mT
    # The decomposition leaves a sign to each pair. Skewness settles it without looking at the order of the columns.
    pairs = min(x.shape[1], y.shape[1])
    x, y = x.clone(), y.clone()
    sign = torch.where(x[:, :pairs].pow(3).sum(0) < 0, -1.0, 1.0)
    x[:, :pairs] *= sign
    y[:, :pairs] *= sign
    return x, y


def soft_view_pair(x: Tensor, y: Tensor, view: str, softness: float) -> tuple[Tensor, Tensor]:
    r"""`view_pair` with gradients: ranks are softened by a normal kernel.

    The rank of :math:`x_i` becomes :math:`\frac12 + \sum_j \Phi((x_i - x_j) / (s \sigma))`. The linear maps to
    canonical pairs count as constants: the information does not depend on them.

    Args:
        x: Shape ``(n, dx)``, finite.
        y: Shape ``(n, dy)``.
        view: As for `view_pair`.
        softness: :math:`s`, positive.

    >>> x = torch.tensor([[0.0], [1.0], [9.0]], dtype=torch.float64, requires_grad=True)
    >>> soft, _ = soft_view_pair(x, x, "rank", 0.01)
    >>> torch.allclose(soft, normal_scores(x))
    True
    """
    if view in ("raw", "zscore"):
        return view_pair(x.double(), y.double(), view)
    x, y = (_soft_scores(v.double(), softness) for v in (x, y))
    if view == "rank":
        return x, y
    with torch.no_grad():
        targets = _canonical(x, y)
        maps = [torch.linalg.pinv(v - v.mean(0)) @ target for v, target in zip((x, y), targets, strict=True)]
    return (x - x.mean(0)) @ maps[0], (y - y.mean(0)) @ maps[1]


def _soft_scores(x: Tensor, softness: float) -> Tensor:
    width = (softness * x.detach().std(0)).clamp(min=torch.finfo(x.dtype).tiny)
    # Each point counts itself with one half, as the rank's own half.
    rank = torch.special.ndtr((x.unsqueeze(1) - x) / width).sum(1) + 0.5
    return torch.special.ndtri(rank / (len(x) + 1))
