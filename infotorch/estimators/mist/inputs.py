r"""What `MIST` makes of raw numbers before its network sees them: views that leave the mutual information as it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from infotorch.core._checks import check_choice
from infotorch.core._samples import as_samples, check_paired
from infotorch.core.gaussian import independent, orthonormal_columns, scores_of_rows

Pair = tuple[Tensor, Tensor]

VIEWS = ("canonical", "rank", "zscore", "raw")


def view_pair(x: Tensor, y: Tensor, view: str) -> Pair:
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
        x: Shape ``(n, dx)`` or ``(n,)``, finite.
        y: Likewise.
        view: One of the above.

    Returns:
        Both sides, float64; constant columns are zero, and in the canonical view they are left out, as are those that
        others determine.

    Raises:
        ValueError: An unknown view, other shapes, different numbers of points, values that are not finite.

    >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0]], dtype=torch.float64)
    >>> y = torch.tensor([[1.0], [0.0], [3.0], [2.0]], dtype=torch.float64)
    >>> a, b = view_pair(x, y, "canonical")
    >>> float((a * b).mean())  # the correlation of normal scores
    0.5...
    """
    x, y = as_samples("x", x), as_samples("y", y)
    check_paired(x=x, y=y)
    return view_pairs([(x, y)], view)[0]


def view_pairs(pairs: Sequence[Pair], view: str) -> list[Pair]:
    """`view_pair` of many samples; those of one shape are worked on together.

    >>> x = torch.arange(4.0, dtype=torch.float64).unsqueeze(1)
    >>> [a.squeeze(1).tolist() for a, _ in view_pairs([(x, x), (x[:2], x[:2])], "zscore")]
    [[-1.34..., -0.44..., 0.44..., 1.34...], [-1.0, 1.0]]
    """
    check_choice("view", view, VIEWS)
    alike: dict[tuple[int, ...], list[int]] = {}
    for i, (x, y) in enumerate(pairs):
        alike.setdefault((len(x), x.shape[1], y.shape[1]), []).append(i)
    found: dict[int, Pair] = {}
    for rows in alike.values():
        x, y = (torch.stack([pairs[i][side] for i in rows]) for side in (0, 1))
        found.update(zip(rows, _VIEWS[view](x, y), strict=True))
    return [found[i] for i in range(len(pairs))]


def _raw(x: Tensor, y: Tensor) -> Iterable[Pair]:
    return zip(x, y, strict=True)


def _zscores(x: Tensor, y: Tensor) -> Iterable[Pair]:
    return zip(_zscore(x), _zscore(y), strict=True)


def _ranks(x: Tensor, y: Tensor) -> Iterable[Pair]:
    return zip(scores_of_rows(x.mT).mT, scores_of_rows(y.mT).mT, strict=True)


def _canonical_ranks(x: Tensor, y: Tensor) -> Iterable[Pair]:
    """Together where all columns say something new, which leaves the shapes as they are; else one by one."""
    x, y = (scores_of_rows(v.mT).mT for v in (x, y))
    centered, bases, usual = [], [], x.new_ones(len(x), dtype=torch.bool)
    for v in (x, y):
        v = v - v.mean(-2, keepdim=True)
        q, r = torch.linalg.qr(v / v.norm(dim=-2, keepdim=True))
        usual &= independent(r).all(-1)
        centered.append(v)
        bases.append(q)
    if bool(usual.all()):
        return zip(*_matched(*bases), strict=True)
    return [_canonical(a, b) for a, b in zip(*centered, strict=True)]


_VIEWS = {"canonical": _canonical_ranks, "rank": _ranks, "zscore": _zscores, "raw": _raw}


def _zscore(x: Tensor) -> Tensor:
    centered = x - x.mean(-2, keepdim=True)
    deviation = centered.square().mean(-2, keepdim=True).sqrt()
    return centered / torch.where(deviation > 0, deviation, 1.0)


def _canonical(x: Tensor, y: Tensor) -> Pair:
    """Centered samples to canonical pairs of the columns that say something new, of which there may be none."""
    x, y = orthonormal_columns(x), orthonormal_columns(y)
    return _matched(x, y) if x.shape[1] and y.shape[1] else (x, y)


def _matched(x: Tensor, y: Tensor) -> Pair:
    """Orthonormal columns ``(..., n, d)`` turned to canonical pairs of unit variance."""
    u, _, vh = torch.linalg.svd(x.mT @ y)
    root, pairs = x.shape[-2] ** 0.5, min(x.shape[-1], y.shape[-1])
    x, y = x @ u * root, y @ vh.mT * root
    # The decomposition leaves a sign to each pair. Skewness settles it without looking at the order of the columns.
    sign = torch.where(x[..., :pairs].pow(3).sum(-2, keepdim=True) < 0, -1.0, 1.0)
    x[..., :pairs] *= sign
    y[..., :pairs] *= sign
    return x, y


def soft_view_pair(x: Tensor, y: Tensor, view: str, softness: float) -> Pair:
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
    >>> torch.allclose(soft.detach(), view_pair(x.detach(), x.detach(), "rank")[0])
    True
    """
    if view in ("raw", "zscore"):
        return view_pairs([(x.double(), y.double())], view)[0]
    x, y = (_soft_scores(v.double(), softness) for v in (x, y))
    if view == "rank":
        return x, y
    x, y = x - x.mean(0), y - y.mean(0)
    with torch.no_grad():
        targets = _canonical(x, y)
        maps = [torch.linalg.pinv(v) @ target for v, target in zip((x, y), targets, strict=True)]
    return x @ maps[0], y @ maps[1]


def _soft_scores(x: Tensor, softness: float) -> Tensor:
    width = (softness * x.detach().std(0)).clamp(min=torch.finfo(x.dtype).tiny)
    # Each point counts itself with one half, as the rank's own half.
    rank = torch.special.ndtr((x.unsqueeze(1) - x) / width).sum(1) + 0.5
    return torch.special.ndtri(rank / (len(x) + 1))
